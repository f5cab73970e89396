"""Telling a device that is lost from a stretch of work that failed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from zturbo.errors import DeviceLost


@contextmanager
def losses_told(device: torch.device) -> Iterator[None]:
    """Raise what fails within; as `DeviceLost` where the device answers nothing more.

    The error's type does not say: after an illegal access Triton, cuBLAS and cuDNN raise plain RuntimeErrors, and an
    AcceleratorError may be of one launch alone.

    Raises:
        DeviceLost: the device failed for good; only another process can use it again.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_lost(device):
            raise
        raise DeviceLost(f"the device failed: {str(error).splitlines()[0]}", "start the process anew") from error


def is_lost(device: torch.device) -> bool:
    """Whether a device fails where nothing is asked of it but to finish: what failed for good fails again."""
    if device.type == "cpu":
        return False
    try:
        torch.accelerator.synchronize(device)
    except RuntimeError:
        return True
    return False
