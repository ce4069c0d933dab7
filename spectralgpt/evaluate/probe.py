# SPDX-License-Identifier: Apache-2.0
"""What a bare encoder's features are worth: a linear classifier or the nearest neighbours on frozen features.

Features are the tokens averaged over all positions, spectral groups one after another, each standardised by the
training images. The linear probe is a regularised logistic regression fitted to its minimum, not trained in steps, so
it has no learning rate to choose and no seed.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from spectralgpt.data.datasets.base import PatchDataset
from spectralgpt.data.normalize import Normalizer
from spectralgpt.data.scene_set import DataConfig
from spectralgpt.errors import UserError
from spectralgpt.evaluate.outcomes import Outcomes, label_batches
from spectralgpt.heads.features import pooled_features
from spectralgpt.models.encoder import Encoder
from spectralgpt.train.scores import Scores

_STEPS = 500
_BLOCK = 4096


def image_features(
    encoder: Encoder, dataset: PatchDataset, normalizer: Normalizer, config: DataConfig, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Features (N, S * D) float64 of a split, and its labels, (N,) or (N, classes) int64.

    Raises:
        UserError: an image that cannot be read (named), or a data set without labels of images.
    """
    if dataset.task not in ("single_label", "multi_label"):
        raise UserError(
            f"{dataset.root}: expected labels of images for a probe, got {dataset.task}; fine-tune a head on maps"
        )
    device = next(encoder.parameters()).device
    features, labels = [], []
    with tqdm(total=len(dataset), desc=f"features of {dataset.split}", unit="image", disable=None) as bar:
        for batch in label_batches(encoder.config, dataset, normalizer, config, batch_size):
            sample = batch.to(device).images()
            with torch.inference_mode():
                features.append(pooled_features(encoder, sample["image"], "concat").double().cpu())
            labels.append(sample["label"].cpu())
            bar.update(len(labels[-1]))
    return torch.cat(features), torch.cat(labels)


def probe(
    kind: str,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    classes: tuple[str, ...],
    names: tuple[str, ...],
    neighbours: int = 5,
) -> Outcomes:
    """Fits on one split, scores the other.

    Args:
        kind: "knn" or "linear".
        train: features (N, F) and labels, as `image_features` gives them.
        test: likewise, of the split to score.
        classes: names.
        names: of the test images.
        neighbours: for "knn".

    Raises:
        UserError: training labels of a single class.
    """
    (features, labels), (queries, targets) = train, test
    mean, std = features.mean(0), features.std(0, correction=0)
    std[std < 1e-12] = 1.0
    features, queries = (features - mean) / std, (queries - mean) / std
    shares = F.one_hot(labels, len(classes)) if labels.dim() == 1 else labels
    if int((shares.sum(0) > 0).sum()) < 2 and labels.dim() == 1:
        raise UserError("probe: expected training labels of at least two classes, got one")
    if kind == "knn":
        logits = _neighbours(features, shares.double(), queries, neighbours, labels.dim() == 1)
    else:
        weight, bias = logistic_regression(features, labels, len(classes))
        logits = queries @ weight.T + bias
    scores = Scores("single_label" if labels.dim() == 1 else "multi_label", len(classes), classes)
    scores.update(logits, targets)
    if labels.dim() == 1:
        errors = F.cross_entropy(logits, targets, reduction="none")
        cell = (targets * len(classes) + logits.argmax(1)).numpy()
    else:
        errors = F.binary_cross_entropy_with_logits(logits, targets.double(), reduction="none").mean(1)
        cell = np.empty(0, np.int64)
    image: NDArray[np.int64] = np.arange(len(cell), dtype=np.int64)
    return Outcomes(scores, names, errors.numpy(), image, cell, np.ones_like(image))


def logistic_regression(features: Tensor, labels: Tensor, classes: int, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """Weights (classes, F) and bias (classes,) that minimise cross-entropy plus |weights|^2 / 2.

    Args:
        features: (N, F) float64, standardised.
        labels: (N,) int64, or (N, classes) of 0 and 1, where each class is a regression of its own.
        classes: how many.
        strength: of the data's term, a sum over the images (scikit-learn's C).
    """
    weight = torch.zeros(classes, features.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=_STEPS, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        solver.zero_grad()
        logits = features @ weight.T + bias
        if labels.dim() == 1:
            data = F.cross_entropy(logits, labels, reduction="sum")
        else:
            data = F.binary_cross_entropy_with_logits(logits, labels.double(), reduction="sum")
        total: Tensor = (strength * data + weight.square().sum() / 2) / len(features)
        total.backward()
        return total

    solver.step(loss)
    return weight.detach(), bias.detach()


def _neighbours(features: Tensor, shares: Tensor, queries: Tensor, count: int, single: bool) -> Tensor:
    """Logits whose softmax (or sigmoid) is the share of each class among the nearest training images.

    Of equally frequent classes the one with the nearer neighbours is ahead by less than a vote.
    """
    count = min(count, len(features))
    found = []
    for block in queries.split(_BLOCK):
        distance, place = torch.cdist(block, features).topk(count, largest=False)
        votes = shares[place].mean(1)
        nearness = (shares[place] / (1 + distance)[:, :, None]).mean(1)
        found.append(votes + 1e-3 * nearness / count)
    share = torch.cat(found).clamp(1e-6, 1 - 1e-6)
    return share.log() if single else share.logit()
