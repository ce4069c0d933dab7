# SPDX-License-Identifier: Apache-2.0
"""The arithmetic behind the transfer benchmarks' numbers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

import spectralgpt
from spectralgpt.data.statistics import load_mean_std

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import dense_transfer
import transfer


def test_the_threshold_has_the_best_f1_also_among_ties():
    rng = np.random.default_rng(0)
    for _ in range(6):
        changed = rng.random(60) < 0.2
        values = np.round(rng.normal(size=60) + changed, 1)
        best = dense_transfer.best_threshold(values, changed)
        reached = f1_score(changed, values >= best)
        assert reached == pytest.approx(max(f1_score(changed, values >= value) for value in values))


def test_a_test_city_has_no_say_in_its_threshold():
    rng = np.random.default_rng(1)
    values = {name: rng.normal(size=50) for name in "abc"}
    changed = {name: values[name] > 0.5 for name in "abc"}
    assert dense_transfer.by_threshold(values, changed, "c") > 0.9
    changed["c"] = values["c"] > 1.5  # its own best threshold would give 1
    assert dense_transfer.by_threshold(values, changed, "c") < 0.9


def test_both_arms_see_the_numbers_of_the_pretraining(tmp_path):
    model = spectralgpt.create_model(
        "tiny", image_size=16, bands=("B04", "B03", "B02"), embed_dim=16, depth=1, num_heads=2
    )
    model.normalization = {
        "method": "fixed",
        "band_names": ["B04", "B03", "B02"],
        "offset": [3, 2, 1],
        "scale": [0.5, 0.25, 1],
    }
    model.save_pretrained(tmp_path / "fixed" / "model")
    known = ("B04", "B03", "B02"), (3, 2, 1), (2, 4, 1)
    names, mean, std = dense_transfer.statistics(tmp_path / "fixed")
    assert (names, tuple(mean), tuple(std)) == known
    args = argparse.Namespace(weights=tmp_path / "fixed", runs=tmp_path / "runs")
    assert load_mean_std(dense_transfer._statistics_file(args)) == known
    model.normalization = {**model.normalization, "method": "percentile"}
    model.save_pretrained(tmp_path / "percentile" / "model")
    with pytest.raises(SystemExit, match="expected a pretraining with fixed statistics"):
        dense_transfer.statistics(tmp_path / "percentile")


def test_every_image_is_held_out_once_per_repeat():
    labels = np.repeat(np.arange(3), 10)
    values = np.eye(3)[labels] + np.random.default_rng(0).normal(size=(30, 3)) * 0.05
    assert (transfer.judged(values, labels, "linear", 2) == 1).all()
    assert (transfer.judged(values, labels, "knn", 2) == 1).all()
    shuffled = np.random.default_rng(0).permutation(labels)
    assert transfer.judged(values, shuffled, "knn", 4).mean() < 0.6


def test_the_bound_of_a_gain():
    low, high = transfer.bound(np.full(50, 0.1))
    assert (low, high) == pytest.approx((0.1, 0.1))
    gain = np.random.default_rng(0).normal(0.1, 0.3, 100)
    low, high = transfer.bound(gain)
    spread = 1.96 * gain.std() / 10
    assert (low, high) == pytest.approx((gain.mean() - spread, gain.mean() + spread), abs=0.01)
