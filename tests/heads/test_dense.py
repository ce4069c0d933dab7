# SPDX-License-Identifier: Apache-2.0
"""Heads for maps: padding, dates, what they learn, export, other bands."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import spectralgpt
from spectralgpt.data.bands import SENTINEL2
from spectralgpt.errors import UserError
from tests.golden import drawn_weight
from tests.heads.small import change_detector, classifier, segmenter

TEN = SENTINEL2.select(["B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"])


@pytest.mark.parametrize("head", ["pyramid", "linear", "published"])
def test_padding_repeats_the_last_row_and_column(head):
    model, image = segmenter(head=head, width=32).eval(), torch.rand(1, 12, 27, 33)
    padded = F.pad(image, (0, 7, 0, 5), mode="replicate")
    torch.testing.assert_close(model(image), model(padded)[..., :27, :33])
    assert model(torch.rand(1, 12, 3, 1)).shape == (1, 5, 3, 1)


@pytest.mark.parametrize("patch_size", [(3, 4, 4), (2, 16, 16), (3, 2, 2), (12, 8, 4)])
@pytest.mark.parametrize("head", ["pyramid", "linear", "published"])
def test_any_patch(head, patch_size):
    model = segmenter(head=head, width=32, patch_size=patch_size)
    assert model(torch.rand(1, 12, 16, 20)).shape == (1, 5, 16, 20)


def test_a_single_block_has_a_pyramid():
    assert segmenter(depth=1)(torch.rand(1, 12, 16, 16)).shape == (1, 5, 16, 16)


def test_the_head_of_tiny_is_light():
    with torch.device("meta"):
        for model in (spectralgpt.create_segmenter("tiny", 13), spectralgpt.create_change_detector("tiny")):
            sizes = [sum(p.numel() for p in part.parameters()) for part in (model.head, model.encoder)]
            assert sizes[0] < 0.35 * sizes[1]


def test_dates_in_either_order_unless_their_difference_is_signed():
    before, after = torch.rand(1, 12, 32, 32), torch.rand(1, 12, 32, 32)
    model = change_detector().eval()
    torch.testing.assert_close(model(before, after), model(after, before))
    signed = change_detector(compare="difference").eval()
    assert (signed(before, after) - signed(after, before)).abs().max() > 1e-5


def test_comparison_is_before_minus_after():
    model = change_detector(head="linear", compare="difference").eval()
    before, after = torch.rand(1, 12, 32, 32), torch.rand(1, 12, 32, 32)
    maps = [model.head.extract(model.encoder, image)[0] for image in (before, after)]
    expected = model.head.decode([maps[0] - maps[1]], 32, 32).log_softmax(1)
    torch.testing.assert_close(model(before, after), expected)


@pytest.mark.parametrize("head", ["pyramid", "linear"])
def test_change_learns_an_easy_case(head):
    before = torch.rand(4, 12, 32, 32) * 0.2
    after, mask = before.clone(), torch.zeros(4, 32, 32, dtype=torch.int64)
    for i, (y, x) in enumerate([(0, 0), (8, 16), (16, 8), (16, 16)]):
        after[i, :, y : y + 16, x : x + 16] += 0.6
        mask[i, y : y + 16, x : x + 16] = 1
    model = change_detector(head=head)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        F.nll_loss(model(before, after), mask).backward()
        optimizer.step()
    assert (model.eval()(before, after).argmax(1) == mask).float().mean() > (0.97 if head == "pyramid" else 0.9)


def test_the_pyramid_sees_single_pixels():
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(2, 32, 32, generator=generator) < 0.3).long()  # no patch tells its pixels apart
    image = torch.rand(2, 12, 32, 32, generator=generator) * 0.3 + 0.5 * mask[:, None]
    model = segmenter()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(image), mask).backward()
        optimizer.step()
    assert (model.eval()(image).argmax(1) == mask).float().mean() > 0.95


@pytest.mark.parametrize(
    "model",
    [
        classifier(pool_skip_first=True),
        classifier(head="mlp", spectral_pool="learned"),
        classifier(spectral_pool="concat", position_embedding="flat"),
        segmenter(),
        segmenter(head="published", width=32),
        change_detector(bands=10),
    ],
    ids=lambda model: f"{model.kind}-{model.head_config.head}",
)
def test_exports_with_aten_ops_alone_and_any_batch(model):
    model = model.eval()
    size = 32 if model.kind == "classifier" else 30
    shapes = [(model.config.bands, size, size)] * (2 if model.task == "change" else 1)
    batch = torch.export.Dim("batch", min=1, max=64)
    example = tuple(torch.rand(2, *shape) for shape in shapes)
    program = torch.export.export(model, example, dynamic_shapes=tuple({0: batch} for _ in shapes))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    others = {target for target in targets if not target.startswith("aten.")}
    assert all("getitem" in target or "built-in function" in target or "sym_size" in target for target in others)
    images = [torch.rand(5, *shape) for shape in shapes]
    torch.testing.assert_close(program.module()(*images), model(*images))


def test_other_bands_for_heads_that_do_not_know_them(tmp_path):
    model = segmenter(bands=SENTINEL2, head="linear").eval()
    model.save_pretrained(tmp_path)
    moved = spectralgpt.from_pretrained(tmp_path, bands=TEN, image_size=48)
    assert moved(torch.rand(1, 10, 48, 48)).shape == (1, 5, 48, 48)
    assert moved.config.band_names == moved.encoder.config.band_names == TEN.names


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: segmenter(bands=SENTINEL2), "sees the bands themselves"),
        (lambda: classifier(bands=SENTINEL2, spectral_pool="concat"), "has spectral_pool concat"),
        (lambda: segmenter(bands=SENTINEL2, head="published"), "has spectral_pool learned"),
    ],
)
def test_other_bands_for_heads_that_do(make, why):
    with pytest.raises(UserError, match=f"bands: expected those that the head was trained for, as it {why}, got"):
        make().adapt_bands(SENTINEL2.select(["B02", "B03", "B04"]))


def test_published_decoder_stays_what_it_is():
    """The same numbers as when the full models gave the published ones (tests/heads/test_golden.py, a long test)."""
    model = segmenter(head="published", width=32, depth=1).eval()
    state = spectralgpt.reference_state_dict(model)
    weights = {key: 3 * drawn_weight(key, tuple(tensor.shape)) for key, tensor in state.items()}
    spectralgpt.load_reference_checkpoint(model, weights)
    ramp = torch.linspace(0, 1, 12 * 32 * 32).view(1, 12, 32, 32)
    with torch.no_grad():
        out = model(torch.sin(40 * ramp))
    torch.testing.assert_close(
        out[0, :, 5, 20], torch.tensor([4.0870, 0.3469, 2.5627, 2.9760, 0.0094]), rtol=0, atol=1e-3
    )
    assert out.std().item() == pytest.approx(2.4402, abs=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: segmenter(width=7), "width: expected at least 8 channels for the pyramid, got 7"),
        (lambda: segmenter(head="published", width=40), "width: expected a multiple of 16 for the published head"),
        (lambda: change_detector(head="published", compare="absolute"), "compare: expected difference for the publ"),
    ],
)
def test_wrong_decoders(make, message):
    with pytest.raises(UserError, match=message):
        make()
