# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from spectralgpt.data.mixing import MixConfig, mix
from spectralgpt.errors import UserError

IMAGE = torch.eye(6)[:, :, None, None].expand(6, 6, 32, 32).contiguous()  # image b is 1 in band b alone
LABEL = torch.arange(6)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("config", [MixConfig(0.8, 0), MixConfig(0, 1.0), MixConfig()])
def test_labels_have_the_shares_of_the_pixels(config):
    source = generator()
    shares = set()
    for _ in range(10):
        image, target = mix(IMAGE, LABEL, 6, config, source)
        torch.testing.assert_close(image.mean((2, 3)), target)
        torch.testing.assert_close(target.sum(1), torch.ones(6))
        shares.add(round(float(target.square().sum()), 5))
    assert len(shares) > 5 and torch.equal(IMAGE.sum((1, 2, 3)), torch.full((6,), 1024.0))


def test_cutmix_copies_a_box():
    image, _ = mix(IMAGE, LABEL, 6, MixConfig(0, 1.0), generator(1))
    assert set(image.unique().tolist()) == {0.0, 1.0}
    (whole, _), (mixed, _) = (
        mix(IMAGE, LABEL, 6, MixConfig(0, 0), generator()),
        mix(IMAGE, LABEL, 6, MixConfig(), generator()),
    )
    assert torch.equal(whole, IMAGE) and not torch.equal(mixed, IMAGE)


def test_multi_hot_labels_are_mixed_too():
    label = torch.tensor([[1, 1, 0], [0, 1, 1]])
    _, target = mix(IMAGE[:2], label, 3, MixConfig(1.0, 0), generator())
    assert target.dtype == torch.float32 and torch.equal(target[:, 1], torch.ones(2))


def test_the_generator_alone_decides():
    first, state = generator(), generator().get_state()
    one = [mix(IMAGE, LABEL, 6, MixConfig(), first)[0] for _ in range(3)]
    again = generator(9)
    again.set_state(state)
    torch.manual_seed(123)
    two = [mix(IMAGE, LABEL, 6, MixConfig(), again)[0] for _ in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True)) and not torch.equal(one[0], one[1])


def test_half_the_batches_may_be_left_alone():
    source = generator()
    mixed = [not torch.equal(mix(IMAGE, LABEL, 6, MixConfig(probability=0.5), source)[0], IMAGE) for _ in range(60)]
    assert 15 < sum(mixed) < 45
    with pytest.raises(UserError, match="mix: expected"):
        MixConfig(mixup=-1)
