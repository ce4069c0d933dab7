# SPDX-License-Identifier: Apache-2.0
"""docs/models.md: every code block runs, the tables say what the code does."""

from __future__ import annotations

import re

import pytest
import torch

import spectralgpt
from spectralgpt import heads
from spectralgpt.heads.base import COMPARISONS, HEADS
from spectralgpt.heads.features import POOLS
from tests.docs.page import Page

PAGE = Page("models.md")


@pytest.mark.parametrize("number", range(len(PAGE.blocks)))
def test_block_runs(number: int) -> None:
    PAGE.run(number)


def millions(module: torch.nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def test_sizes() -> None:
    rows = re.findall(r"^\| `(tiny|small|base|large|huge)` \|(.*)\|$", PAGE.text, re.MULTILINE)
    assert len(rows) == 5
    for name, row in rows:
        with torch.device("meta"):
            encoder = spectralgpt.create_model(name)
            classifier = spectralgpt.create_classifier(name, 10)
            maps = [spectralgpt.create_segmenter(name, 13, head=head) for head in ("pyramid", "published")]
        config = encoder.config
        assert [int(cell) for cell in row.split("|")[:3]] == [config.embed_dim, config.depth, config.num_heads]
        said = [float(cell) for cell in row.split("|")[3:]]
        assert said[0] == round(millions(encoder), 2)
        assert said[1:] == [
            round(millions(model.head), 3 if i == 0 else 2) for i, model in enumerate([classifier, *maps])
        ]


def test_every_option_and_function_is_on_the_page() -> None:
    named = {*POOLS, *COMPARISONS, *(head for choices in HEADS.values() for head in choices)}
    assert not [name for name in named if f'"{name}"' not in PAGE.text]
    functions = [name for name in heads.__all__ if name[0].islower()]
    assert not [name for name in functions if f"{name}(" not in PAGE.text]


def test_links_lead_somewhere() -> None:
    assert PAGE.broken_links() == []
