# SPDX-License-Identifier: Apache-2.0
"""From a YAML recipe and command-line options to a checked `RunConfig`.

Options are laid over the recipe's tree before the types are checked, so a stage's field is reached by its place
in the list (`--stages.0.steps 200`) and one check of the keys serves files and options alike. Types, defaults
and the key list of `--help` are jsonargparse's; only plain dataclasses are offered to it and unknown keys are
refused first, so no recipe can import code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from spectralgpt.data.scene_set import DataConfig
from spectralgpt.errors import UserError
from spectralgpt.train.config import OptimConfig, RunConfig, StageConfig
from spectralgpt.train.model_section import ModelSection

QUICKSTART = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"

_MAX_SIZE = 2**20
_DESCRIPTION = """Pretrains a masked autoencoder, or trains a head on its encoder from labels (`task`).
Without arguments: configs/quickstart.yaml, minutes on two CPU cores.
Every key below can stand in the recipe or be given as an option, stages by their place: --stages.0.lr 1e-3
Own images: --data.root FOLDER (GeoTIFFs; or folders with one file per band)."""

_SECTIONS = {"stages.0": StageConfig, "data": DataConfig, "model": ModelSection, "optim": OptimConfig}
"""Where a key that stands in the wrong place may belong."""

_OPTIONS = {
    "--config FILE": "the recipe, YAML",
    "--resume [RUN]": "continue the newest run of the recipe's name, or the run in this folder",
    "--allow-config-change": "let --resume go on with other values than the run began with; it lists them",
    "--print_config": "print the whole recipe after all options, and stop",
    "--KEY VALUE": "any key below",
}


def read(path: str | Path | None) -> dict[str, Any]:
    """The tree of a YAML recipe; without a path the quickstart's."""
    if path is None and not QUICKSTART.is_file():
        raise UserError("--config: expected a recipe: this installation does not hold configs/quickstart.yaml")
    path = Path(path or QUICKSTART)
    try:
        text = path.read_text(encoding="utf-8") if path.stat().st_size <= _MAX_SIZE else None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--config: cannot read {path}: {getattr(error, 'strerror', None) or 'not a text file'}"
        ) from error
    if text is None:
        raise UserError(f"--config: expected a recipe of at most {_MAX_SIZE} bytes, got {path}")
    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"--config: {path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UserError(f"--config: expected keys and values in {path}, got {type(tree).__name__}")
    return tree


def override(tree: dict[str, Any], options: Mapping[str, str]) -> None:
    """Lays dotted options over the tree, e.g. `{"stages.0.lr": "1e-3"}`."""
    for key, text in options.items():
        *parents, last = key.split(".")
        node: Any = tree
        for parent in parents:
            if isinstance(node, list):
                node = node[_index(node, parent, key)]
            elif isinstance(node, dict):
                node[parent] = {} if node.get(parent) is None else node[parent]
                node = node[parent]
        value = _value(key, text)
        if isinstance(node, list):
            node[_index(node, last, key)] = value
        elif isinstance(node, dict):
            node[last] = value
        else:
            raise UserError(f"--{key}: {'.'.join(parents)} holds no keys")


def build(tree: dict[str, Any]) -> RunConfig:
    """Checks keys, types and values of a recipe's tree."""
    _check_keys(tree, RunConfig, "")
    tree = {**tree, "stages": [_with_data(stage, tree) for stage in tree["stages"]]} if "stages" in tree else tree
    with _one_line_errors(tree):
        config: RunConfig = _parser().instantiate(_parser().parse_object({"run": tree})).run
    config.check()
    return config


def _with_data(stage: dict[str, Any], tree: dict[str, Any]) -> dict[str, Any]:
    """A stage whose own `data` keys lie over the run's."""
    return {**stage, "data": {**tree.get("data", {}), **stage["data"]}} if stage.get("data") else stage


def to_yaml(config: RunConfig) -> str:
    """The whole recipe, defaults included, in the order of the classes."""
    tree = dataclasses.asdict(config)
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=120)


def parse_options(arguments: Sequence[str]) -> dict[str, str]:
    """`--key value`, `--key=value` and bare `--key` (an empty value) to a mapping."""
    options: dict[str, str] = {}
    key = ""
    for argument in arguments:
        if argument.startswith("--"):
            key, has_value, value = argument[2:].partition("=")
            options[key] = value
            key = "" if has_value else key
        elif key:
            options[key], key = argument, ""
        else:
            way_out = f"--config {argument}" if Path(argument).suffix in (".yaml", ".yml") else "--help lists the keys"
            raise UserError(f"{argument}: expected `--key value`; {way_out}")
    return options


def help_text() -> str:
    """The options, then every key with its type, default and meaning, read from the dataclasses themselves."""
    lines = [_DESCRIPTION, "", "options:"]
    lines += [f"  {name:24} {meaning}" for name, meaning in _OPTIONS.items()]
    return "\n".join([*lines, "", "keys of a recipe (type; default):", *_describe_keys(RunConfig, "")])


def _describe_keys(section: type, prefix: str) -> Iterator[str]:
    """Plain keys first, then the sections."""
    found = re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", section.__doc__ or "", re.MULTILINE)
    meanings = {name: " ".join(text.split()).rstrip(".") for name, text in found}
    fields = _fields(section)
    for name, (annotation, inner) in fields.items():
        if inner is None:
            kind = f"({_kind(annotation)}; {_plain(getattr(section(), name))})"
            yield f"  --{prefix + name:32} {meanings.get(name, '')} {kind}"
    for name, (annotation, inner) in fields.items():
        if inner is not None:
            place = f"{prefix}{name}." + ("<place>." if annotation.startswith("list[") else "")
            yield f"\n  {place}*  {meanings.get(name, '')}"
            yield from _describe_keys(inner, place)


def _kind(annotation: str) -> str:
    """An annotation in words: the choices of a Literal, the items of a list, else the type."""
    annotation = re.sub(r"tuple\[(\w+)[^\]]*\]", r"[\1, ...]", annotation)
    return re.sub(r"Literal\[([^\]]*)\]", lambda match: match[1].replace("'", "").replace(", ", " | "), annotation)


def _plain(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return "null" if value is None else str(value)


def _fields(section: type) -> dict[str, tuple[str, type | None]]:
    """Each key of a section: its annotation as written, and the dataclass it holds (one or a list of them), if any."""
    hints = typing.get_type_hints(section)
    found: dict[str, tuple[str, type | None]] = {}
    for field in dataclasses.fields(section):
        hint = hints[field.name]
        inner = typing.get_args(hint)[0] if typing.get_args(hint) else hint  # of list[...] or ... | None
        found[field.name] = (
            str(field.type),
            inner if isinstance(inner, type) and dataclasses.is_dataclass(inner) else None,
        )
    return found


def _check_keys(tree: Any, section: type, prefix: str) -> None:  # noqa: ANN401
    """Refuses unknown keys with the nearest known one, and sections that are no mapping (or no list of them)."""
    if not isinstance(tree, dict):
        raise UserError(f"{prefix.rstrip('.')}: expected keys and values, got {tree!r}")
    fields = _fields(section)
    for key, value in tree.items():
        if key not in fields:
            raise UserError(f"{prefix}{key}: unknown key{_nearest(str(key), prefix, fields)}")
        annotation, inner = fields[key]
        if inner is None or (value is None and annotation.endswith("| None")):
            continue
        if not annotation.startswith("list["):
            _check_keys(value, inner, f"{prefix}{key}.")
        elif isinstance(value, list):
            for index, item in enumerate(value):
                _check_keys(item, inner, f"{prefix}{key}.{index}.")
        else:
            raise UserError(
                f"{prefix}{key}: expected a list, got {value!r}; one of them is --{prefix}{key}.0.KEY VALUE"
            )


def _nearest(key: str, prefix: str, fields: Mapping[str, Any]) -> str:
    elsewhere = [f"{place}.{key}" for place, section in _SECTIONS.items() if key in _fields(section)]
    match = [] if elsewhere else difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
    if elsewhere or match:
        return f"; did you mean {' or '.join(elsewhere) or prefix + match[0]}?"
    return f"; known here: {', '.join(fields)}"


def _value(key: str, text: str) -> Any:  # noqa: ANN401
    """Lists and sections are YAML; everything else stays text until its type is known."""
    if not text.startswith(("[", "{")):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--{key}: expected YAML like [a, b] or {{key: value}}, got {text!r}") from error


def _index(items: list[Any], text: str, key: str) -> int:
    if text.isdecimal() and int(text) < len(items):
        return int(text)
    raise UserError(f"--{key}: expected a place from 0 to {len(items) - 1} in the list, got {text!r}")


@contextlib.contextmanager
def _one_line_errors(tree: dict[str, Any]) -> Iterator[None]:
    """Turns jsonargparse's nested report into `key: expected type, got value`."""
    try:
        yield
    except (ArgumentError, TypeError, ValueError) as error:
        text = str(error)
        keys = [key for key in re.findall(r'Parser key "([^"]+)"', text)]
        value = re.search(r"(?:Got|Given) value: (.*)", text)
        if not keys or value is None:
            raise UserError(" ".join(text.split())) from error
        key = ".".join(keys).removeprefix("run.")
        told = f"expected {_kind(_annotation(key))}, got {value.group(1)!r}"
        raise UserError(f"{_placed(key, value.group(1), tree)}: {told}") from error


def _placed(key: str, value: str, tree: dict[str, Any]) -> str:
    """The key with the place of the stage, which the parser does not tell: the first that holds the value."""
    section, *rest = key.split(".")
    for place, node in enumerate(tree["stages"] if section == "stages" and rest else ()):
        for name in rest:
            node = node.get(name) if isinstance(node, dict) else None
        if str(node) == value:
            return ".".join([section, str(place), *rest])
    return key


def _annotation(key: str) -> str:
    section: type | None = RunConfig
    annotation = "another type"
    for name in key.split("."):
        annotation, section = _fields(section)[name] if section else (annotation, None)
    return annotation


def _parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--run", type=RunConfig)
    return parser


class _Dumper(yaml.SafeDumper):
    """Tuples as lists, and lists of plain values on one line."""


def _represent(dumper: yaml.SafeDumper, value: Sequence[Any]) -> yaml.Node:
    inline = not any(isinstance(item, dict) for item in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=inline)


_Dumper.add_representer(tuple, _represent)
_Dumper.add_representer(list, _represent)
