"""An encoder written down instead of trained: every latent is a polynomial moment of its block of pixels.

The mean of brightness times each polynomial up to the third degree (ten numbers) and of two colour differences times
1, x and y (six) describe a 16x16 block of a clean drawing well: which colours, where the edge runs, how it bends. The
moments of a block are exact sums over its four quarters, so five levels of stride-2 convolutions compute them, and such
latents are linear in the picture: smooth, and easy for the transformer. Training may refine the encoder from here.
"""

from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zturbo.models.vae import AutoencoderKL

Matrix = NDArray[np.float64]

TO_LUMA = np.array([[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]])  # rows Y, Cb, Cr
DEGREES = (3, 1, 1)  # of the polynomials of Y, Cb, Cr
LATENTS = 16
ANCHOR = 16.0  # size of the constant channels that hold the last GroupNorm still; values are about 1
WHITENING = 0.6  # 0 leaves the spread of the latents as it is, 1 makes all equal
LOG_VARIANCE = -6.0


def exponents(degree: int, side: int) -> list[tuple[int, int]]:
    """Powers of x and y up to a total degree that a block of `side` pixels can tell apart."""
    return [(a, b) for a, b in product(range(degree + 1), repeat=2) if a + b <= degree and a < side and b < side]


def basis(degree: int, side: int) -> Matrix:
    """Monomials on the pixels of a block, (side * side, monomials); coordinates run from -1 to 1."""
    at = (np.arange(side) + 0.5) / side * 2 - 1
    y, x = np.meshgrid(at, at, indexing="ij")
    return np.stack([(x**a * y**b).ravel() for a, b in exponents(degree, side)], axis=1)


def halving(degree: int, side: int) -> Matrix:
    """From the moments of four quarters to those of a block of `side` pixels: (moments, quarter's moments, 2, 2)."""
    whole, quarter, half = basis(degree, side), basis(degree, side // 2), side // 2
    grid = whole.reshape(side, side, -1)
    steps = np.zeros((whole.shape[1], quarter.shape[1], 2, 2))
    for row, column in product(range(2), repeat=2):
        part = grid[row * half : (row + 1) * half, column * half : (column + 1) * half].reshape(half * half, -1)
        steps[:, :, row, column] = np.linalg.lstsq(quarter, part, rcond=None)[0].T / 4
    return steps


def _blocks(parts: list[Matrix]) -> Matrix:
    """Independent maps of several planes as one: (sum of outs, sum of ins, 2, 2)."""
    outs, ins = sum(p.shape[0] for p in parts), sum(p.shape[1] for p in parts)
    joined, row, column = np.zeros((outs, ins, 2, 2)), 0, 0
    for part in parts:
        joined[row : row + part.shape[0], column : column + part.shape[1]] = part
        row, column = row + part.shape[0], column + part.shape[1]
    return joined


def _set(convolution: nn.Conv2d, weight: Matrix) -> None:
    """Write a map into the first taps of a convolution; everything else becomes zero."""
    nn.init.zeros_(convolution.weight)
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    outs, ins, rows, columns = weight.shape
    offset = 1 if rows == 1 and convolution.weight.shape[2] == 3 else 0  # one tap: the middle
    taps = convolution.weight.data[:outs, :ins, offset : offset + rows, offset : offset + columns]
    taps.copy_(torch.from_numpy(weight))


def _identity(channels: int) -> Matrix:
    return np.eye(channels)[:, :, None, None]


def orthogonal() -> Matrix:
    """From monomial moments of a 16x16 block to moments of polynomials that are orthonormal over its pixels (16,16)."""
    parts = []
    for degree in DEGREES:
        _, upper = np.linalg.qr(basis(degree, 16) / 16)
        parts.append(np.linalg.inv(upper).T)
    size, start = sum(len(part) for part in parts), 0
    joined = np.zeros((size, size))
    for part in parts:
        joined[start : start + len(part), start : start + len(part)] = part
        start += len(part)
    return joined


@torch.no_grad()
def write_encoder(model: AutoencoderKL, images: Tensor) -> None:
    """Fill the encoder's weights in; the spread of the latents is evened out on sample images (B,3,H,W) in [-1,1]."""
    encoder, groups = model.encoder, model.config.norm_num_groups
    assert model.config.latent_channels == LATENTS, "one latent per moment"
    assert len(encoder.down_blocks) == 5, "blocks of 16x16 pixels"
    _set(encoder.conv_in, TO_LUMA[:, :, None, None])
    down_blocks: list[Any] = list(encoder.down_blocks)
    middle: list[Any] = list(encoder.mid_block.resnets)
    for level, block in enumerate(down_blocks):
        for resnet in block.resnets:
            nn.init.zeros_(resnet.conv2.weight)
            nn.init.zeros_(resnet.conv2.bias)
            if resnet.conv_shortcut is not None:
                _set(resnet.conv_shortcut, _identity(min(resnet.conv_shortcut.weight.shape[:2])))
        for downsample in block.downsamplers:
            _set(downsample.conv, _blocks([halving(degree, 2 ** (level + 1)) for degree in DEGREES]))
    for resnet in middle:
        nn.init.zeros_(resnet.conv2.weight)
        nn.init.zeros_(resnet.conv2.bias)
    _write_head(encoder, np.eye(LATENTS), np.zeros(LATENTS), groups)
    plain, _ = model.encode(images)
    values = plain.double().permute(0, 2, 3, 1).reshape(-1, LATENTS).cpu().numpy()
    turned = orthogonal()
    values = values @ turned.T
    evened = turned / values.std(0)[:, None] ** WHITENING
    _write_head(encoder, evened, -(values.mean(0) / values.std(0) ** WHITENING), groups)


def _write_head(encoder: Any, weight: Matrix, bias: Matrix, groups: int) -> None:
    """The last level carries every moment twice, as +m and -m, beside constants that fix the norm; SiLU then cancels.

    silu(x) - silu(-x) = x, and a group whose variance is that of its constants is only scaled by GroupNorm.
    """
    shortcut, norm, last = encoder.down_blocks[-1].resnets[0].conv_shortcut, encoder.conv_norm_out, encoder.conv_out
    width = norm.weight.shape[0]
    per_group, moments = width // groups, LATENTS // groups
    nn.init.zeros_(shortcut.weight)
    nn.init.zeros_(shortcut.bias)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    scale = ANCHOR * ((per_group - 2 * moments) / per_group) ** 0.5
    norm.weight.data.fill_(scale)
    norm.bias.data.zero_()
    for group in range(groups):
        first = group * per_group
        for i in range(moments):
            moment = group * moments + i
            plus, minus = first + 2 * i, first + 2 * i + 1
            shortcut.weight.data[plus, moment, 0, 0], shortcut.weight.data[minus, moment, 0, 0] = 1.0, -1.0
            column = torch.from_numpy(weight[:, moment]).float()
            last.weight.data[:LATENTS, plus, 1, 1], last.weight.data[:LATENTS, minus, 1, 1] = column, -column
        anchors = torch.arange(per_group - 2 * moments) % 2 * 2.0 - 1
        shortcut.bias.data[first + 2 * moments : first + per_group] = ANCHOR * anchors
    last.bias.data[:LATENTS] = torch.from_numpy(bias).float()
    last.bias.data[LATENTS:] = LOG_VARIANCE


@torch.no_grad()
def as_convolution(model: AutoencoderKL) -> tuple[Tensor, Tensor]:
    """The written encoder as one stride-16 convolution, weight (C,3,16,16) and bias (C,): 50 times cheaper on a CPU.

    Found by encoding every single pixel of a block; right to a few thousandths, as GroupNorm is almost still.
    """
    pixels = torch.eye(3 * 16 * 16, device=model.encoder.conv_in.weight.device).view(-1, 3, 16, 16)
    bias = model.encode(torch.zeros_like(pixels[:1]))[0].flatten()
    answers = model.encode(pixels)[0].flatten(1) - bias  # (768, C)
    return answers.T.reshape(-1, 3, 16, 16).contiguous(), bias
