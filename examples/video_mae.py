# SPDX-License-Identifier: Apache-2.0
"""A masked autoencoder for video in one file, on `spectralgpt.ops` and torch alone.

    python examples/video_mae.py

Clips of two moving shapes are made on the fly. Time and colour share the band axis, (B, frames x 3, H, W), so a patch
of (2 x 3, 8, 8) is two frames of 8 x 8 pixels; three quarters of them are hidden and painted again. Under a minute on
two cores; where matplotlib is at hand, `video_mae.png` shows a clip, what the model saw and what it made of it.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spectralgpt import ops

FRAMES, COLOURS, SIDE = 8, 3, 32
PATCH = (2 * COLOURS, 8, 8)
GRID = (FRAMES // 2, SIDE // 8, SIDE // 8)
LENGTH, VALUES = GRID[0] * GRID[1] * GRID[2], PATCH[0] * PATCH[1] * PATCH[2]
MASK_RATIO = 0.75


class VideoAutoencoder(nn.Module):
    """Encoder over the visible tokens, light decoder over all of them."""

    def __init__(self, width: int = 96, depth: int = 2, decoder_depth: int = 1) -> None:
        """`width` channels, divisible by 6; pre-norm blocks with 4 heads."""
        super().__init__()
        self.embed = nn.Linear(VALUES, width)
        self.positions = nn.Parameter(waves(width))
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.decoder_positions = nn.Parameter(waves(width))
        self.encoder = nn.Sequential(*(block(width) for _ in range(depth)), nn.LayerNorm(width))
        self.decoder = nn.Sequential(*(block(width) for _ in range(decoder_depth)), nn.LayerNorm(width))
        self.head = nn.Linear(width, VALUES)

    def forward(self, clips: Tensor, mask: ops.CubeMask) -> Tensor:
        """(B, frames x 3, H, W) -> predicted tokens (B, L, P)."""
        visible = self.embed(ops.gather_patchify3d(clips, mask.ids_keep, PATCH)) + self.positions[mask.ids_keep]
        latent = self.encoder(visible)
        whole = ops.assemble_tokens(latent, self.mask_token, self.decoder_positions, mask.ids_restore)
        prediction: Tensor = self.head(self.decoder(whole))
        return prediction


def block(width: int) -> nn.Module:
    """One transformer block."""
    return nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)


def waves(width: int) -> Tensor:
    """(L, width): sines and cosines of time, row and column, so that positions begin as geometry."""
    axes = torch.meshgrid(*(torch.arange(float(size)) for size in GRID), indexing="ij")
    frequencies = torch.exp(torch.linspace(0, -3, width // 6))
    angles = [axis.flatten()[:, None] * frequencies for axis in axes]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


def moving_shapes(count: int, generator: torch.Generator) -> Tensor:
    """Clips (count, frames x 3, H, W) in [0, 1]: a disc and a square, each of one colour, in straight motion."""
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    time = torch.arange(FRAMES)[None, :, None]
    clips = torch.full((count, FRAMES, COLOURS, SIDE, SIDE), 0.1)
    for shape in ("disc", "square"):
        start, speed = (
            torch.rand(count, 1, 2, generator=generator) * SIDE,
            torch.randn(count, 1, 2, generator=generator),
        )
        centre = (start + 0.8 * speed * time)[..., None, None]
        down, across = (rows - centre[:, :, 0]).abs(), (columns - centre[:, :, 1]).abs()
        inside = down**2 + across**2 < 100 if shape == "disc" else (down < 8) & (across < 8)
        colour = torch.rand(count, 1, COLOURS, 1, 1, generator=generator) * 0.8 + 0.2
        clips = torch.where(inside[:, :, None], colour, clips)
    return clips.flatten(1, 2)


def train(steps: int, batch: int = 16, seed: int = 0, report: int = 100) -> tuple[VideoAutoencoder, list[float]]:
    """The model and its loss at each step; the same for the same seed."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = VideoAutoencoder()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps + 1)
    losses = []
    for step in range(steps):
        clips = moving_shapes(batch, generator)
        mask = ops.random_cube_mask(torch.arange(batch), LENGTH, MASK_RATIO, seed=seed, step=step)
        loss = ops.reconstruction_loss(model(clips, mask), clips, mask.mask, PATCH, spectral_weight=0.0)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.token.item())
        if report and step % report == 0:
            print(f"step {step:4}  loss {losses[-1]:.4f}")
    return model, losses


def draw(model: VideoAutoencoder, path: str) -> None:
    """A clip, what the model saw of it, and what it painted, frame beside frame."""
    import matplotlib.pyplot as plt

    clips = moving_shapes(1, torch.Generator().manual_seed(1234))
    mask = ops.random_cube_mask(torch.tensor([1234]), LENGTH, MASK_RATIO, seed=1)
    with torch.no_grad():
        predicted, tokens = model(clips, mask), ops.patchify3d(clips, PATCH)
    hidden = mask.mask[..., None]
    pictures = [tokens, tokens.masked_fill(hidden, 0.5), torch.where(hidden, predicted, tokens)]
    figure, axes = plt.subplots(3, FRAMES, figsize=(FRAMES, 3.2))
    for row, picture, name in zip(axes, pictures, ("clip", "seen", "painted"), strict=True):
        frames = ops.unpatchify3d(picture, clips.shape[1:], PATCH)[0].unflatten(0, (FRAMES, COLOURS))
        for axis, frame in zip(row, frames, strict=True):
            axis.imshow(frame.permute(1, 2, 0).clamp(0, 1).numpy())
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(name)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)
    print(f"wrote {path}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains and says how far the loss fell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--picture", default="video_mae.png")
    args = parser.parse_args(arguments)
    model, losses = train(args.steps)
    tenth = max(1, len(losses) // 10)
    first, last = (sum(part) / tenth for part in (losses[tenth : 2 * tenth], losses[-tenth:]))
    print(f"loss {first:.4f} in the second tenth of the steps, {last:.4f} in the last")
    if importlib.util.find_spec("matplotlib"):
        draw(model, args.picture)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
