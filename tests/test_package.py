# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

import spectralgpt


def test_every_public_name_resolves():
    assert all(getattr(spectralgpt, name) is not None for name in spectralgpt.__all__)
    assert dir(spectralgpt) == spectralgpt.__all__
    with pytest.raises(AttributeError, match="module 'spectralgpt' has no attribute 'create_mdoel'"):
        _ = spectralgpt.create_mdoel
