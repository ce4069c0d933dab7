# SPDX-License-Identifier: Apache-2.0
"""Models to and from the hub through huggingface_hub itself: a server on this machine, its cache, and no network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import constants

import spectralgpt
from spectralgpt.data.bands import SENTINEL2, SENTINEL2_12
from spectralgpt.errors import UserError
from spectralgpt.integrations.hub import push_to_hub
from spectralgpt.models.base import SpectralModel
from tests.integrations.hub_server import Hub, serving, sha

SMALL = {"image_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 2, "bands": SENTINEL2.select(SENTINEL2_12)}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with an empty cache of its own."""
    with serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # as a machine without a network may have it
        monkeypatch.setenv("HF_TOKEN", "nothing")
        yield server


def model(seed: int = 0) -> SpectralModel:
    """A segmenter with weights of its own."""
    torch.manual_seed(seed)
    made = spectralgpt.create_segmenter("tiny", 2, classes=("land", "sea | *water*"), head="linear", **SMALL)
    made.normalization = {"method": "percentile", "band_names": list(SENTINEL2_12)}
    return made


def same(one: SpectralModel, two: SpectralModel) -> bool:
    """Equal weights."""
    other = two.state_dict()
    return all(torch.equal(value, other[name]) for name, value in one.state_dict().items())


def test_to_the_hub_and_back_with_revisions(hub: Hub, tmp_path: Path) -> None:
    address = push_to_hub(model(0), "org/land-sea")
    push_to_hub(model(1), "org/land-sea", revision="next")
    assert "/org/land-sea/commit/" in address
    assert set(hub.repositories["org/land-sea"]["main"]) == {"README.md", "config.json", "model.safetensors"}
    loaded = spectralgpt.from_pretrained("org/land-sea")
    assert same(loaded, model(0)) and loaded.normalization == model().normalization
    assert loaded.head_config.classes == ("land", "sea | *water*")
    assert same(spectralgpt.from_pretrained("org/land-sea", revision="next"), model(1))
    commit = sha(hub.repositories["org/land-sea"]["main"])
    before = len(hub.requests)
    assert same(spectralgpt.from_pretrained("org/land-sea", revision=commit, image_size=64), loaded) is False
    assert not any("/resolve/" in request for request in hub.requests[before:])  # all of it lay in the cache


def test_the_cache_serves_without_a_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    push_to_hub(model(), "org/land-sea")
    spectralgpt.from_pretrained("org/land-sea")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    count = len(hub.requests)
    assert same(spectralgpt.from_pretrained("org/land-sea"), model())
    with pytest.raises(
        UserError, match=r"org/other: expected a folder of a saved model, or a model on the Hugging"
    ) as e:
        spectralgpt.from_pretrained("org/other")
    assert "\n" not in str(e.value) and len(hub.requests) == count


def test_nothing_else_of_a_repository_is_fetched(hub: Hub, tmp_path: Path) -> None:
    push_to_hub(model(), "org/land-sea")
    hub.repositories["org/land-sea"]["main"] |= {"modeling.py": b"raise SystemExit", "weights.pth": b"x"}
    spectralgpt.from_pretrained("org/land-sea")
    cached = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_symlink() or path.is_file()}
    assert "config.json" in cached and not cached & {"modeling.py", "weights.pth"}


def test_mistakes(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push_to_hub(model(), "org/land-sea")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    count = len(hub.requests)
    for source in ("runs/quikstart", "nowhere", "a/b/c", Path("org/land-sea"), "../org/x"):
        with pytest.raises(UserError, match=r"expected a folder that save_pretrained wrote, got no such file"):
            spectralgpt.from_pretrained(source)
    assert len(hub.requests) == count  # what looks local never becomes a request
    with pytest.raises(UserError, match=r"org/nothing: .*found neither \(RepositoryNotFoundError"):
        spectralgpt.from_pretrained("org/nothing")
    with pytest.raises(UserError, match=r"org/land-sea at v9: .*found neither \(RevisionNotFoundError"):
        spectralgpt.from_pretrained("org/land-sea", revision="v9")
    with pytest.raises(UserError, match="revision: expected with ORG/NAME"):
        spectralgpt.from_pretrained(tmp_path, revision="main")
    with pytest.raises(UserError, match="expected a folder that save_pretrained wrote"):
        push_to_hub(tmp_path / "runs", "org/land-sea")
    hub.repositories["org/land-sea"]["main"]["config.json"] = b"{}"
    with pytest.raises(UserError, match=r"config\.json: expected a model's configuration"):
        spectralgpt.from_pretrained("org/land-sea")


def test_the_card_tells_bands_classes_and_credit_and_stays_as_edited(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    told = yaml.safe_load(front)
    assert told["library_name"] == "spectralgpt" and told["pipeline_tag"] == "image-segmentation"
    assert told["license"] == "other"
    assert "| 8 | B8A | 0.8647 | 3 |" in body and body.count("\n| ") == 13
    assert "its 1st and 99th percentile" in body and "TPAMI 2024" in body
    assert "land, sea &#124; &#42;water&#42;" in body  # no name becomes markup
    code = body.split("```python\n")[1].split("```")[0].replace("FOLDER_OR_ORG/NAME", str(tmp_path))
    exec(code, {})
    (tmp_path / "README.md").write_text("mine")
    model().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    (tmp_path / "README.md").unlink()
    assert same(spectralgpt.from_pretrained(tmp_path), model())


@pytest.mark.parametrize("kind", ["create_model", "create_autoencoder", "create_classifier", "create_change_detector"])
def test_the_card_of_every_kind_runs(tmp_path: Path, kind: str) -> None:
    classes = {"num_classes": 3} if kind == "create_classifier" else {}
    options = {**SMALL, "bands": 10} if kind == "create_model" else SMALL
    getattr(spectralgpt, kind)("tiny", **classes, **options).save_pretrained(tmp_path)
    body = (tmp_path / "README.md").read_text()
    exec(body.split("```python\n")[1].split("```")[0].replace("FOLDER_OR_ORG/NAME", str(tmp_path)), {})
    assert ("not recorded" in body) and body.count("\n| ") == (11 if kind == "create_model" else 13)
    shutil.rmtree(tmp_path)
