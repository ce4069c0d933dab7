# SPDX-License-Identifier: Apache-2.0
"""How far scores would move with other images: the percentile bootstrap over images.

An image is drawn with all its pixels, since neighbouring pixels are no independent witnesses. The same seed gives the
same intervals. Outputs are ranked once; a resample only changes how often each image counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from spectralgpt.errors import UserError
from spectralgpt.evaluate.outcomes import Outcomes
from spectralgpt.train.scores import from_confusion

LEAST_IMAGES = 10
"""Of fewer images no interval is given: it would only look like one."""
LEVEL = 0.95

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Intervals:
    """Where scores lie in 95 % of the resamples.

    Attributes:
        bounds: lower and upper bound by a score's name.
        resamples: how many could be scored (one without a changed pixel cannot).
        note: why there are none, or "".
    """

    bounds: dict[str, tuple[float, float]]
    resamples: int
    note: str = ""


def intervals(found: Outcomes, resamples: int, seed: int) -> Intervals:
    """The intervals of all scores that are numbers.

    Args:
        found: outcomes.
        resamples: how many to draw; 0 for no intervals.
        seed: of the draws.
    """
    count = len(found.names)
    if not resamples:
        return Intervals({}, 0, "not asked for")
    if count < LEAST_IMAGES:
        return Intervals({}, 0, f"{count} images are too few to resample; at least {LEAST_IMAGES} are needed")
    scored = list(tqdm(_resampled(found, resamples, seed), "bootstrap", resamples, delay=2, leave=False))
    if not scored:
        return Intervals({}, 0, "no resample could be scored")
    bounds = {}
    for name in scored[0]:
        values = [scores[name] for scores in scored if scores[name] is not None]
        if values:
            low, high = np.quantile(values, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
            bounds[name] = (float(low), float(high))
    return Intervals(bounds, len(scored))


def _resampled(found: Outcomes, resamples: int, seed: int) -> Iterator[dict[str, Any]]:
    generator, count = np.random.default_rng(seed), len(found.names)
    ranking = _Ranking(found) if found.scores.task == "multi_label" else None
    for _ in range(resamples):
        times = np.bincount(generator.integers(count, size=count), minlength=count)
        scores = _confused(found, times) if ranking is None else ranking.score(times.astype(np.float64))
        if scores is not None:
            yield scores


def _confused(found: Outcomes, times: Ints) -> dict[str, Any] | None:
    classes = found.scores.classes
    cells = np.bincount(found.cell, times[found.image] * found.count, len(classes) ** 2)
    try:
        scores = from_confusion(found.scores.task, torch.from_numpy(cells).view(len(classes), -1), classes)
    except UserError:  # nothing to find among the images drawn
        return None
    return {key: value for key, value in scores.items() if key not in ("per_class", "absent", "count")}


class _Ranking:
    """Weighted average precision and F1 of several labels, as `scores.from_ranking` gives them for weights of 1."""

    def __init__(self, found: Outcomes) -> None:
        probabilities, targets = (tensor.numpy() for tensor in found.scores.ranking())
        self._positive = targets == 1
        self._guessed = probabilities > 0.5
        self._image = np.arange(len(targets)).repeat(targets.shape[1])
        self._classes = [_order(probabilities[:, k], self._positive[:, k]) for k in range(targets.shape[1])]
        self._all = _order(probabilities.ravel(), self._positive.ravel())

    def score(self, times: Floats) -> dict[str, float] | None:
        positives = times @ self._positive
        there = positives > 0
        if not there.any():
            return None
        hits, guesses = times @ (self._positive & self._guessed), times @ self._guessed
        f1 = 2 * hits / np.maximum(positives + guesses, 1)
        precision = [_precision(times, *self._classes[k]) for k in np.flatnonzero(there)]
        return {
            "macro_map": float(np.mean(precision)),
            "micro_map": _precision(times[self._image], *self._all),
            "macro_f1": float(f1[there].mean()),
            "micro_f1": float(2 * hits.sum() / (positives.sum() + guesses.sum())),
        }


def _order(probability: Floats, positive: NDArray[np.bool_]) -> tuple[Ints, NDArray[np.bool_], Ints]:
    """From the highest probability down: places, which of them are positive, and the last place of equal ones."""
    order: Ints = np.argsort(-probability, kind="stable").astype(np.int64)
    falling = probability[order]
    ends: Ints = np.flatnonzero(np.append(falling[1:] != falling[:-1], True)).astype(np.int64)
    return order, positive[order], ends


def _precision(times: Floats, order: Ints, positive: NDArray[np.bool_], ends: Ints) -> float:
    """Sum of precision times step in recall, over the distinct probabilities."""
    weights = times[order]
    seen, hits = np.cumsum(weights)[ends], np.cumsum(weights * positive)[ends]
    return float((np.diff(hits, prepend=0) * hits / np.maximum(seen, 1)).sum() / hits[-1])
