# SPDX-License-Identifier: Apache-2.0
"""Scores against scikit-learn, which shares no line with them: ties, absent classes, ignored pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import Tensor

from spectralgpt.errors import UserError
from spectralgpt.train.scores import Scores

CLOSE: dict[str, Any] = {"rel": 0, "abs": 1e-6}


def draw(task: str, seed: int, count: int = 6) -> tuple[Tensor, Tensor]:
    """Outputs with many ties, of classes 0 to 5; no target is class 2, and class 3 is never predicted."""
    generator = torch.Generator().manual_seed(seed)
    shape = {"single_label": (151,), "multi_label": (151,)}.get(task, (23, 9, 7))
    if task == "change":
        count = 2
    output = torch.randn(shape[0], count, *shape[1:], generator=generator).mul(4).round().div(4)
    if task == "multi_label":
        target = (torch.rand(151, count, generator=generator) < 0.3).long()
        target[:, 2] = 0
        output += target * 0.5
        return output, target
    target = torch.randint(count, shape, generator=generator)
    output.scatter_add_(1, target[:, None], torch.ones(()).expand_as(target[:, None]).clone())
    if count > 2:
        target[target == 2] = 0
        output[:, 3] = -9
    if task in ("segmentation", "change"):
        target[torch.rand(shape, generator=generator) < 0.2] = 255
    return output, target


def scored(task: str, output: Tensor, target: Tensor, batch: int) -> dict[str, Any]:
    scores = Scores(task, output.shape[1])
    for start in range(0, len(output), batch):
        scores.update(output[start : start + batch], target[start : start + batch])
    return scores.compute()


@pytest.mark.parametrize("seed", range(3))
def test_single_label(seed: int) -> None:
    output, target = draw("single_label", seed)
    result = scored("single_label", output, target, 32)
    truth, guess = target.numpy(), output.numpy().argmax(1)  # NumPy too takes the first of equals
    present = [0, 1, 3, 4, 5]
    assert result["accuracy"] == pytest.approx(metrics.accuracy_score(truth, guess), **CLOSE)
    # scikit-learn warns of the predicted class 2 without target, and leaves it out as we do
    recall = metrics.recall_score(truth, guess, labels=present, average=None)
    assert result["balanced_accuracy"] == pytest.approx(recall.mean(), **CLOSE)
    assert result["kappa"] == pytest.approx(metrics.cohen_kappa_score(truth, guess), **CLOSE)
    f1 = metrics.f1_score(truth, guess, labels=present, average=None)
    assert result["macro_f1"] == pytest.approx(f1.mean(), **CLOSE)
    precision = metrics.precision_score(truth, guess, labels=present, average=None, zero_division=0)
    for name, values in (("recall", recall), ("f1", f1), ("precision", precision)):
        table = result["per_class"][name]
        assert [table[index] for index in present] == pytest.approx(values, **CLOSE)
        assert table[2] is None
    assert result["absent"] == ["class_2"]
    assert result["per_class"]["support"] == np.bincount(truth, minlength=6).tolist()
    assert result["count"] == 151


@pytest.mark.parametrize("seed", range(3))
def test_multi_label(seed: int) -> None:
    output, target = draw("multi_label", seed)
    result = scored("multi_label", output, target, 32)
    truth, score = target.numpy(), output.numpy()
    present = [0, 1, 3, 4, 5]
    assert len(np.unique(score)) < 60, "ties must occur"
    each = [metrics.average_precision_score(truth[:, index], score[:, index]) for index in present]
    assert [result["per_class"]["average_precision"][index] for index in present] == pytest.approx(each, **CLOSE)
    assert result["macro_map"] == pytest.approx(np.mean(each), **CLOSE)
    micro = metrics.average_precision_score(truth, score, average="micro")
    assert result["micro_map"] == pytest.approx(micro, **CLOSE)
    guess = (score > 0).astype(int)
    assert result["micro_f1"] == pytest.approx(metrics.f1_score(truth, guess, average="micro"), **CLOSE)
    f1 = metrics.f1_score(truth, guess, average=None, zero_division=0)
    assert result["macro_f1"] == pytest.approx(f1[present].mean(), **CLOSE)
    assert result["absent"] == ["class_2"]
    assert result["per_class"]["average_precision"][2] is None


@pytest.mark.parametrize("seed", range(3))
def test_segmentation(seed: int) -> None:
    output, target = draw("segmentation", seed)
    result = scored("segmentation", output, target, 4)
    kept = target.numpy() != 255
    truth, guess = target.numpy()[kept], output.numpy().argmax(1)[kept]
    present = [0, 1, 3, 4, 5]
    for name, function in (
        ("iou", metrics.jaccard_score),
        ("f1", metrics.f1_score),
        ("precision", metrics.precision_score),
        ("recall", metrics.recall_score),
    ):
        values = function(truth, guess, labels=present, average=None, zero_division=0)
        assert [result["per_class"][name][index] for index in present] == pytest.approx(values, **CLOSE)
        if name in ("iou", "f1"):
            assert result[{"iou": "miou", "f1": "macro_f1"}[name]] == pytest.approx(values.mean(), **CLOSE)
    assert result["accuracy"] == pytest.approx(metrics.accuracy_score(truth, guess), **CLOSE)
    assert result["absent"] == ["class_2"]
    assert result["count"] == kept.sum()


@pytest.mark.parametrize("seed", range(3))
def test_change(seed: int) -> None:
    output, target = draw("change", seed)
    result = scored("change", output, target, 4)
    kept = target.numpy() != 255
    truth, guess = target.numpy()[kept], output.numpy().argmax(1)[kept]
    assert (output[:, 0] == output[:, 1]).any(), "ties must occur"
    for name, function in (
        ("precision", metrics.precision_score),
        ("recall", metrics.recall_score),
        ("f1", metrics.f1_score),
        ("iou", metrics.jaccard_score),
        ("accuracy", metrics.accuracy_score),
    ):
        assert result[name] == pytest.approx(function(truth, guess), **CLOSE)


@pytest.mark.parametrize("task", ["single_label", "multi_label", "segmentation", "change"])
def test_any_batch_size_gives_the_same_bits(task: str) -> None:
    output, target = draw(task, 5)
    whole = scored(task, output, target, len(output))
    assert Scores(task, output.shape[1]).primary in whole
    for batch in (1, 2, 7, 100):
        assert scored(task, output, target, batch) == whole


def test_logits_beyond_the_reach_of_float32_probabilities_keep_their_order() -> None:
    """In float32 the sigmoid of 17 and more is 1: the ranking would be lost in ties."""
    output = torch.tensor([[18.0], [20.0], [19.0], [-3.0]])
    target = torch.tensor([[0], [1], [1], [0]])
    assert scored("multi_label", output, target, 4)["macro_map"] == 1
    inside = torch.tensor([[0.9], [0.2], [0.3], [-3.0]])  # one batch looks like probabilities, the other does not
    together = scored("multi_label", inside, target, 4)
    assert scored("multi_label", inside, target, 3) == together


def test_half_precision_and_other_devices_are_taken() -> None:
    output, target = draw("single_label", 0)
    half = scored("single_label", output.bfloat16().requires_grad_(), target, 64)
    assert half == scored("single_label", output.bfloat16().float(), target, 64)


@pytest.mark.parametrize(
    ("task", "count", "output", "target", "says"),
    [
        ("single_label", 3, torch.zeros(2, 3), torch.tensor([0, 3]), "expected 0 to 2, got 3"),
        (
            "segmentation",
            3,
            torch.zeros(1, 3, 2, 2),
            torch.full((1, 2, 2), 7),
            "or 255 .pixel without label., got 7",
        ),
        ("multi_label", 3, torch.zeros(1, 3), torch.tensor([[0, 1, 2]]), "expected 0 to 1, got 2"),
        ("single_label", 3, torch.zeros(2, 4), torch.tensor([0, 1]), r"\(2, 3\).*got \(2, 4\)"),
        ("segmentation", 3, torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 2).long(), r"\(1, 3, 2, 2\)"),
        ("change", 2, torch.full((1, 2, 2, 2), torch.nan), torch.ones(1, 2, 2).long(), "NaN"),
    ],
)
def test_what_cannot_be_scored_is_refused(task: str, count: int, output: Tensor, target: Tensor, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Scores(task, count).update(output, target)


@pytest.mark.parametrize(
    ("task", "output", "target", "says"),
    [
        ("change", torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2).long(), "expected changed pixels"),
        ("segmentation", torch.zeros(1, 2, 2, 2), torch.full((1, 2, 2), 255), "expected labelled pixels"),
        ("multi_label", torch.zeros(2, 2), torch.zeros(2, 2).long(), "at least one positive"),
    ],
)
def test_a_split_without_positives(task: str, output: Tensor, target: Tensor, says: str) -> None:
    with pytest.raises(UserError, match=says):
        scored(task, output, target, 1)


@pytest.mark.parametrize("task", ["single_label", "multi_label", "segmentation", "change"])
def test_nothing_seen(task: str) -> None:
    with pytest.raises(UserError, match="got none"):
        Scores(task, 2).compute()


def test_one_class_only() -> None:
    with pytest.raises(UserError, match="at least 2 for single_label, got 1"):
        Scores("single_label", 1)
    with pytest.raises(UserError, match="expected 2 for change, got 3"):
        Scores("change", 3)
    result = scored("single_label", torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 0]), 2)
    assert (result["accuracy"], result["kappa"], result["absent"]) == (1.0, None, ["class_1"])


def test_names_and_ignore_index_are_checked() -> None:
    with pytest.raises(UserError, match="expected 3 names, got 2"):
        Scores("single_label", 3, ("a", "b"))
    with pytest.raises(UserError, match="no class, got 1"):
        Scores("segmentation", 3, ignore_index=1)
    with pytest.raises(UserError, match="got 'regression'"):
        Scores("regression", 3)
