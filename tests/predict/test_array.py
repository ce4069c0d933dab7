# SPDX-License-Identifier: Apache-2.0
"""Functions of windows on whole images in memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spectralgpt.errors import UserError
from spectralgpt.predict.array import predict_array


@pytest.mark.parametrize("shape", [(37, 53), (16, 16), (5, 9), (40, 7), (1, 1)])
@pytest.mark.parametrize("overlap", [0, 0.5, 0.8])
def test_a_per_pixel_function_gives_the_image(shape, overlap):
    image = torch.randn(3, *shape)
    whole = predict_array(lambda batch: batch, image, size=16, overlap=overlap, batch_size=3)
    assert torch.equal(whole, image)


def test_two_dates_and_validity():
    before, after = torch.randn(2, 4, 30, 30)
    valid = torch.zeros(30, 30, dtype=torch.bool)
    valid[20:, 20:] = True
    seen = []

    def change(one, two):
        seen.append(len(one))
        return (two - one).sum(1, keepdim=True)

    whole = predict_array(change, before, after, size=8, overlap=0.5, batch_size=4, valid=valid)
    expected = (after - before).sum(0)
    assert torch.equal(whole[0, valid], expected[valid]) and not whole[0, ~valid].any()
    assert set(seen) == {4}  # the last batch of a row is filled up
    assert len(seen) < 2 * len(range(0, 30, 4))  # windows without a valid pixel are left out


def test_the_result_of_a_model_hardly_depends_on_the_batch_size():
    image = torch.randn(3, 40, 40)
    model = nn.Conv2d(3, 2, 5, padding=2)
    one = predict_array(model, image, size=16, batch_size=1)
    many = predict_array(model, image, size=16, batch_size=4)
    assert torch.allclose(one, many, atol=1e-5)
    assert torch.equal(many, predict_array(model, image, size=16, batch_size=4))


def test_a_small_image_is_mirrored():
    seen = []
    predict_array(lambda batch: seen.append(batch) or batch, torch.arange(6.0).view(1, 2, 3), size=7)
    assert seen[0][0, 0, 0].tolist() == [0, 1, 2, 2, 1, 0, 0]
    assert seen[0][0, 0, :, 0].tolist() == [0, 3, 3, 0, 0, 3, 3]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: predict_array(lambda a, b: a, torch.zeros(1, 4, 4), torch.zeros(1, 4, 5), size=4), "images: expected"),
        (lambda: predict_array(lambda a: a, torch.zeros(4, 4), size=4), "images: expected"),
        (lambda: predict_array(lambda a: a, torch.zeros(1, 4, 4), size=4, overlap=1), "overlap: expected a share"),
        (lambda: predict_array(lambda a: a[:, :, 0], torch.zeros(1, 4, 4), size=4), r"function: expected .*\(1, K, 4"),
        (
            lambda: predict_array(lambda a: a, torch.zeros(1, 4, 4), size=4, valid=torch.zeros(4, 4, dtype=torch.bool)),
            "images: expected a valid pixel",
        ),
    ],
)
def test_what_cannot_be_is_told(call, message):
    with pytest.raises(UserError, match=message):
        call()
