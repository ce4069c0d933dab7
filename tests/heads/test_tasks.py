# SPDX-License-Identifier: Apache-2.0
"""What holds for every kind of task model: shapes, probabilities, saving, any size, export."""

from __future__ import annotations

import json

import pytest
import torch

import spectralgpt
from spectralgpt.errors import UserError
from spectralgpt.heads import ChangeDetector, Classifier, HeadConfig, Segmenter
from tests.heads.small import change_detector, classifier, segmenter

LABELS = [("linear", {}), ("mlp", {"width": 40}), ("published", {}), ("linear", {"spectral_pool": "concat"})]
LABELS += [("mlp", {"spectral_pool": "learned"}), ("linear", {"task": "multi_label"})]
MAPS = [("pyramid", {}), ("linear", {}), ("published", {"width": 32})]
MAPS += [("pyramid", {"spectral_pool": "concat"}), ("linear", {"spectral_pool": "learned"})]


EVERY = (
    [(classifier, {"head": head, **config}) for head, config in LABELS]
    + [(segmenter, {"head": head, **config}) for head, config in MAPS]
    + [(change_detector, {"head": head, **config}) for head, config in MAPS]
    + [(change_detector, {"head": head, "compare": "concat"}) for head in ("pyramid", "linear")]
)


@pytest.fixture(params=EVERY, ids=lambda case: f"{case[0].__name__}-{'-'.join(map(str, case[1].values()))}")
def model(request):
    make, config = request.param
    return make(**config).eval()


def images(model, *shape):
    return tuple(torch.rand(*shape) for _ in range(2 if isinstance(model, ChangeDetector) else 1))


def test_shapes_probabilities_and_gradients(model):
    size = (32, 32) if isinstance(model, Classifier) else (37, 50)
    inputs = images(model, 2, 12, *size)
    out = model(*inputs)
    expected = {Classifier: (2, 5), Segmenter: (2, 5, *size), ChangeDetector: (2, 2, *size)}[type(model)]
    assert out.shape == expected
    probabilities = model.probabilities(*inputs)
    assert probabilities.shape == expected and probabilities.dtype == torch.float32 and not probabilities.requires_grad
    assert 0 <= probabilities.min() and probabilities.max() <= 1
    if model.task != "multi_label":
        torch.testing.assert_close(probabilities.sum(1), torch.ones_like(probabilities[:, 0]))
    if model.task == "change":
        torch.testing.assert_close(out.exp(), probabilities)
    out.square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without  # DistributedDataParallel would wait for them


def test_saves_and_comes_back(model, tmp_path):
    model.normalization = {"method": "minmax"}
    model.save_pretrained(tmp_path)
    loaded = spectralgpt.from_pretrained(tmp_path).eval()
    assert type(loaded) is type(model)
    assert (loaded.config, loaded.head_config) == (model.config, model.head_config)
    assert loaded.encoder.config is loaded.config
    assert loaded.normalization == model.normalization
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in loaded.state_dict().items())
    inputs = images(model, 1, 12, 32, 32)
    torch.testing.assert_close(loaded(*inputs), model(*inputs))  # a file's tensors lie elsewhere: other rounding
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert [name for name, parameter in loaded.named_parameters() if not parameter.requires_grad] == frozen


def test_head_config_survives_json():
    config = HeadConfig("segmentation", 2, classes=["a", "b"], colours=["#000000", "#FFffff"], ignore_index=-1)
    assert HeadConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.classes == ("a", "b")
    assert HeadConfig("change", 2).classes == ("unchanged", "changed")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"task": "regression"}, "task: expected one of single_label, multi_label, segmentation, change"),
        ({"num_classes": 1}, "num_classes: expected a whole number from 2 to"),
        ({"task": "multi_label", "num_classes": 0}, "num_classes: expected a whole number from 1 to"),
        ({"task": "change"}, "num_classes: expected 2 for change, got 3"),
        ({"head": "pyramid"}, "head: expected one of linear, mlp, published, got 'pyramid'"),
        ({"classes": ("a", "b")}, "classes: expected one for each of 3 classes, got 2"),
        ({"classes": ("a", "b", "a")}, "classes: expected different names"),
        ({"colours": ("red", "#000000", "#111111")}, "colours: expected #rrggbb, got 'red'"),
        ({"ignore_index": 2}, "ignore_index: expected a number that is no class of 3, got 2"),
        ({"dropout": 1.5}, r"dropout: expected a rate in \[0, 1\), got 1.5"),
        ({"spectral_pool": "max"}, "spectral_pool: expected one of mean, concat, learned, got 'max'"),
        ({"pool_skip_first": True, "spectral_pool": "concat"}, "pool_skip_first: expected a classifier with"),
        ({"task": "segmentation", "pool_skip_first": True}, "pool_skip_first: expected a classifier"),
        ({"task": "segmentation", "standardize": True}, "standardize: expected a classifier"),
        ({"num_clases": 3}, "head: expected one of .*, got 'num_clases'; did you mean num_classes"),
    ],
)
def test_wrong_head_configs(config, message):
    with pytest.raises(UserError, match=message):
        HeadConfig.from_dict({"task": "single_label", "num_classes": 3, **config})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda record: record.pop("head"), "head: expected the record of a classifier's head, got none"),
        (lambda record: record.update(head=[]), "expected a model's configuration, got TypeError: a head that is list"),
        (lambda record: record["head"].pop("task"), "head: expected task, got none"),
        (
            lambda record: record["head"].update(task="segmentation", head=""),
            "task: expected one of single_label, multi",
        ),
        (lambda record: record["head"].update(task=[]), "head: expected the fields of a head, got"),
        (lambda record: record["head"].update(classes=7), "head: expected the fields of a head, got"),
        (lambda record: record["head"].update(num_classes=10**9), "num_classes: expected a whole number"),
        (lambda record: record["head"].update(dropout="much"), "head: expected the fields of a head, got"),
        (lambda record: record["head"].update(evil=1), "head: expected one of task, .* got 'evil'"),
    ],
)
def test_damaged_records_are_named(damage, message, tmp_path):
    classifier().save_pretrained(tmp_path)
    record = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    damage(record)
    (tmp_path / "config.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(UserError, match=rf"config\.json: {message}"):
        spectralgpt.from_pretrained(tmp_path)


def test_compiles_whole():
    model = change_detector()  # has every step that the others have
    inputs = images(model, 2, 12, 24, 24)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), model(*inputs))


def test_unknown_fields_are_named_with_the_nearest():
    with pytest.raises(UserError, match="got 'spectral_pol'; did you mean spectral_pool"):
        spectralgpt.create_segmenter("tiny", 3, spectral_pol="mean")


def test_two_dates_of_different_shapes():
    with pytest.raises(UserError, match=r"after: expected the shape \(1, 12, 32, 32\) of the image before, got"):
        change_detector()(torch.rand(1, 12, 32, 32), torch.rand(1, 12, 32, 40))


def test_standardised_features_learn_what_hardly_differs(tmp_path):
    """Features a thousandth apart on a large common part, as short pretraining leaves them: seen once standardised."""
    torch.manual_seed(0)
    label = torch.arange(64) % 2
    features = 5 + torch.randn(1, 48) + 1e-3 * (torch.randn(64, 48) + 3 * label[:, None])
    learnt = {}
    for standardize in (False, True):
        model = classifier(standardize=standardize)
        optimizer = torch.optim.AdamW([*model.head.parameters()], 3e-2, weight_decay=0.0)
        for _ in range(40):
            loss = torch.nn.functional.cross_entropy(model.head(model.standardize(features)), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        learnt[standardize] = loss.item()
    assert learnt[True] < 0.1 < 0.5 < learnt[False]
    one = model.standardize(features[:1])  # a last piece of one image
    model.eval().save_pretrained(tmp_path)
    assert torch.equal(one, model.standardize(features[:1]))
    loaded = spectralgpt.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded.standardize(features), model.standardize(features)), "statistics travel with the weights"
