"""The choice of an attention kernel: order, trial, reasons; and the kernels themselves where there is a CUDA device."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tests import reference
from tests.parity.test_transformer import inputs, our_velocity, ours, relative_error
from zturbo.acceleration.attention import BACKENDS, Backend, choose_attention, trial, use_attention
from zturbo.errors import DeviceError
from zturbo.models.attention import Attend, sdpa

CPU = torch.device("cpu")
HOPPER, AMPERE, TURING = (9, 0), (8, 0), (7, 5)


def wrong(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return sdpa(query, key, value) * 1.1


def broken(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    raise RuntimeError("no kernel image\nand more")


def backends(**made: Attend) -> tuple[Backend, ...]:
    """The real table with other kernels behind its names."""
    return tuple(
        Backend(one.name, one.words, one.unfit, (lambda attend: lambda: attend)(made.get(one.name, sdpa)))
        for one in BACKENDS
    )


def chosen(capability: tuple[int, int], wish: str = "auto", dtype: torch.dtype = torch.bfloat16, **made: Attend) -> str:
    return choose_attention(CPU, dtype, 2, 32, wish, backends(**made), capability)[1]


@pytest.fixture
def with_flash_3(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The package as it is on Hopper machines: (B,S,heads,D) tensors, and sums beside the result."""
    shapes: list[torch.Size] = []

    def flash_attn_func(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> tuple[Tensor, None]:
        shapes.append(query.shape)
        assert not causal
        return sdpa(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)).transpose(1, 2), None

    module = SimpleNamespace(flash_attn_func=flash_attn_func, __spec__=object())
    monkeypatch.setitem(sys.modules, "flash_attn_interface", module)
    return shapes


def test_flash_3_is_first_on_hopper(with_flash_3: list[torch.Size]) -> None:
    attend, reason = choose_attention(CPU, torch.bfloat16, 2, 32, capability=HOPPER)
    assert reason.startswith("FlashAttention 3")
    assert with_flash_3 == [(1, 96, 2, 32)]
    query, key, value = torch.randn(3, 1, 2, 40, 32).unbind(0)
    assert torch.equal(attend(query[:, :, :8], key, value), sdpa(query[:, :, :8], key, value))


def test_without_it_cudnn_is_and_the_reason_says_why() -> None:
    assert chosen(HOPPER).startswith("cuDNN")
    assert "fa3 flash_attn_interface is not installed" in chosen(HOPPER)


def test_before_hopper_flash_2_goes_first(with_flash_3: list[torch.Size]) -> None:
    assert chosen(AMPERE).startswith("FlashAttention 2")
    assert "fa3 is for Hopper" in chosen(AMPERE)
    assert chosen(TURING).startswith("PyTorch SDPA")
    assert "flash wants compute capability 8.0" in chosen(TURING)


def test_full_precision_is_left_to_pytorch() -> None:
    reason = chosen(HOPPER, dtype=torch.float32)
    assert reason.startswith("PyTorch SDPA")
    assert "cudnn computes in half precision only" in reason


def test_a_kernel_that_fails_or_is_wrong_is_passed_over() -> None:
    reason = chosen(HOPPER, cudnn=broken, flash=wrong)
    assert reason.startswith("PyTorch SDPA")
    assert "cudnn fails (no kernel image)" in reason
    assert "flash is off by 0.1" in reason


def test_a_package_that_cannot_be_imported_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Built for another PyTorch, it is found and fails: flash_attn_func is not even there."""
    monkeypatch.setitem(sys.modules, "flash_attn_interface", SimpleNamespace(__spec__=object()))
    attend, reason = choose_attention(
        CPU, torch.bfloat16, 2, 32, backends=(BACKENDS[0], BACKENDS[3]), capability=HOPPER
    )
    assert attend is sdpa
    assert "fa3 fails" in reason


def test_a_wish_is_followed_or_refused() -> None:
    assert chosen(HOPPER, "flash") == "FlashAttention 2 through PyTorch  (as asked)"
    assert chosen(HOPPER, "math").startswith("products and a softmax")
    with pytest.raises(DeviceError, match="'cudnn' does not work here: cudnn fails"):
        chosen(HOPPER, "cudnn", cudnn=broken)
    with pytest.raises(DeviceError, match="flash_attn_interface is not installed"):
        chosen(HOPPER, "fa3")


def test_elsewhere_pytorch_decides() -> None:
    attend, reason = choose_attention(CPU, torch.float32, 2, 32)
    assert attend is sdpa
    assert "blocked CPU kernel" in reason
    with pytest.raises(DeviceError, match="'cudnn' is for CUDA; this is cpu"):
        choose_attention(CPU, torch.float32, 2, 32, "cudnn")


@torch.no_grad()
def test_every_block_computes_with_the_chosen_kernel() -> None:
    theirs = reference.transformer(n_layers=1)
    model, calls = ours(theirs), list[torch.Size]()

    def counted(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        calls.append(query.shape)
        return sdpa(query, key, value)

    use_attention(model, counted)
    latents, captions = inputs(theirs, (8, 8), [5])
    given = latents, torch.tensor([0.4]), captions
    assert torch.equal(our_velocity(model, *given), our_velocity(ours(theirs), *given))
    assert calls == [(1, 2, 32, 64)] * 4 + [(1, 2, 16, 64)]  # two refiners of each kind; the last layer's image rows


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kernels_on_the_device(backend: Backend, dtype: torch.dtype) -> None:
    if reason := backend.unfit(torch.cuda.get_device_capability(), dtype):
        pytest.skip(reason)
    assert trial(backend.make, torch.device("cuda"), dtype, 30, 128)[1] is None


@pytest.mark.gpu
@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_transformer_with_the_devices_choice(dtype: torch.dtype) -> None:
    theirs = reference.transformer().to("cuda", dtype)
    model = ours(theirs)
    attend, _ = choose_attention(torch.device("cuda"), dtype, 2, 64)
    use_attention(model, attend)
    latents, captions = inputs(theirs, (16, 24), [5])
    given = latents.to("cuda", dtype), torch.tensor([0.4], device="cuda"), [text.to("cuda", dtype) for text in captions]
    assert relative_error(our_velocity(model, *given), our_velocity(ours(theirs), *given)) < 2e-2
