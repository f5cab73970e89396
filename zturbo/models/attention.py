"""Rotary positions and attention of the S3-DiT: pure functions over tensors.

Positions have three axes (sequence or frame, row, column); each axis owns a share of every head's channels. Pairs of
channels are adjacent (x[2j], x[2j+1]) and are rotated in fp32, as the reference does (Su et al. 2021, RoFormer;
Z-Image's `RopeEmbedder`).
"""

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from zturbo.models.configs import SEQUENCE_MULTIPLE

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(B,heads,Sq,D), (B,heads,S,D), (B,heads,S,D) -> (B,heads,Sq,D): softmax(q k^T / sqrt(D)) v, not causal."""


def round_up(length: int) -> int:
    """The next multiple of 32, which is the number of slots that `length` tokens take."""
    return -(-length // SEQUENCE_MULTIPLE) * SEQUENCE_MULTIPLE


def position_ids(rows: int, columns: int, caption_slots: int) -> Tensor:
    """Position of every slot of the unified sequence [image | caption].

    Args:
        rows, columns: the grid of image tokens.
        caption_slots: caption tokens with their padding, a multiple of 32.

    Returns:
        (S, 3) int64: image tokens (caption_slots + 1, row, column), image pads (0, 0, 0), caption slots (1 + i, 0, 0).
    """
    image = torch.zeros(round_up(rows * columns), 3, dtype=torch.int64)
    grid = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).view(rows * columns, 2)
    image[: rows * columns, 0] = caption_slots + 1
    image[: rows * columns, 1:] = grid
    caption = torch.zeros(caption_slots, 3, dtype=torch.int64)
    caption[:, 0] = torch.arange(1, caption_slots + 1)
    return torch.cat((image, caption))


def rope_table(ids: Tensor, axes_dims: tuple[int, ...], theta: float) -> Tensor:
    """cos and sin of every slot's angles; angles in float64, rounded to fp32 before cos and sin, as the reference does.

    Args:
        ids: (S, axes) positions.
        axes_dims: channels of a head that each axis owns, all even.

    Returns:
        (S, sum(axes_dims) / 2, 2) fp32, cos first.
    """
    angles = []
    for axis, dim in enumerate(axes_dims):
        frequencies = theta ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        angles.append(torch.outer(ids[:, axis].double(), frequencies).float())
    angle = torch.cat(angles, dim=1)
    return torch.stack((angle.cos(), angle.sin()), dim=-1)


@lru_cache(maxsize=8)
def unified_rope(
    rows: int, columns: int, caption_slots: int, axes_dims: tuple[int, ...], theta: float, device: torch.device
) -> Tensor:
    """`rope_table` of the whole sequence on a device, kept for the sizes drawn lately."""
    with torch.inference_mode(False):  # a table made while drawing must also serve a trainer
        return rope_table(position_ids(rows, columns, caption_slots), axes_dims, theta).to(device)


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate adjacent channel pairs: (B,S,heads,D) with a table (S, D/2, 2), or one for each (B, S, D/2, 2).

    Uncompiled, the pairs are multiplied as complex numbers, one pass instead of seven (8x faster on a CPU, the same
    bits); a compiler fuses the real form, which is also the one that MPS has.
    """
    pairs, table = x.float().unflatten(-1, (-1, 2)), rope.unsqueeze(-3)  # (B,S,heads,D/2,2), (S,1,D/2,2)
    if not (torch.compiler.is_compiling() or x.device.type == "mps"):
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(table))
    else:
        (even, odd), (cos, sin) = pairs.unbind(-1), table.unbind(-1)
        turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2).to(x.dtype)


def sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """PyTorch's scaled dot product attention, which picks the kernel for the device."""
    return F.scaled_dot_product_attention(query, key, value)
