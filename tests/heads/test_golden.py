# SPDX-License-Identifier: Apache-2.0
"""Published fine-tuned weights in, published numbers out (fp32; tolerances of the project's numerics rule)."""

from __future__ import annotations

import json

import pytest
import torch

import spectralgpt
from tests.golden import assert_published, drawn_input, drawn_weight, layout_of, read

PARAMETERS = {"segmentation": 109_244_946, "change": 109_219_591}


@pytest.mark.parametrize("form", ["flat", "separable"])
def test_classifier(form):
    reference = read(f"classify_{form}_pos")
    config = json.loads(reference.metadata["config"])
    model = spectralgpt.create_classifier(
        "tiny",
        config["num_classes"],
        image_size=config["img_size"],
        position_embedding=form,
        pool_skip_first=config["drop_first_token"],
        **{key: config[key] for key in ("embed_dim", "depth", "num_heads")},
    )
    report = spectralgpt.load_reference_checkpoint(model, reference.weights)
    assert set(report.loaded) == set(reference.weights)
    assert_published(model.eval()(reference.input["image"]), reference.output["logits"])
    exported = spectralgpt.reference_state_dict(model)
    assert exported.keys() == reference.weights.keys()
    assert all(torch.equal(exported[key], tensor) for key, tensor in reference.weights.items())


def make(task, head):
    if task == "change":
        return spectralgpt.create_change_detector("base", image_size=128, head=head)
    return spectralgpt.create_segmenter("base", 13, image_size=128, head=head)


@pytest.mark.parametrize("head", ["published", "pyramid"])  # a fresh head gives way to the checkpoint's
@pytest.mark.parametrize("task", PARAMETERS)
def test_layouts_load_whole_and_come_back(task, head):
    published = layout_of(read(f"full_{task}_base_128"))
    with torch.device("meta"):
        model = make(task, head)
        state = {key: torch.empty(shape) for key, shape in published.items()}
        report = spectralgpt.load_reference_checkpoint(model, state)
    assert set(report.loaded) == set(published)
    assert model.head_config.head == "published"
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[task]
    exported = spectralgpt.reference_state_dict(model)
    assert {key: tuple(tensor.shape) for key, tensor in exported.items()} == published


@pytest.mark.acceptance
@pytest.mark.parametrize("task", PARAMETERS)
def test_maps(task):
    reference = read(f"full_{task}_base_128")
    with torch.device("meta"):
        model = make(task, "published")
    model.to_empty(device="cpu").eval()
    weights = {key: drawn_weight(key, shape) for key, shape in layout_of(reference).items()}
    assert len(spectralgpt.load_reference_checkpoint(model, weights).loaded) == len(weights)
    inputs = [drawn_input(rule) for key, rule in sorted(reference.metadata.items()) if key.startswith("image")]
    with torch.no_grad():
        out = model(*inputs)
    (expected,) = reference.output.values()
    assert list(out.shape) == json.loads(reference.metadata["full_shape"])
    assert_published(out[..., ::4, ::4], expected)


@pytest.fixture(scope="module", autouse=True)
def _forget_weights():
    """The two models share all but the last layer."""
    yield
    drawn_weight.cache_clear()
