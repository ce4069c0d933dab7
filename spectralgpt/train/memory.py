# SPDX-License-Identifier: Apache-2.0
"""How many bytes training takes, counted from the sizes of the model; docs/memory.md derives each line.

Every number here is a count of what the code keeps, not a fit: the tests hold it against the tensors that autograd
saves in a forward pass of the real model and against a tracker of all live memory in a whole step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

import spectralgpt
from spectralgpt.models.config import ModelConfig
from spectralgpt.nn.block import Recompute
from spectralgpt.ops.masking import num_visible

Precision = Literal["fp32", "bf16", "fp16"]
Sharding = Literal["ddp", "fsdp"]
OptimizerState = Literal["fp32", "bf16", "8bit"]

RECOMPUTE: tuple[Recompute, ...] = ("none", "light", "blocks")
"""What the backward pass computes again: nothing; GELU and LayerNorm outputs; everything inside a block."""

_MASTER = 4  # bytes of a weight, a gradient and a value of the residual stream
_MOMENTS = {"fp32": 8.0, "bf16": 4.0, "8bit": 2.06}  # both, with the 8-bit form's fp32 scale per 128 values


@dataclass(frozen=True)
class Training:
    """How a model is trained, as far as memory sees it.

    Attributes:
        precision: what matrices are multiplied in; weights, gradients and residual stream stay fp32.
        mask_ratio: share of hidden tokens.
        gpus: processes that share the work.
        sharding: `ddp` holds all states on every GPU, `fsdp` an equal part of weights and moments.
        optimizer_state: dtype of AdamW's two moments.
        ema: a running average of the weights is kept.
    """

    precision: Precision = "bf16"
    mask_ratio: float = 0.9
    gpus: int = 1
    sharding: Sharding = "ddp"
    optimizer_state: OptimizerState = "fp32"
    ema: bool = False

    @property
    def item(self) -> int:
        """Bytes of a value that matrices are multiplied in."""
        return 4 if self.precision == "fp32" else 2


@dataclass(frozen=True)
class States:
    """Bytes on one GPU that do not depend on the batch."""

    parameters: float
    gradients: float
    moments: float
    working_copy: float
    gathered: float
    ema: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.parameters + self.gradients + self.moments + self.working_copy + self.gathered + self.ema


@dataclass(frozen=True)
class Activations:
    """Bytes per sample.

    Attributes:
        encoder: saved for the backward pass by the encoder's blocks.
        decoder: by the decoder's.
        edges: by what lies before, between and after the blocks.
        workspace: image, outputs, and what the backward pass holds on top of the saved at its highest point.
    """

    encoder: int
    decoder: int
    edges: int
    workspace: int

    @property
    def saved(self) -> int:
        """What autograd keeps from forward to backward."""
        return self.encoder + self.decoder + self.edges

    @property
    def total(self) -> int:
        """What a sample adds to the peak."""
        return self.saved + self.workspace


def num_parameters(config: ModelConfig) -> tuple[int, int, int]:
    """Weights of the autoencoder: all, those multiplied in low precision, and those of its largest block."""
    with torch.device("meta"):
        model = spectralgpt.create_autoencoder(**config.to_dict())
    matrices = (module for module in model.modules() if isinstance(module, torch.nn.Linear))
    blocks = (*model.encoder.blocks, *model.decoder.blocks)
    return (
        sum(parameter.numel() for parameter in model.parameters()),
        sum(parameter.numel() for matrix in matrices for parameter in matrix.parameters()),
        max(sum(parameter.numel() for parameter in block.parameters()) for block in blocks),
    )


def states(config: ModelConfig, training: Training) -> States:
    """What weights and optimizer take on one GPU."""
    total, matrices, block = num_parameters(config)
    sharded = training.sharding == "fsdp" and training.gpus > 1
    shard = total / training.gpus if sharded else total
    low = training.precision != "fp32"
    return States(
        parameters=_MASTER * shard,
        # Under ddp these are the buckets themselves; under fsdp they stay whole until a step's last backward pass.
        gradients=_MASTER * total,
        moments=_MOMENTS[training.optimizer_state] * shard,
        working_copy=training.item * matrices if low else 0.0,
        gathered=2 * _MASTER * block if sharded else 0.0,  # the block at work and the next one
        ema=_MASTER * shard if training.ema else 0.0,
    )


def activations(config: ModelConfig, training: Training, recompute: Recompute = "none") -> Activations:
    """What one sample takes."""
    tokens, visible = config.num_tokens, num_visible(config.num_tokens, training.mask_ratio)
    dim, decoder_dim = config.embed_dim, config.decoder_embed_dim
    item = training.item
    encoder = _block(visible, dim, config.num_heads, config.mlp_ratio, item, recompute)
    decoder = _block(tokens, decoder_dim, config.decoder_num_heads, config.mlp_ratio, item, recompute)
    gradient = item * tokens * config.num_values  # of the loss, written in the forward pass
    edges = (
        item * visible * config.num_values  # visible cubes
        + 8 * visible  # their indices
        + _norm(visible, dim, item)
        + 8 * tokens  # indices of the decoder's rows
        + _norm(tokens, decoder_dim, item)
        + gradient
    )
    held = (
        4 * config.bands * config.height_width[0] * config.height_width[1]
        + 9 * tokens  # the mask: order and flags
        + item * tokens * config.num_values  # prediction
        + (_MASTER * visible * dim if item < _MASTER else 0)  # latent; in fp32 it is saved already
    )
    freed = _norm(tokens, decoder_dim, item) + gradient
    transient = _transient(tokens, decoder_dim, config, item, recompute)
    return Activations(
        encoder=config.depth * encoder,
        decoder=config.decoder_depth * decoder,
        edges=edges,
        workspace=held + max(0, transient - freed),
    )


def _norm(tokens: int, dim: int, item: int) -> int:
    """A LayerNorm's input, its two statistics per token, and its output as the next matrix product reads it."""
    return tokens * (_MASTER * dim + 8 + item * dim)


def _block(tokens: int, dim: int, heads: int, mlp_ratio: float, item: int, recompute: Recompute) -> int:
    """Bytes one block saves for one sample."""
    if recompute == "blocks":
        return _MASTER * tokens * dim
    hidden = int(dim * mlp_ratio)
    kept = 2 * _MASTER * dim  # inputs of both norms
    kept += item * 3 * dim + item * dim + 4 * heads  # q, k, v; attention's output; logsumexp
    kept += item * hidden  # before GELU
    if recompute == "none":
        kept += 2 * (8 + item * dim) + item * hidden  # statistics and outputs of both norms; after GELU
    return tokens * kept


def _transient(tokens: int, dim: int, config: ModelConfig, item: int, recompute: Recompute) -> int:
    """What the backward pass of the last block holds for one sample while it leaves its MLP.

    The gradient of the residual stream, its low-precision copy, the gradient of GELU's output, and what was computed
    again: GELU's output, or a whole block.
    """
    hidden = int(dim * config.mlp_ratio)
    gradients = tokens * (_MASTER * dim + (item * dim if item < _MASTER else 0) + item * hidden)
    if recompute == "light":
        return gradients + tokens * item * hidden
    if recompute == "blocks":
        again = _block(tokens, dim, config.decoder_num_heads, config.mlp_ratio, item, "none")
        return gradients + again - _MASTER * tokens * dim
    return gradients
