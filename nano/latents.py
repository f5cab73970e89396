"""Draw the training pictures once and keep them as latents, with captions and layouts.

    python -m nano.latents --profile cpu --folder RUN

One folder per size; shards are written whole, so an interrupted run goes on with the next shard. Drawing runs in worker
processes while the device encodes.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from nano.captions import caption, expanded_caption
from nano.config import Bucket, Folders, Profile
from nano.drawing import stream, to_tensor
from nano.moments import as_convolution
from nano.picture import draw
from nano.tokenizer import load as load_tokenizer
from nano.training import arguments, device, opened, save
from nano.vae import load as load_vae
from nano.world import CREATURES, LABEL, World, sample_scene
from zturbo.engine.tokenizer import chat_prompt

SHARD = 1024  # pictures
CELLS = 4  # cells of the label map along a side of a token
FIRST_THING = LABEL[next(iter(CREATURES))]
EXPANDED = 0.25  # share of captions that read like expanded prompts
LONGEST = 128  # tokens of a templated caption; longer ones are left out


def token_labels(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What lies under each token: (H/8,W/8,2) -> (tokens,2), the commonest cell, things before backgrounds."""
    rows, columns = labels.shape[0] // CELLS, labels.shape[1] // CELLS
    cells = labels.reshape(rows, CELLS, columns, CELLS, 2).transpose(0, 2, 1, 3, 4).reshape(rows * columns, -1, 2)
    codes = cells[..., 0].astype(np.int32) * 16 + cells[..., 1]
    votes = (codes[:, :, None] == codes[:, None, :]).sum(2) + 8 * (cells[..., 0] >= FIRST_THING)
    best = codes[np.arange(len(codes)), votes.argmax(1)]
    return np.stack([best // 16, best % 16], axis=1).astype(np.uint8)


class Example:
    """Makes (image, token labels, captions joined by newlines) of one random scene."""

    def __init__(self, world: World, width: int, height: int, captions: int) -> None:
        self.world, self.width, self.height, self.captions = world, width, height, captions

    def __call__(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, str]:
        scene = sample_scene(self.world, rng)
        picture = draw(scene, self.width, self.height)
        texts = [
            (expanded_caption if index < EXPANDED * self.captions else caption)(scene, rng)
            for index in range(self.captions)
        ]
        return to_tensor(picture.image), torch.from_numpy(token_labels(picture.labels)), "\n".join(texts)


def _tokens(texts: list[str], tokenizer: Tokenizer) -> Tensor:
    """(pictures, captions, LONGEST) int16 ids, filled up with -1."""
    pictures = [text.split("\n") for text in texts]
    flat = tokenizer.encode_batch([chat_prompt(line) for lines in pictures for line in lines])
    ids = torch.full((len(flat), LONGEST), -1, dtype=torch.int16)
    for row, item in zip(ids, flat, strict=True):
        if len(item.ids) <= LONGEST:
            row[: len(item.ids)] = torch.tensor(item.ids, dtype=torch.int16)
    return ids.view(len(pictures), -1, LONGEST)


def bucket_folder(folders: Folders, width: int, height: int) -> Path:
    return folders.latents / f"{width}x{height}"


def fill(bucket: Bucket, profile: Profile, folders: Folders, encode: Callable[[Tensor], Tensor]) -> None:
    """Draw and encode what is missing of one bucket."""
    folder, tokenizer = bucket_folder(folders, bucket.width, bucket.height), load_tokenizer(folders)
    folder.mkdir(parents=True, exist_ok=True)
    world = profile.practice or profile.world
    world = world if bucket.lounging is None else replace(world, lounging=bucket.lounging)
    make = Example(world, bucket.width, bucket.height, profile.captions_per_picture)
    at_once = max(1, min(16, bucket.pictures, 2**20 // (bucket.width * bucket.height)))
    for index, first in enumerate(range(0, bucket.pictures, SHARD)):
        path = folder / f"{index:04d}.pt"
        if path.exists():
            continue
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        count, started = min(SHARD, bucket.pictures - first), time.monotonic()
        source = stream(make, at_once, profile.workers, profile.seed + 1000 * index + bucket.width * 7 + bucket.height)
        while sum(len(latents) for latents, _, _ in parts) < count:
            images, labels, texts = next(source)
            parts.append((encode(images).half().cpu(), labels, _tokens(list(texts), tokenizer)))
        latents, labels, captions = (torch.cat(column)[:count] for column in zip(*parts, strict=True))
        save(path, {"latents": latents, "labels": labels, "captions": captions})
        rate = count / (time.monotonic() - started)
        left = (bucket.pictures - first - count) / rate / 60
        done = f"{first + count}/{bucket.pictures}"
        print(f"latents {bucket.width}x{bucket.height}: {done}, {rate:.1f}/s, {left:.1f} min left", flush=True)


def fill_all(profile: Profile, folders: Folders) -> None:
    """Every bucket of the profile, smallest first."""
    vae, scaling, shift = load_vae(folders, profile)

    weight, bias = as_convolution(vae)

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        pixels = images.to(device(), non_blocking=True).float() / 127.5 - 1
        return (F.conv2d(pixels, weight, bias, stride=16) - shift) * scaling

    for bucket in profile.buckets:
        fill(bucket, profile, folders, encode)


@dataclass
class Cache:
    """One bucket in memory; captions are drawn by their exact length, because a batch has one length.

    latents: (N,C,h,w) fp16 in the transformer's scale; labels: (N,tokens,2) uint8; captions: (N,K,LONGEST) int16.
    """

    latents: Tensor
    labels: Tensor
    captions: Tensor

    def __post_init__(self) -> None:
        lengths = (self.captions >= 0).sum(-1)  # (N,K)
        order = lengths.flatten().argsort()
        counts = torch.bincount(lengths.flatten(), minlength=LONGEST + 1)
        self.by_length = list(order.split(counts.tolist()))
        self.shares = counts.float()
        self.shares[0] = 0.0  # captions that were too long

    @classmethod
    def load(cls, folder: Path) -> "Cache":
        """All shards of a folder; those that another process is still writing are not seen."""
        shards: list[dict[str, Any]] = [torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pt"))]
        return cls(*(torch.cat([shard[name] for shard in shards]) for name in ("latents", "labels", "captions")))

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (count,C,h,w) fp32, labels (count,tokens,2) int64, caption ids (count,L) int64 of one length L."""
        length = int(torch.multinomial(self.shares, 1, generator=generator))
        pairs = self.by_length[length]
        chosen = pairs[torch.randint(len(pairs), (count,), generator=generator)]
        picture, text = chosen // self.captions.shape[1], chosen % self.captions.shape[1]
        return self.latents[picture].float(), self.labels[picture].long(), self.captions[picture, text, :length].long()


def main() -> None:
    profile, folders = opened(arguments("draw and encode the training pictures").parse_args())
    fill_all(profile, folders)


if __name__ == "__main__":
    main()
