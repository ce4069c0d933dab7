# SPDX-License-Identifier: Apache-2.0
"""Recipes and options: what is typed is what runs, and what is mistyped is named with the nearest key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from spectralgpt.errors import UserError
from spectralgpt.train import recipe
from spectralgpt.train.config import RunConfig, StageConfig

TREE = {"name": "x", "stages": [{"image_size": 64, "lr": "1e-3"}, {"name": "two", "image_size": 96}]}


def build(**options: str) -> RunConfig:
    tree = yaml.safe_load(yaml.safe_dump(TREE))
    recipe.override(tree, options)
    return recipe.build(tree)


def test_a_recipe_is_laid_over_the_defaults() -> None:
    config = build()
    assert config.stages == [StageConfig(image_size=64, lr=1e-3), StageConfig(name="two", image_size=96)]
    assert config.optim.betas == (0.9, 0.95)


def test_dotted_options_reach_sections_and_places_in_lists() -> None:
    config = build(
        **{
            "optim.weight_decay": "0.1",
            "stages.1.lr": "3e-4",
            "stages.0.steps": "7",
            "data.bands": "[B04, B03, B02]",
            "model.token_weight": "2",
            "name": "2024",
            "threads": "1",
            "seed": "3",
        }
    )
    assert (config.optim.weight_decay, config.stages[1].lr, config.stages[0].steps) == (0.1, 3e-4, 7)
    assert config.data.bands == ("B04", "B03", "B02")
    assert (config.model.token_weight, config.name, config.threads, config.seed) == (2.0, "2024", 1, 3)


def test_a_whole_list_can_be_given() -> None:
    assert build(stages="[{image_size: 32, steps: 3}]").stages == [StageConfig(image_size=32, steps=3)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optim.weight_decai": "1"}, "optim.weight_decai: unknown key; did you mean optim.weight_decay?"),
        ({"stages.0.learning_rate": "1"}, "stages.0.learning_rate: unknown key"),
        ({"nam": "x"}, "nam: unknown key; did you mean name?"),
        ({"data.rot": "x"}, "did you mean data.root?"),
        ({"model.class_path": "os.system"}, "model.class_path: unknown key"),
        ({"lr": "1"}, "lr: unknown key; did you mean stages.0.lr?"),
        ({"stages.0.bands": "[B02]"}, "stages.0.bands: unknown key; did you mean data.bands?"),
        ({"threads": "0"}, "threads: expected at least 1, got 0"),
        ({"data.num_workers": "-1"}, "data.num_workers: expected at least 0, got -1"),
        ({"data.bands": "B04,B03"}, "data.bands: expected [str, ...], got 'B04,B03'"),
        ({"model.patch_size": "[3, 0, 8]"}, "model.patch_size: expected three numbers of at least 1, got [3, 0, 8]"),
        ({"stages.2.lr": "1"}, "--stages.2.lr: expected a place from 0 to 1 in the list, got '2'"),
        ({"stages.lr": "1"}, "--stages.lr: expected a place from 0 to 1"),
        ({"name.first": "x"}, "--name.first: name holds no keys"),
        ({"stages.1.lr": "fast"}, "stages.1.lr: expected float, got 'fast'"),
        ({"stages.1.data": "{num_workers: x}"}, "stages.1.data.num_workers: expected int, got 'x'"),
        ({"threads": "many"}, "threads: expected int | None, got 'many'"),
        ({"precision": "fp8"}, "precision: expected auto | fp32 | bf16 | fp16, got 'fp8'"),
        ({"data": "3"}, "data: expected keys and values, got '3'"),
        ({"stages": "{}"}, "stages: expected a list"),
        ({"stages": "[]"}, "stages: expected at least one stage"),
        (
            {"stages.0.image_size": "65"},
            "stages.0.image_size: expected a multiple of the patch's 8 pixels, got 65; 64 would do",
        ),
        ({"stages.1.steps": "0"}, "stages.1.steps: expected at least 1, got 0"),
        ({"stages.0.mask_ratio": "1"}, "stages.0.mask_ratio: expected a share between 0 and 1"),
        ({"stages.0.lr": "-1e-3"}, "stages.0.lr: expected a finite number of at least 0, got -0.001"),
        ({"stages.1.min_lr": ".inf"}, "stages.1.min_lr: expected a finite number of at least 0, got inf"),
        ({"optim.weight_decay": "-0.1"}, "optim.weight_decay: expected a finite number of at least 0, got -0.1"),
        ({"optim.betas": "[0.9, 1.0]"}, "optim.betas: expected two shares from 0 to below 1, got [0.9, 1.0]"),
        ({"optim.clip_norm": "0"}, "optim.clip_norm: expected a norm above 0, got 0"),
        ({"model.drop_path": "1"}, "model.drop_path: expected a chance from 0 to below 1, got 1"),
        ({"keep_checkpoints": "1"}, "keep_checkpoints: expected at least 2, got 1"),
        ({"name": "a/b"}, "name: expected a plain folder name"),
        ({"data.bands": "[B04, B03"}, "--data.bands: "),
        ({"data.dataset": "eurosatt"}, "segmunich, folder, or shards, got 'eurosatt'; null cuts windows from scenes"),
        (
            {"speed.cuda_graph": "true", "speed.recompute": "blocks", "model.drop_path": "0.1"},
            "expected no model.drop_path beside speed.recompute blocks, got 0.1; choose recompute light",
        ),
    ],
)
def test_mistakes_are_named_in_one_line(options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        build(**options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_printed_recipe_reads_back(tmp_path: Path) -> None:
    config = build(**{"model.depth": "2", "data.band_order": "[B04, B03, B02]"})
    path = tmp_path / "printed.yaml"
    path.write_text(recipe.to_yaml(config))
    assert recipe.build(recipe.read(path)) == config


def test_the_quickstart_is_a_valid_recipe_of_two_stages() -> None:
    config = recipe.build(recipe.read(None))
    assert config.model.name == "tiny"
    assert config.data.root == "demo"
    assert [stage.mask_ratio for stage in config.stages] == [0.9, 0.9]
    assert config.stages[0].image_size != config.stages[1].image_size


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), ("a: [", "is no YAML"), ("- 1", "expected keys and values"), ("\x00", "is no YAML")],
)
def test_unreadable_recipes(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        recipe.read(path)


def test_options_of_the_command_line() -> None:
    parsed = recipe.parse_options(["--a.b", "1", "--c=x=y", "--resume", "--seed", "-1", "--print_config"])
    assert parsed == {"a.b": "1", "c": "x=y", "resume": "", "seed": "-1", "print_config": ""}
    with pytest.raises(UserError, match="stray: expected"):
        recipe.parse_options(["--a", "1", "stray"])
    with pytest.raises(UserError, match=r"mine\.yaml: expected .*; --config mine\.yaml"):
        recipe.parse_options(["mine.yaml"])


def test_help_names_every_key_with_a_meaning() -> None:
    text = recipe.help_text()
    for key in (
        "--optim.weight_decay",
        "--stages.<place>.lr",
        "--model.spectral_weight",
        "--data.root",
        "--keep_checkpoints",
    ):
        (line,) = [line for line in text.splitlines() if line.strip().startswith(f"{key} ")]
        assert len(line.split()) > 4, line
