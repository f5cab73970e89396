"""The C kernels: built once per machine, kept on the disk, loaded by ctypes; and the layouts that they read.

    build()               # compiles kernels.c where that was not done yet; servers and `make setup` do
    kernels = library()   # takes what is there; raises `Unavailable` with the reason otherwise
    packed = pack(weight, "fp32")

PyTorch's own way of C extensions is not used: its import and its build take many times as long as this compilation.
A build is named by all that decides its bytes: source, compiler, flags, and what the processor can do.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zturbo.engine.lanes import on_threads

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread")
FEATURES = ("avx2", "fma", "avx512f", "avx512bw", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "amx_int8")
"""What the kernels make use of, as Linux spells it."""
VERSION_TIMEOUT_S, BUILD_TIMEOUT_S = 30, 300
PANEL = 16
"""Columns of a panel of weights; also what widths are rounded up to."""
PASS = 2048
"""k of one pass over a panel in int8 (`LONG_KC` of kernels.c): after each the sums become floats."""

Kind = Literal["fp32", "int16", "bf16", "int8"]
KINDS: tuple[Kind, ...] = ("fp32", "int16", "bf16", "int8")
"""Operands of a product, in the order of kernels.c."""
LIMITS: Mapping[Kind, int] = {"int16": 2047, "int8": 127}
"""Largest integers. Twelve bits twice: a sum of 512 products stays below 2^31."""
AT_ONCE: Mapping[Kind, int] = {"fp32": 1, "int16": 2, "bf16": 2, "int8": 4}
"""Values of k that lie next to each other in a panel: four bytes of them, or one."""
STORAGE: Mapping[Kind, torch.dtype] = {
    "fp32": torch.float32, "int16": torch.int16, "bf16": torch.bfloat16, "int8": torch.int8
}  # fmt: skip


class Unavailable(Exception):
    """Why there are no native kernels here, in words."""


@cache
def features() -> frozenset[str]:
    """Which of `FEATURES` this processor has; none where Linux is not there to say so."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return frozenset(line.split()) & frozenset(FEATURES)


def folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where builds are kept.

    Raises:
        Unavailable: nowhere, as for a user without a home folder in some containers.
    """
    try:
        cache = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise Unavailable("this user has no home folder to keep them in; XDG_CACHE_HOME may name another") from error
    return cache / "zturbo" / "native"


@contextmanager
def _folder_in_use() -> Iterator[None]:
    """Tell it as a reason where the folder of builds may not be entered or written.

    Raises:
        Unavailable: the disk refuses what was done meanwhile.
    """
    try:
        yield
    except OSError as error:
        raise Unavailable(f"the folder of their builds cannot be used: {error}") from error


def compiler() -> tuple[str, ...] | None:
    """The C compiler's path and its arguments: $CC, or `cc`."""
    try:
        words = shlex.split(os.environ.get("CC") or "cc")
    except ValueError:  # a quotation that does not end
        words = []
    program = shutil.which(words[0]) if words else None
    return None if program is None else (program, *words[1:])


def _refuse_other_processors() -> None:
    if platform.machine().lower() not in ("x86_64", "amd64") or not {"avx2", "fma"} <= features():
        raise Unavailable("they want a processor with AVX2 and FMA, and Linux")


@cache
def target() -> Path:
    """The file of this machine's build.

    Raises:
        Unavailable: no such processor, or no compiler that runs, to name the build by; or no folder to keep it in.
    """
    _refuse_other_processors()
    program = compiler()
    if program is None:
        raise Unavailable("there is no C compiler (cc)")
    version = _run(*program, "--version", timeout_s=VERSION_TIMEOUT_S).stdout
    parts = (SOURCE.read_text("utf-8"), " ".join((*program[1:], *FLAGS)), version, _model())
    return folder() / f"kernels-{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:20]}.so"


def _run(program: str, *arguments: str, timeout_s: float) -> "subprocess.CompletedProcess[str]":
    """The compiler's own verdict and words.

    Raises:
        Unavailable: it cannot be run, or does not end.
    """
    try:
        return subprocess.run(
            [program, *arguments], capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"the compiler fails: {error}") from error


def _model() -> str:
    """The processor's name and all that it can do: `-march=native` uses more of it than `FEATURES`."""
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    names = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags")
    return " ".join(next((line for line in lines if line.split(":")[0].strip() == name), "") for name in names)


def build() -> None:
    """Compile the kernels where that was not done yet; seconds.

    Raises:
        Unavailable: no such processor, no compiler, or it fails; or the folder of builds cannot be used.
    """
    path = target()
    with _folder_in_use():
        if path.exists() and not _loads(path):  # a power cut may have left its name without its bytes
            path.unlink(missing_ok=True)
        if not path.exists():
            _compile(path)


def _loads(path: Path) -> bool:
    try:
        ctypes.CDLL(str(path))
    except OSError:
        return False
    return True


def _compile(path: Path) -> None:
    program = compiler()
    assert program is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        made = Path(scratch) / path.name
        done = _run(*program, *FLAGS, str(SOURCE), "-o", str(made), "-lm", timeout_s=BUILD_TIMEOUT_S)
        if done.returncode:
            raise Unavailable(f"the compiler fails: {(done.stderr.strip().splitlines() or ['no message'])[0][:120]}")
        with made.open("rb") as file:
            os.fsync(file.fileno())
        _publish(made, path)
    library.cache_clear()


def _publish(made: Path, path: Path) -> None:
    """Give a build its name. The first one keeps it: another machine that shares the folder may have it in use."""
    try:
        path.hardlink_to(made)
    except FileExistsError:
        pass
    except OSError:  # a file system without such links
        made.replace(path)


@cache
def library() -> ctypes.CDLL:
    """The kernels of this machine's build.

    Raises:
        Unavailable: they are not built, or do not load; or the folder of builds cannot be used.
    """
    path = target()
    with _folder_in_use():
        if not path.exists():
            raise Unavailable("they are not built yet; servers build them while they load")
    try:
        kernels = ctypes.CDLL(str(path))
    except OSError as error:
        raise Unavailable(f"their build does not load: {error}") from error
    return kernels


_kernels = threading.local()


def threads() -> int:
    """How many the kernels may use in this thread's call: PyTorch's, or those that `only_kernels` kept for them."""
    kept: int | None = getattr(_kernels, "threads", None)
    return torch.get_num_threads() if kept is None else kept


@contextmanager
def only_kernels() -> Iterator[None]:
    """Leave PyTorch one thread, and the kernels all it had.

    What else a forward does is small, and PyTorch's threads go on spinning afterwards for milliseconds, on the cores
    that the kernels' threads need.
    """
    outer = getattr(_kernels, "threads", None)
    _kernels.threads = threads()
    try:
        with on_threads(1):
            yield
    finally:
        _kernels.threads = outer


class WeightsStruct(ctypes.Structure):
    """`Weights` of kernels.c."""

    _fields_ = (
        ("panels", ctypes.c_void_p), ("scales", ctypes.c_void_p), ("sums", ctypes.c_void_p),
        ("kind", ctypes.c_int32), ("k", ctypes.c_int32), ("count", ctypes.c_int32),
    )  # fmt: skip


class BlockStruct(ctypes.Structure):
    """`Block` of kernels.c."""

    _fields_ = (
        ("x", ctypes.c_void_p), ("rope", ctypes.c_void_p), ("modulation", ctypes.c_void_p),
        ("norm_q", ctypes.c_void_p), ("norm_k", ctypes.c_void_p), ("out", ctypes.c_void_p),
        ("qkv", WeightsStruct), ("to_out", WeightsStruct), ("w13", WeightsStruct), ("w2", WeightsStruct),
        ("eps", ctypes.c_float), ("qk_eps", ctypes.c_float), ("last_eps", ctypes.c_float),
        ("hidden_scale", ctypes.c_float),
        ("slots", ctypes.c_int32), ("rows", ctypes.c_int32), ("dim", ctypes.c_int32), ("heads", ctypes.c_int32),
        ("head", ctypes.c_int32), ("threads", ctypes.c_int32),
    )  # fmt: skip


class ForwardStruct(ctypes.Structure):
    """`Forward` of kernels.c."""

    _fields_ = (
        ("patches", ctypes.c_void_p), ("pad", ctypes.c_void_p), ("caption", ctypes.c_void_p),
        ("scale", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("last_bias", ctypes.c_void_p),
        ("out", ctypes.c_void_p), ("blocks", ctypes.POINTER(BlockStruct)), ("first", WeightsStruct),
        ("last", WeightsStruct), ("eps", ctypes.c_float), ("tokens", ctypes.c_int32), ("patch", ctypes.c_int32),
        ("slots", ctypes.c_int32), ("captions", ctypes.c_int32), ("dim", ctypes.c_int32),
        ("refiners", ctypes.c_int32), ("layers", ctypes.c_int32), ("threads", ctypes.c_int32),
    )  # fmt: skip


class TextLayerStruct(ctypes.Structure):
    """`TextLayer` of kernels.c."""

    _fields_ = (
        ("norm_1", ctypes.c_void_p), ("norm_q", ctypes.c_void_p), ("norm_k", ctypes.c_void_p),
        ("norm_2", ctypes.c_void_p), ("qkv", WeightsStruct), ("to_out", WeightsStruct), ("gates", WeightsStruct),
        ("down", WeightsStruct),
    )  # fmt: skip


class TextStruct(ctypes.Structure):
    """`Text` of kernels.c."""

    _fields_ = (
        ("layers", ctypes.POINTER(TextLayerStruct)), ("cosines", ctypes.c_void_p), ("sines", ctypes.c_void_p),
        ("last_norm", ctypes.c_void_p), ("x", ctypes.c_void_p), ("states", ctypes.c_void_p),
        ("logits", ctypes.c_void_p), ("words", WeightsStruct), ("eps", ctypes.c_float),
        ("depth", ctypes.c_int32), ("texts", ctypes.c_int32), ("count", ctypes.c_int32), ("before", ctypes.c_int32),
        ("length", ctypes.c_int32), ("hidden", ctypes.c_int32), ("heads", ctypes.c_int32),
        ("kv_heads", ctypes.c_int32), ("head", ctypes.c_int32), ("inner", ctypes.c_int32),
    )  # fmt: skip


def round_up(size: int, multiple: int = PANEL) -> int:
    """The next multiple."""
    return -(-size // multiple) * multiple


class Packed(nn.Module):
    """Weights in the kernels' layout, as buffers: forks share them, and their memory is counted.

    panels: (N/16, K, 16) fp32; (N/16, K/2, 16, 2) int16 and bf16; (N/16, K/4, 16, 4) int8.
    scales: (N) fp32, of a column; integers only.
    sums: (passes over K, N) int32, int8 only: of a column's weights, because rows are stored + 128.
    """

    panels: Tensor
    scales: Tensor | None
    sums: Tensor | None

    def __init__(self, kind: Kind, k: int, panels: Tensor, scales: Tensor | None, sums: Tensor | None) -> None:
        super().__init__()
        self.kind, self.k = kind, k
        for name, tensor in (("panels", panels), ("scales", scales), ("sums", sums)):
            self.register_buffer(name, tensor, persistent=False)

    def struct(self) -> WeightsStruct:
        """What the kernels are handed; valid as long as this module lives."""
        scales, sums = (0 if one is None else one.data_ptr() for one in (self.scales, self.sums))
        return WeightsStruct(self.panels.data_ptr(), scales, sums, KINDS.index(self.kind), self.k, self.panels.shape[0])


def pack(weight: Tensor, kind: Kind) -> Packed:
    """(N, K) of a linear layer without bias, in the kernels' layout; N and K are filled up to sixteens with zeros."""
    rows, k = weight.shape
    weight = F.pad(weight.float(), (0, -k % PANEL, 0, -rows % PANEL))
    (n, k), scales, sums = weight.shape, None, None
    if kind in LIMITS:
        scales = weight.abs().amax(dim=1).clamp_min(1e-30) / LIMITS[kind]
        weight = (weight / scales[:, None]).round_()
        if kind == "int8":
            passes = F.pad(weight, (0, -k % PASS)).unflatten(1, (-1, PASS))  # (N, passes, PASS)
            sums = passes.sum(dim=2).t().to(torch.int32).contiguous()
    at_once = AT_ONCE[kind]
    panels = weight.to(STORAGE[kind]).view(n // PANEL, PANEL, k // at_once, at_once).permute(0, 2, 1, 3).contiguous()
    return Packed(kind, k, panels, scales, sums)


def pad_heads(weight: Tensor, heads: int, dim: int) -> Tensor:
    """Fill every head's channels up to sixteens with zeros, along an axis of `heads` times a head's width."""
    parts = weight.unflatten(dim, (heads, -1)).movedim(dim + 1, -1)  # the head's own channels last
    return F.pad(parts, (0, -parts.shape[-1] % PANEL)).movedim(-1, dim + 1).flatten(dim, dim + 1)


def interleave(w13: Tensor) -> Tensor:
    """(2 * hidden, K), gates first -> eight gates and eight values in turns, hidden filled up to sixteens."""
    halves = [F.pad(half, (0, 0, 0, -half.shape[0] % PANEL)).unflatten(0, (-1, 8)) for half in w13.chunk(2)]
    return torch.stack(halves, dim=1).flatten(0, 2)


class ConvStruct(ctypes.Structure):
    """`Conv` of kernels.c."""

    _fields_ = (
        ("x", ctypes.c_void_p), ("factor", ctypes.c_void_p), ("offset", ctypes.c_void_p), ("before", ctypes.c_void_p),
        ("source", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("source_bias", ctypes.c_void_p),
        ("out", ctypes.c_void_p), ("sums", ctypes.c_void_p), ("weights", WeightsStruct), ("shortcut", WeightsStruct),
        ("totals", ctypes.c_void_p),
        ("height", ctypes.c_int32), ("width", ctypes.c_int32), ("in", ctypes.c_int32),
        ("out_channels", ctypes.c_int32), ("source_channels", ctypes.c_int32), ("doubled", ctypes.c_int32),
        ("group", ctypes.c_int32), ("threads", ctypes.c_int32),
    )  # fmt: skip


def doubled(weight: Tensor) -> Tensor:
    """A 3x3 convolution of a picture whose pixels were doubled, as four 2x2 convolutions of the picture itself.

    Each of the four pixels that one became sees three rows of pixels that are two rows of the picture, and columns
    likewise: weights that meet the same pixel are added. Four ninths of the products; equal but for rounding.

    Args:
        weight: (N, C, 3, 3).

    Returns:
        (4, N, C, 2, 2): for the pixel above left, above right, below left, below right.
    """
    fold = torch.tensor(
        [[[1.0, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]]
    )  # (place, 2 of the picture, 3 of the kernel)
    return torch.einsum("ncyx,pay,qbx->pqncab", weight.float(), fold, fold).flatten(0, 1)


def grouped(weight: Tensor, group: int) -> Tensor:
    """A 3x3 convolution that computes `group` neighbours at once: (N, C, 3, 3) -> (group * N, C, 3, group + 2)."""
    return torch.cat([F.pad(weight.float(), (place, group - 1 - place)) for place in range(group)])


def pack_convolution(weight: Tensor, kind: Kind) -> Packed:
    """(N, C, rows, columns) as a product over rows of pixels, pixels and channels."""
    return pack(weight.permute(0, 2, 3, 1).flatten(1), kind)
