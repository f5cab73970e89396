"""What this computer is: the facts that decide how a model is run here."""

import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from zturbo.errors import DeviceError

DeviceKind = Literal["cuda", "mps", "cpu"]
DEVICES: tuple[DeviceKind, ...] = ("cuda", "mps", "cpu")
CONTROL_GROUPS = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class Machine:
    """One device and the host around it; all sizes in bytes."""

    device: DeviceKind
    name: str
    """The device's own name."""
    cores: int
    host_total: int
    host_free: int
    """Host memory that can be used without swapping; the device's own memory where it is the CPU or shares with it."""
    device_total: int
    device_free: int
    capability: tuple[int, int] | None
    """CUDA compute capability; None elsewhere."""
    bf16: bool
    """The device multiplies bf16 natively."""

    @property
    def fp8(self) -> bool:
        """The device multiplies fp8 with row scales (CUDA capability 8.9 and newer)."""
        return self.capability is not None and self.capability >= (8, 9)


def host_memory() -> tuple[int, int]:
    """Total and available bytes of host memory."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123  (a kernel file, not a path to handle)
            free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        free = total * 3 // 4  # macOS reports no such figure; leave a quarter to the system
    return total, min(free, control_group_free(total))


def control_group_free(total: int, mount: Path = CONTROL_GROUPS, membership: Path = OWN_GROUP) -> int:
    """Bytes that the control groups around this process (its container, its service) leave it, `total` at most.

    Args:
        total: bytes of the whole host.
        mount: of the hierarchy, version 2 (Linux, `Documentation/admin-guide/cgroup-v2.rst`).
        membership: the file that names this process's group, as `0::/path`.
    """
    return min(_left(group, total) for group in _groups(mount, membership))


def control_group_cores(mount: Path = CONTROL_GROUPS, membership: Path = OWN_GROUP) -> float:
    """Processors' worth of time that the control groups around this process leave it; infinite without a limit.

    Args:
        mount, membership: as of `control_group_free`.
    """
    return min(_quota(group) for group in _groups(mount, membership))


def _groups(mount: Path, membership: Path) -> list[Path]:
    """This process's control group and those around it."""
    try:
        lines = membership.read_text("utf-8").splitlines()
    except (OSError, ValueError):
        lines = []
    own = mount / next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    return [group for group in (own, *own.parents) if group.is_relative_to(mount)]


def _quota(group: Path) -> float:
    try:
        quota, period = (group / "cpu.max").read_text("ascii").split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # without a limit it reads "max 100000"
        return math.inf


def _left(group: Path, total: int) -> int:
    """Bytes left of a group's limit, `total` at most; cached files count as free, because the kernel drops them."""
    try:
        limit, used, state = ((group / f"memory.{name}").read_text("ascii") for name in ("max", "current", "stat"))
        parts = dict(line.split() for line in state.splitlines())
        cached = int(parts["inactive_file"]) + int(parts["active_file"])
        return min(total, max(0, int(limit) - int(used) + cached))
    except (OSError, ValueError, KeyError):  # without a limit it reads "max"
        return total


def detect(device: str = "auto") -> Machine:
    """Look at this machine.

    Args:
        device: "auto" takes CUDA, then MPS, then the CPU; or one of these by name.

    Raises:
        DeviceError: unknown device, or it is not there.
    """
    there: dict[str, bool] = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = next(kind for kind in DEVICES if there[kind])
    if device not in there:
        raise DeviceError(f"unknown device {device!r}", f"one of auto, {', '.join(DEVICES)}")
    if not there[device]:
        present = ", ".join(kind for kind in DEVICES if there[kind])
        raise DeviceError(
            f"the device {device!r} is not available to this PyTorch ({torch.__version__})", f"present: {present}"
        )
    return {"cuda": _cuda, "mps": _mps, "cpu": _cpu}[device]()


def _cpu() -> Machine:
    total, free = host_memory()
    name, cores = _cpu_name(), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    bf16 = bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return Machine("cpu", name, cores, total, free, total, free, None, bf16)


def _cuda() -> Machine:
    total, free = host_memory()
    device_free, device_total = torch.cuda.mem_get_info()
    capability = torch.cuda.get_device_capability()
    cores = os.cpu_count() or 1
    name = torch.cuda.get_device_name()
    return Machine("cuda", name, cores, total, free, device_total, device_free, capability, capability >= (8, 0))


def _mps() -> Machine:
    total, free = host_memory()
    budget = int(torch.mps.recommended_max_memory())
    major = int((platform.mac_ver()[0] or "0").split(".")[0])
    return Machine("mps", _cpu_name(), os.cpu_count() or 1, total, free, budget, min(budget, free), None, major >= 14)


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
