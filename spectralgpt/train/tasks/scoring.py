# SPDX-License-Identifier: Apache-2.0
"""A validation of a task with labels: scores over the whole held-out split, and a sheet of examples.

Images larger than the stage's are seen at their middle or scaled down, as training does; whole scenes are the matter of
`spectralgpt evaluate`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spectralgpt.data.batch import Batch as RawBatch
from spectralgpt.data.loader import EpochSampler, loader
from spectralgpt.data.source import ImageViews, images
from spectralgpt.heads import HeadConfig
from spectralgpt.models.base import SpectralModel
from spectralgpt.train.scores import Scores
from spectralgpt.train.tasks.base import Batch, Result, Validation
from spectralgpt.train.tasks.supervised import dates_of, label_loss, pixel_loss, pixel_targets
from spectralgpt.viz.gallery import Picture, colour_bands, contact_sheet

if TYPE_CHECKING:
    from spectralgpt.train.run import Run

_EXAMPLES = 12
_SHOWN = 4  # numbers of the printed table


class Scoring(Validation):
    """The held-out images of one stage."""

    def __init__(self, source: ImageViews, run: Run, head: HeadConfig, weights: Sequence[float] | None) -> None:
        """Pictures are of images spread evenly over the split."""
        self._source, self._run, self._head = source, run, head
        self._weights = None if weights is None else torch.tensor(weights, device=run.device)
        count = min(_EXAMPLES if not head.dense else _EXAMPLES // 3, len(source))
        self._pictured = torch.linspace(0, len(source) - 1, count).round().long().tolist()

    @torch.no_grad()
    def measure(self, model: SpectralModel) -> Result:
        """Scores, the one to choose by first, and the loss without smoothing."""
        scores = Scores(self._head.task, self._head.num_classes, self._head.classes, self._head.ignore_index)
        loss, count = torch.zeros(2, dtype=torch.float64, device=self._run.device)
        was_training = model.training
        model.eval()
        for batch in self._batches():
            output, target = self._forward(model, batch)
            scores.update(output, target)
            losses, number = self._loss(output, target)
            loss += losses
            count += number
        model.train(was_training)
        return _result(scores, (loss / count).item())

    @torch.no_grad()
    def draw(self, model: SpectralModel, path: Path, title: str) -> None:
        """Writes the sheet: each image with its label and the model's, or with both masks."""
        batch = self._source.__getitems__([(0, index) for index in self._pictured])
        was_training = model.training
        model.eval()
        output, target = self._forward(model, images(batch, self._run.device, labelled=True))
        model.train(was_training)
        shown = images(batch, torch.device("cpu"), labelled=True)["image"]
        contact_sheet(
            path, self._pictures(shown, output.cpu(), target.cpu()), self._head.classes, self._head.colours, title=title
        )

    def _batches(self) -> Iterator[Batch]:
        """All images in order, the last incomplete batch included; the loader has a generator of its own."""
        run, source = self._run, self._source
        data = run.stage.data or run.config.data
        raw: Iterator[RawBatch] = loader(
            source,
            EpochSampler(len(source), 0, shuffle=False),
            run.micro_batch,
            num_workers=data.num_workers,
            stop=len(source),
        )
        for batch in raw:
            yield images(batch, run.device, labelled=True)

    def _forward(self, model: SpectralModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """Output and target."""
        with self._run.autocast():
            output = model(*dates_of(batch["image"]))
        return output.float(), pixel_targets(batch, self._run) if self._head.dense else batch["label"]

    def _loss(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor | int]:
        """Sum, and over how many."""
        if self._head.dense:
            return pixel_loss(output, target, self._head, self._weights), (target != self._head.ignore_index).sum()
        shares = (F.one_hot(target, self._head.num_classes) if target.dim() == 1 else target).float()
        return label_loss(output, shares, self._head.task, self._weights).sum(), len(target)

    def _pictures(self, shown: Tensor, output: Tensor, target: Tensor) -> list[Picture]:
        bands = colour_bands(self._source.wavelengths)
        names = [self._source.band_names[band] for band in bands]
        colours, found = shown[..., bands, :, :].numpy(), []
        for place, image in enumerate(colours):
            if self._head.dense:
                for caption, mask in (("labels", target[place]), ("model", output[place].argmax(0))):
                    found.append(Picture(image, names, caption, mask=mask.numpy()))
            else:
                found.append(Picture(image, names, self._caption(output[place], target[place])))
        return found

    def _caption(self, output: Tensor, target: Tensor) -> str:
        classes = self._head.classes
        if self._head.task == "single_label":
            truth, guess = classes[int(target)], classes[int(output.argmax())]
            return truth if truth == guess else f"{truth}, taken for {guess}"
        truth, guess = (
            ", ".join(classes[index] for index in flags.nonzero()[:, 0].tolist()) or "none"
            for flags in (target, output > 0)
        )
        return truth if truth == guess else f"{truth}; model: {guess}"


def _result(scores: Scores, loss: float) -> Result:
    found = scores.compute()
    details = {key: value for key, value in found.items() if not isinstance(value, float | None)}
    numbers: dict[str, Any] = {"validation_loss": loss, scores.primary: found[scores.primary]}
    numbers |= {key: math.nan if value is None else value for key, value in found.items() if key not in details}
    shown = list(numbers)[: _SHOWN + 1]
    header = (
        f"scores of the whole validation split; the best {scores.primary} is exported",
        "".join(f"{'loss' if key == 'validation_loss' else key:>20}" for key in shown),
    )
    return Result(numbers, details, numbers[scores.primary], header, "".join(f"{numbers[key]:20.4f}" for key in shown))
