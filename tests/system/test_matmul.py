"""The fast multiplication is exact, used only where it is faster, and switched off afterwards."""

from __future__ import annotations

import pytest
import torch

from smec_st.system import matmul
from smec_st.system.matmul import fast_matmul, rounding
from training_world import make_trainer

if matmul._precision_setting() is None:
    pytest.skip("torch has no such setting here", allow_module_level=True)

SETTING = torch.backends.mkldnn.matmul

needs_avx512 = pytest.mark.skipif(not matmul._use_onednn(), reason="an AMD processor with AVX-512 is needed")


@pytest.fixture
def always_used(monkeypatch):
    """Pretend that oneDNN should be used on this processor."""
    monkeypatch.setattr(matmul, "_use_onednn", lambda: True)


@needs_avx512
@pytest.mark.parametrize(
    "shape", [(1, 384, 24), (128, 384, 384), (300, 24, 5000), (64, 4096, 1024), (1400, 1024, 1024)]
)
def test_products_are_as_exact_as_before(shape):
    rows, inner, columns = shape
    left, right = torch.randn(rows, inner), torch.randn(columns, inner)
    exact = left.double() @ right.T.double()
    plain = (left @ right.T).double() - exact
    with fast_matmul():
        assert SETTING.fp32_precision == "bf16"
        fast = (left @ right.T).double() - exact
        linear = torch.nn.functional.linear(left, right).double() - exact
    assert max(fast.abs().max(), linear.abs().max()) < 8 * plain.abs().max() + 1e-6


@needs_avx512
def test_gradients_are_as_exact_as_before():
    rows, weight = torch.randn(200, 384), torch.randn(96, 384)
    found = []
    for context in (torch.enable_grad(), fast_matmul()):
        with context:
            moved = weight.clone().requires_grad_()
            (rows @ moved.T).square().sum().backward()
            found.append(moved.grad)
    assert torch.allclose(found[0], found[1], rtol=1e-4, atol=1e-2 * float(found[0].abs().mean()))


def test_rounding_tells_bfloat16_from_float32():
    """``rounding`` detects a processor on which oneDNN rounds to bfloat16."""
    assert rounding("ieee") < 1e-3
    left, right = (torch.randn(512, 512, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    rounded = (left.bfloat16().float() @ right.bfloat16().float()).double() - left.double() @ right.double()
    assert rounded.abs().max() > 100 * rounding("ieee")
    assert SETTING.fp32_precision == "none"


def test_a_processor_that_rounds_is_left_alone(monkeypatch):
    matmul._use_onednn.cache_clear()
    monkeypatch.setattr(matmul, "_cpu_vendor", lambda: "AuthenticAMD")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(matmul, "rounding", {"ieee": 6e-5, "bf16": 2e-1}.get)
    try:
        with fast_matmul():
            assert SETTING.fp32_precision == "none"
    finally:
        matmul._use_onednn.cache_clear()


def test_other_processors_are_left_alone(monkeypatch):
    matmul._use_onednn.cache_clear()
    monkeypatch.setattr(matmul, "_cpu_vendor", lambda: "GenuineIntel")
    try:
        with fast_matmul():
            assert SETTING.fp32_precision == "none"
    finally:
        matmul._use_onednn.cache_clear()


def test_it_is_switched_off_at_the_end_of_its_block_even_after_an_error(always_used):
    seen = []

    @fast_matmul()
    def fail():
        with fast_matmul():
            seen.append(SETTING.fp32_precision)
        seen.append(SETTING.fp32_precision)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen == ["bf16", "bf16"]
    assert SETTING.fp32_precision == "none"


def test_a_precision_that_the_user_chose_stays(always_used):
    SETTING.fp32_precision = "ieee"
    try:
        with fast_matmul():
            assert SETTING.fp32_precision == "ieee"
        assert SETTING.fp32_precision == "ieee"
    finally:
        SETTING.fp32_precision = "none"


def test_torch_without_the_setting_is_left_alone(always_used, monkeypatch):
    monkeypatch.setattr(matmul, "_precision_setting", lambda: None)
    with fast_matmul():
        assert SETTING.fp32_precision == "none"


def test_training_has_it_on_and_leaves_it_off(always_used, tmp_path):
    trainer = make_trainer(tmp_path, save_strategy="no")
    seen = set()
    forward = trainer.loss.forward
    trainer.loss.forward = lambda *a: seen.add(SETTING.fp32_precision) or forward(*a)
    trainer.train()
    assert seen == {"bf16"}
    assert SETTING.fp32_precision == "none"
