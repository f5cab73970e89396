"""Which kernel computes attention: chosen once at load, tried before it is trusted, and said with its reason.

    attend, reason = choose_attention(torch.device("cuda"), torch.bfloat16, heads=30, size=128)
    use_attention(transformer, attend)

fa3    FlashAttention 3, where the package `flash_attn_interface` is installed: Hopper
cudnn  cuDNN's kernel through PyTorch: half precision, compute capability 8.0 and newer
flash  FlashAttention 2, which PyTorch carries: the same
sdpa   whatever PyTorch picks for the shape
math   products and a softmax, which runs everywhere and needs memory for all scores

The package `kernels` is not asked: it fetches programs from the hub and runs them. `fa3` has not been run yet;
a kernel that fails or computes something else at the trial is passed over.
"""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from zturbo.errors import DeviceError
from zturbo.models.attention import Attend, sdpa
from zturbo.models.transformer import Attention, ZImageTransformer

TRIAL_SLOTS = 96
TRIAL_LIMIT = 2e-2
"""Relative error of a trial in half precision against fp32; sound kernels have some 3e-3."""
HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Backend:
    """One way to compute attention.

    Attributes:
        name: as the setting `attention` has it.
        words: for the start-up block.
        unfit: (capability, dtype) -> why it cannot be here, or None.
        make: the function itself; may import.
    """

    name: str
    words: str
    unfit: Callable[[tuple[int, int], torch.dtype], str | None]
    make: Callable[[], Attend]


def _half_from(least: tuple[int, int]) -> Callable[[tuple[int, int], torch.dtype], str | None]:
    def unfit(capability: tuple[int, int], dtype: torch.dtype) -> str | None:
        if capability < least:
            return f"wants compute capability {least[0]}.{least[1]}"
        return None if dtype in HALF else "computes in half precision only"

    return unfit


def _flash_3_unfit(capability: tuple[int, int], dtype: torch.dtype) -> str | None:
    if capability[0] != 9:
        return "is for Hopper"
    if importlib.util.find_spec("flash_attn_interface") is None:
        return "flash_attn_interface is not installed"
    return None if dtype in HALF else "computes in half precision only"


def _flash_3() -> Attend:
    kernel = importlib.import_module("flash_attn_interface").flash_attn_func

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        found = kernel(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), causal=False)  # (B,S,heads,D)
        return (found[0] if isinstance(found, tuple) else found).transpose(1, 2)  # older ones return sums as well

    return attend


def _through(kernel: SDPBackend) -> Attend:
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(kernel):
            return F.scaled_dot_product_attention(query, key, value)

    return attend


BACKENDS = (
    Backend("fa3", "FlashAttention 3", _flash_3_unfit, _flash_3),
    Backend(
        "cudnn", "cuDNN's kernel through PyTorch", _half_from((8, 0)), partial(_through, SDPBackend.CUDNN_ATTENTION)
    ),
    Backend(
        "flash", "FlashAttention 2 through PyTorch", _half_from((8, 0)), partial(_through, SDPBackend.FLASH_ATTENTION)
    ),
    Backend("sdpa", "PyTorch SDPA, its choice per shape", lambda *_: None, lambda: sdpa),
    Backend("math", "products and a softmax", lambda *_: None, partial(_through, SDPBackend.MATH)),
)
ELSEWHERE = {"cpu": "PyTorch SDPA (blocked CPU kernel; there are no masks)", "mps": "PyTorch SDPA (Metal kernel)"}


def choose_attention(
    device: torch.device,
    dtype: torch.dtype,
    heads: int,
    size: int,
    wish: str = "auto",
    backends: tuple[Backend, ...] = BACKENDS,
    capability: tuple[int, int] | None = None,
) -> tuple[Attend, str]:
    """The first kernel that works here, and the reason in words.

    Args:
        device, dtype, heads, size: what it will be used for; size is a head's.
        wish: "auto", or the name of one backend.
        backends: the best first.
        capability: of the device; None asks it.

    Raises:
        DeviceError: the one wished for does not work here.
    """
    if device.type != "cuda" and capability is None:
        if wish not in ("auto", "sdpa"):
            raise DeviceError(f"attention {wish!r} is for CUDA; this is {device.type}", "leave attention at auto")
        return sdpa, ELSEWHERE.get(device.type, "PyTorch SDPA")
    capability = capability or torch.cuda.get_device_capability(device)
    passed: list[str] = []
    for backend in (one for one in _in_order(backends, capability) if wish in ("auto", one.name)):
        trouble = backend.unfit(capability, dtype)
        if trouble is None:
            attend, trouble = trial(backend.make, device, dtype, heads, size)
            if trouble is None:
                return attend, f"{backend.words}  ({'as asked' if wish != 'auto' else _because(passed)})"
        passed.append(f"{backend.name} {trouble}")
    raise DeviceError(f"attention {wish!r} does not work here: {'; '.join(passed)}", "leave attention at auto")


def _in_order(backends: tuple[Backend, ...], capability: tuple[int, int]) -> tuple[Backend, ...]:
    """cuDNN's kernel is ahead from Hopper on; before, FlashAttention 2 is what everybody runs."""
    if capability >= (9, 0):
        return backends
    names = ("fa3", "flash", "cudnn", "sdpa", "math")
    return tuple(sorted(backends, key=lambda one: names.index(one.name)))


def _because(passed: list[str]) -> str:
    return "; ".join(passed) if passed else "the fastest known for this device"


@torch.inference_mode()
def trial(
    make: Callable[[], Attend], device: torch.device, dtype: torch.dtype, heads: int, size: int
) -> tuple[Attend, str | None]:
    """A kernel, and why it cannot be trusted with packed q, k, v of this form, or None; compared with fp32 products."""
    generator = torch.Generator().manual_seed(0)
    packed = torch.randn(1, TRIAL_SLOTS, 3, heads, size, generator=generator).to(device, dtype)
    query, key, value = packed.transpose(1, 3).unbind(2)  # (1,heads,S,D), strided as in a block
    expected = (query.float() @ key.float().mT * size**-0.5).softmax(-1) @ value.float()
    try:
        attend = make()
        found = attend(query, key, value).float()
    except (
        RuntimeError,
        ImportError,
        AttributeError,
        TypeError,
        OSError,
    ) as error:  # or its package is another version
        return sdpa, f"fails ({str(error).splitlines()[0][:80] if str(error) else type(error).__name__})"
    off = float((found - expected).norm() / expected.norm())
    return attend, None if off < TRIAL_LIMIT else f"is off by {off:.1g}"


def use_attention(transformer: ZImageTransformer, attend: Attend) -> None:
    """Let every attention of a transformer compute with this kernel."""
    for module in transformer.modules():
        if isinstance(module, Attention):
            module.attend = attend
