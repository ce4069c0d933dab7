# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import subprocess
import sys
import time
import types

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from spectralgpt.errors import UserError
from spectralgpt.nn import attention as module
from spectralgpt.nn.attention import (
    allowed_backends,
    attention,
    choose_by_measurement,
    describe,
    last_backend,
    select_backend,
)


@pytest.fixture(autouse=True)
def fresh_state(monkeypatch):
    monkeypatch.setattr(module, "_taken", {})
    monkeypatch.setattr(module, "_refused", {})
    monkeypatch.setattr(module, "_fastest", None)
    module._import_xformers.cache_clear()
    yield
    module._import_xformers.cache_clear()


@pytest.fixture
def xformers_first(monkeypatch):
    """Lets a CPU tensor meet the list that a half-precision CUDA tensor meets."""
    monkeypatch.setattr(module, "allowed_backends", lambda *case: ("xformers", "sdpa"))


def install(monkeypatch, kernel):
    """Puts a package named xformers with this kernel in place."""
    ops = types.ModuleType("xformers.ops")
    ops.memory_efficient_attention = kernel
    monkeypatch.setitem(sys.modules, "xformers", types.ModuleType("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)


def inputs(dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.randn(2, 9, 3, 8, dtype=dtype) for _ in range(3)]


def explicit(q, k, v):
    weights = torch.einsum("bnhd,bmhd->bhnm", q, k).div(q.shape[-1] ** 0.5).softmax(-1)
    return torch.einsum("bhnm,bmhd->bnhd", weights, v)


@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "expected"),
    [
        ("cuda", torch.bfloat16, 64, ("xformers", "sdpa")),
        ("cuda", torch.float16, 80, ("xformers", "sdpa")),
        ("cuda", torch.float16, 32, ("xformers", "sdpa")),
        ("cuda", torch.float32, 64, ("sdpa",)),
        ("cuda", torch.bfloat16, 20, ("sdpa",)),
        ("cuda", torch.bfloat16, 512, ("sdpa",)),
        ("cpu", torch.bfloat16, 64, ("sdpa",)),
        ("cpu", torch.float32, 64, ("sdpa",)),
        ("mps", torch.float16, 64, ("sdpa",)),
    ],
)
def test_allowed_list(device, dtype, head_dim, expected):
    assert allowed_backends(device, dtype, head_dim) == expected


def test_selection_skips_what_is_unavailable_and_always_answers():
    case = ("cuda", torch.bfloat16, 64)
    assert select_backend(*case) == "xformers"
    assert select_backend(*case, unavailable={"xformers"}) == "sdpa"
    assert select_backend(*case, unavailable={"xformers", "sdpa"}) == "sdpa"


def test_equals_explicit_softmax_with_gradients():
    ours, theirs = inputs(torch.float64), inputs(torch.float64)
    for tensor in ours + theirs:
        tensor.requires_grad_()
    out, expected = attention(*ours), explicit(*theirs)
    torch.testing.assert_close(out, expected)
    out.square().sum().backward()
    expected.square().sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_says_which_backend_it_took():
    assert last_backend() is None
    assert describe() == "attention: not used yet"
    attention(*inputs())
    assert last_backend() == "sdpa"
    assert describe() == "attention: sdpa for cpu float32 head dim 8"


def test_a_missing_xformers_falls_to_sdpa_and_is_said_once(monkeypatch, caplog, xformers_first):
    monkeypatch.setitem(sys.modules, "xformers", None)
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    with caplog.at_level(logging.WARNING):
        outs = [attention(*inputs()) for _ in range(3)]
    torch.testing.assert_close(outs[2], explicit(*inputs()))
    assert len(caplog.records) == 1
    assert "xformers does not serve cpu float32 head dim 8" in caplog.text
    assert last_backend() == "sdpa"
    assert "xformers refused" in describe()


def test_an_xformers_built_for_another_torch_falls_to_sdpa(monkeypatch, caplog, xformers_first):
    install(monkeypatch, explicit)
    del sys.modules["xformers.ops"].memory_efficient_attention
    torch.testing.assert_close(attention(*inputs()), explicit(*inputs()))
    assert "import xformers failed" in caplog.text


def test_an_xformers_whose_kernels_do_not_load_is_said_once_and_why(monkeypatch, caplog, xformers_first):
    """PyPI's xformers is built for one CUDA version; beside a torch for another it can be imported, and refuses all."""
    install(monkeypatch, explicit)
    why = "can't load C++/CUDA extensions. It was built for:\n    PyTorch 2.10 (you have 2.11)\n    Python 3.10"
    sys.modules["xformers"]._cpp_lib = types.SimpleNamespace(_cpp_library_load_exception=ImportError(why))
    for width in (8, 4):
        attention(*(x[..., :width] for x in inputs()))
    assert last_backend() == "sdpa"
    assert caplog.text.count("does not serve") == 1
    assert "(can't load C++/CUDA extensions. It was built for: PyTorch 2.10 (you have 2.11)); using" in caplog.text


def test_a_refusing_xformers_falls_to_sdpa(monkeypatch, caplog, xformers_first):
    def refuse(q, k, v):
        raise NotImplementedError("No operator found\nlong table")

    install(monkeypatch, refuse)
    with caplog.at_level(logging.WARNING):
        torch.testing.assert_close(attention(*inputs()), explicit(*inputs()))
    assert "(No operator found)" in caplog.text


def test_xformers_gets_the_layout_it_wants(monkeypatch, xformers_first):
    install(monkeypatch, explicit)  # (B, N, heads, head_dim), as xformers defines it
    torch.testing.assert_close(attention(*inputs()), explicit(*inputs()))
    assert last_backend() == "xformers"


def test_an_insisted_backend_never_falls(monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers", None)
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    with pytest.raises(UserError, match="expected xformers to serve cpu float32 head dim 8, got"):
        attention(*inputs(), "xformers")
    with pytest.raises(UserError, match=r"expected auto or one of xformers, sdpa, sdpa-flash, .*, got 'flash'"):
        attention(*inputs(), "flash")


def slow(q, k, v):
    time.sleep(0.02)
    return explicit(q, k, v)


def refusing(q, k, v):
    raise RuntimeError("no kernel for this")


def test_the_fastest_of_those_that_serve_is_found_once_per_shape(monkeypatch, xformers_first):
    tried = []

    def quick(q, k, v):
        tried.append(len(q))
        return explicit(q, k, v)

    install(monkeypatch, slow)
    backends = {"sdpa": slow, "sdpa-flash": refusing, "sdpa-efficient": quick, "sdpa-cudnn": slow}
    for name, kernel in backends.items():
        monkeypatch.setitem(module.BACKENDS, name, kernel)
    attention(*inputs())
    assert last_backend() == "xformers" and not tried, "the list decides unless told otherwise"
    choose_by_measurement()
    given = inputs()
    state = torch.get_rng_state()
    for _ in range(3):
        attention(*given)
    assert torch.equal(torch.get_rng_state(), state)
    assert last_backend() == "sdpa-efficient" and len(tried) == 4 + 3
    assert torch.equal(attention(*inputs()), explicit(*inputs()))
    q, k, v = inputs()
    attention(q[:1], k[:1], v[:1])
    assert len(tried) == 9, "the number of samples is no other shape"
    attention(q[:, :5], k, v)
    assert len(tried) == 9 + 5
    choose_by_measurement(False)
    attention(*inputs())
    assert last_backend() == "xformers"


def test_where_no_trial_succeeds_the_list_decides(monkeypatch, xformers_first):
    monkeypatch.setitem(sys.modules, "xformers", None)
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    choose_by_measurement()
    torch.testing.assert_close(attention(*inputs()), explicit(*inputs()))
    assert last_backend() in ("sdpa", "sdpa-flash")


def test_a_trial_inside_recomputed_blocks_changes_nothing(monkeypatch, xformers_first):
    """Recomputation counts what autograd saves, and must not count the trial."""
    install(monkeypatch, explicit)
    choose_by_measurement()
    ours, theirs = [[tensor.requires_grad_() for tensor in inputs()] for _ in range(2)]
    checkpoint(attention, *ours, use_reentrant=False).square().sum().backward()
    explicit(*theirs).square().sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_tracing_takes_torchs_operator(xformers_first):
    def traced(q, k, v):
        return attention(q, k, v)

    compiled = torch.compile(traced, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs()), explicit(*inputs()))
    assert "xformers" not in describe()


def test_a_cpu_run_never_imports_xformers():
    code = """
import sys, torch, spectralgpt
from spectralgpt import ops
model = spectralgpt.create_autoencoder("tiny", image_size=16)
with torch.autocast("cpu", torch.bfloat16):
    model(torch.rand(1, 12, 16, 16), ops.random_cube_mask(torch.arange(1), 16, 0.5, seed=0)).loss.backward()
assert not [name for name in sys.modules if name.startswith("xformers")]
"""
    subprocess.run([sys.executable, "-c", code], check=True)
