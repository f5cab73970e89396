"""Endless drawn pictures from worker processes, seeded: the same seed and worker count give the same pictures.

Drawing costs 5 to 30 ms per picture, so that a GPU waits for it unless many processes draw.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from nano.canvas import CELL
from nano.picture import Picture, draw
from nano.world import CREATURES, LABEL, World, sample_scene

CROP_SIZES = ((256, 256), (384, 384), (512, 512), (768, 512), (1440, 512), (1024, 768))


class Stream(IterableDataset[Any]):
    """Calls `make(rng)` for ever, with a generator of its own in every worker."""

    def __init__(self, make: Callable[[np.random.Generator], Any], seed: int) -> None:
        self.make, self.seed = make, seed

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        rng = np.random.default_rng((self.seed, worker.id if worker else 0))
        while True:
            yield self.make(rng)


def stream(make: Callable[[np.random.Generator], Any], batch: int, workers: int, seed: int) -> Iterator[Any]:
    """Batches of what `make` makes, drawn ahead by `workers` processes."""
    loader = DataLoader(
        Stream(make, seed), batch_size=batch, num_workers=workers, prefetch_factor=4 if workers else None
    )
    return iter(loader)


def to_tensor(image: np.ndarray[Any, Any]) -> Tensor:
    """(H,W,3) uint8 -> (3,H,W) uint8, contiguous."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def crop(picture: Picture, size: int, rng: np.random.Generator) -> Tensor:
    """A square (3,size,size) uint8 cut out of a picture, mostly around something that was drawn on the backdrop."""
    height, width = picture.image.shape[:2]
    y, x = int(rng.integers(height)), int(rng.integers(width))
    things = np.argwhere(picture.labels[..., 0] >= LABEL[next(iter(CREATURES))])
    if len(things) and rng.random() < 0.75:
        y, x = (int(v) * CELL for v in things[int(rng.integers(len(things)))])
    top = int(np.clip(y - rng.integers(size), 0, height - size))
    left = int(np.clip(x - rng.integers(size), 0, width - size))
    return to_tensor(picture.image[top : top + size, left : left + size])


class Crops:
    """Crops of freshly drawn scenes for the autoencoder: several of every picture, because drawing is dear."""

    def __init__(self, world: World, size: int, per_picture: int = 2) -> None:
        self.world, self.size, self.per_picture = world, size, per_picture

    def __call__(self, rng: np.random.Generator) -> Tensor:
        """(per_picture, 3, size, size) uint8."""
        width, height = CROP_SIZES[int(rng.integers(len(CROP_SIZES)))]
        picture = draw(sample_scene(self.world, rng), width, height)
        return torch.stack([crop(picture, self.size, rng) for _ in range(self.per_picture)])
