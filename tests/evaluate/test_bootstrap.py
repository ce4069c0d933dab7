# SPDX-License-Identifier: Apache-2.0
"""Intervals against resampling by the definition: draw images, put their outputs together, score with scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics

from spectralgpt.evaluate.bootstrap import LEAST_IMAGES, intervals
from spectralgpt.evaluate.outcomes import Outcomes
from spectralgpt.train.scores import Scores

RESAMPLES = 40


def found(task, output, target):
    scores = Scores(task, output.shape[1])
    image, cell, count = [], [], []
    for index in range(len(output)):
        before = scores.confusion.clone()
        scores.update(output[index : index + 1], target[index : index + 1])
        added = (scores.confusion - before).flatten().numpy()
        places = np.flatnonzero(added)
        image += [index] * len(places)
        cell += places.tolist()
        count += added[places].tolist()
    arrays = (np.array(values, np.int64) for values in (image, cell, count))
    return Outcomes(scores, tuple(map(str, range(len(output)))), np.zeros(len(output)), *arrays)


def draws(count, seed):
    generator = np.random.default_rng(seed)
    return [generator.integers(count, size=count) for _ in range(RESAMPLES)]


def test_several_labels_with_ties_and_a_rare_class():
    generator = torch.Generator().manual_seed(0)
    output = (3 * torch.randn(30, 4, generator=generator)).round() / 3
    target = (torch.rand(30, 4, generator=generator) < 0.4).long()
    target[:, 3] = 0
    target[4, 3] = 1  # in some resamples without a positive
    result = intervals(found("multi_label", output, target), RESAMPLES, seed=5)
    macro, micro, f1 = [], [], []
    for places in draws(30, 5):
        truth, score = target[places].numpy(), output[places].double().sigmoid().numpy()
        there = truth.any(axis=0)
        macro.append(
            np.mean([metrics.average_precision_score(truth[:, k], score[:, k]) for k in np.flatnonzero(there)])
        )
        micro.append(metrics.average_precision_score(truth, score, average="micro"))
        f1.append(metrics.f1_score(truth, score > 0.5, average=None, zero_division=0)[there].mean())
    assert len({int(truth[:, 3].sum()) for truth in (target[places].numpy() for places in draws(30, 5))}) > 1
    for name, values in (("macro_map", macro), ("micro_map", micro), ("macro_f1", f1)):
        assert result.bounds[name] == pytest.approx(tuple(np.quantile(values, (0.025, 0.975))), abs=1e-9)
    assert result.resamples == RESAMPLES


def test_change_draws_whole_images_and_passes_over_those_without_change():
    generator = torch.Generator().manual_seed(1)
    output = torch.randn(12, 2, 5, 4, generator=generator)
    target = torch.zeros(12, 5, 4, dtype=torch.int64)
    target[0, 0] = target[1, 2] = 1
    target[2, 1] = 255
    result = intervals(found("change", output, target), RESAMPLES, seed=2)
    f1 = []
    for places in draws(12, 2):
        truth, guess = target[places].numpy().ravel(), output[places].argmax(1).numpy().ravel()
        kept = truth != 255
        if truth[kept].any():
            f1.append(metrics.f1_score(truth[kept], guess[kept]))
    assert 0 < len(f1) < RESAMPLES, "a resample without change must occur"
    assert result.resamples == len(f1)
    assert result.bounds["f1"] == pytest.approx(tuple(np.quantile(f1, (0.025, 0.975))), abs=1e-9)


def test_the_same_seed_gives_the_same_intervals():
    output, target = torch.randn(20, 3), torch.arange(20) % 3
    first, again, other = (intervals(found("single_label", output, target), RESAMPLES, seed) for seed in (1, 1, 2))
    assert first == again and first.bounds != other.bounds


def test_too_few_images_get_no_interval():
    output, target = torch.randn(LEAST_IMAGES - 1, 2), torch.arange(LEAST_IMAGES - 1) % 2
    result = intervals(found("single_label", output, target), RESAMPLES, 0)
    assert result.bounds == {} and "too few" in result.note
