"""How far two pictures of one prompt and seed are apart. LPIPS is not here: its weights are in no package at hand."""

import math
from typing import Any

import numpy as np
from skimage.metrics import structural_similarity

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
LUMA = np.array((0.299, 0.587, 0.114))


def psnr(one: Pixels, other: Pixels) -> float:
    """Peak signal-to-noise ratio in dB over all channels; infinite for equal pictures."""
    error = float(np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


def ssim(one: Pixels, other: Pixels) -> float:
    """Structural similarity of the luma (Wang et al. 2004: a Gaussian window of 11 pixels, sigma 1.5); 1 for equals."""
    first, second = (picture.astype(np.float64) @ LUMA for picture in (one, other))
    return float(
        structural_similarity(  # type: ignore[no-untyped-call]
            first, second, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
    )


def decibels(value: float) -> float | str:
    """A PSNR as a table has it: JSON knows no infinity."""
    return value if math.isfinite(value) else "equal"
