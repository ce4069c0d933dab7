# SPDX-License-Identifier: Apache-2.0
"""Low-rank adaptation of the encoder through peft: W stays, and W + alpha/rank * B A is trained through A and B alone.

(Hu et al. 2021, arXiv 2106.09685, section 4.1.) What is saved is always plain: `save_pretrained` adds the product to
the weights it writes, so a saved model needs neither peft nor this file.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn

from spectralgpt.errors import UserError
from spectralgpt.models.config import count

if TYPE_CHECKING:
    from spectralgpt.heads.base import TaskModel

_ADAPTER = "default"
_LAYERS = {"qkv": "attn", "proj": "attn", "fc1": "mlp", "fc2": "mlp"}
_FACTOR = re.compile(r"\.lora_[AB]\.")
AnyTaskModel = TypeVar("AnyTaskModel", bound="TaskModel")


def add_lora(
    model: AnyTaskModel,
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    targets: Collection[str] = ("qkv", "proj"),
) -> AnyTaskModel:
    """Freezes the encoder and adds trainable low-rank factors to linear layers of all its blocks; the head trains on.

    Outputs are unchanged at first, as B starts at zero. Build the optimizer after this call, from the parameters that
    require gradients.

    Args:
        model: changed in place.
        rank: inner size of the factors.
        alpha: the product is scaled by alpha / rank.
        dropout: of the input of A.
        targets: of "qkv" and "proj" (attention), "fc1" and "fc2" (MLP).

    Returns:
        The model.

    Raises:
        UserError: peft is not installed, the model has factors already, or a value does not fit.
    """
    count("rank", rank, most=4096)
    if not targets or not set(targets) <= set(_LAYERS):
        raise UserError(f"targets: expected some of {', '.join(_LAYERS)}, got {', '.join(targets) or 'none'}")
    if not 0.0 <= dropout < 1.0:
        raise UserError(f"dropout: expected a rate in [0, 1), got {dropout}")
    if any(True for _ in _adapted(model)):
        raise UserError("add_lora: expected a model without low-rank factors, got one; merge_lora(model) first")
    peft = _import_peft()
    places = "|".join(f"{_LAYERS[name]}\\.{name}" for name in sorted(targets))
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=rf"blocks\.\d+\.({places})", bias="none"
    )
    peft.inject_adapter_in_model(config, model.encoder, _ADAPTER)
    return model


def merge_lora(model: AnyTaskModel) -> AnyTaskModel:
    """Adds the products to the weights and removes the factors, in place; the encoder stays frozen.

    Args:
        model: with or without factors.

    Returns:
        The model, with the modules and names of a fresh one.
    """
    for name, layer in list(_adapted(model)):
        layer.merge()
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer.get_base_layer())
    vars(model.encoder).pop("peft_config", None)
    return model


def merged_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A state dict of a model with factors as that of the plain model; any other as it is."""
    layers = dict(_adapted(model))
    if not layers:
        return tensors
    merged = {key.replace(".base_layer.", "."): tensor for key, tensor in tensors.items() if not _FACTOR.search(key)}
    for name, layer in layers.items():
        first, second = (tensors[f"{name}.lora_{factor}.{_ADAPTER}.weight"] for factor in "AB")
        weight = merged[f"{name}.weight"]
        update = layer.scaling[_ADAPTER] * (second.float() @ first.float())
        merged[f"{name}.weight"] = (weight.float() + update).to(weight.dtype)
    return merged


def _adapted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((name, module) for name, module in model.named_modules() if hasattr(module, "lora_A"))


def _import_peft() -> Any:  # noqa: ANN401 - a module
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise UserError(f"peft: expected it for LoRA, got: {error}; pip install 'spectralgpt[lora]'") from error
