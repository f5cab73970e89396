"""VAE decoding in overlapping tiles, for pictures whose decoding would not fit the memory.

Tiles differ slightly from the whole (norms and attention see one tile only), so the plan asks for them only where
memory demands. Neighbours overlap by a quarter and are blended linearly, as diffusers' `enable_tiling` does.
"""

import torch
from torch import Tensor

from zturbo.models.vae import AutoencoderKL

OVERLAP = 0.25


def tile_starts(length: int, tile: int) -> list[int]:
    """First positions of tiles that cover `length` with a quarter of overlap; the last one ends at the end."""
    if length <= tile:
        return [0]
    stride = int(tile * (1 - OVERLAP))
    return [*range(0, length - tile, stride), length - tile]


def blend_weights(start: int, size: int, total: int, ramp: int, like: Tensor) -> Tensor:
    """Weights (size,) of one tile along one axis: rising over `ramp` pixels at inner edges, 1 elsewhere."""
    positions = torch.arange(size, device=like.device, dtype=torch.float32) + 0.5
    weights = torch.ones_like(positions)
    if start > 0:
        weights = torch.minimum(weights, positions / ramp)
    if start + size < total:
        weights = torch.minimum(weights, (size - positions) / ramp)
    return weights


def decode_tiled(vae: AutoencoderKL, latents: Tensor, tile: int) -> Tensor:
    """Decode (B, C, h, w) in tiles of at most `tile` x `tile` latents: (B, 3, h*f, w*f) fp32."""
    height, width = latents.shape[2:]
    if height <= tile and width <= tile:
        return vae.decode(latents)
    factor = vae.config.factor
    ramp = int(tile * OVERLAP) * factor
    total = torch.zeros(latents.shape[0], 3, height * factor, width * factor, device=latents.device)
    weight = torch.zeros(height * factor, width * factor, device=latents.device)
    for top in tile_starts(height, tile):
        for left in tile_starts(width, tile):
            part = vae.decode(latents[:, :, top : top + tile, left : left + tile]).float()
            y, x, (rows, columns) = top * factor, left * factor, part.shape[2:]
            down = blend_weights(y, rows, height * factor, ramp, part)
            across = blend_weights(x, columns, width * factor, ramp, part)
            window = down[:, None] * across[None, :]
            total[:, :, y : y + rows, x : x + columns] += part * window
            weight[y : y + rows, x : x + columns] += window
    return total / weight
