"""Draw the training pictures once and keep them as latents, with captions and layouts.

    python -m nano.latents --profile cpu --folder RUN

One folder per size; shards are written whole, so an interrupted run goes on with the next shard (with as many workers:
a shard's size is by their number). Drawing and encoding run in worker processes, on the CPU.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from nano import parallel
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
from zturbo.models.vae import AutoencoderKL

SHARD = 1024  # pictures, about, of each drawing process
CELLS = 4  # cells of the label map along a side of a token
PATCH = 2  # latents along a side of a token
FIRST_THING = LABEL[next(iter(CREATURES))]
EXPANDED = 0.4  # share of captions that read like expanded prompts
LONGEST = 128  # tokens of a templated caption; longer ones are left out


def token_labels(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What lies under each token: (H/8,W/8,2) -> (tokens,2), the commonest cell, things before backgrounds."""
    rows, columns = labels.shape[0] // CELLS, labels.shape[1] // CELLS
    cells = labels.reshape(rows, CELLS, columns, CELLS, 2).transpose(0, 2, 1, 3, 4).reshape(rows * columns, -1, 2)
    codes = cells[..., 0].astype(np.int32) * 16 + cells[..., 1]
    votes = (codes[:, :, None] == codes[:, None, :]).sum(2) + 8 * (cells[..., 0] >= FIRST_THING)
    best = codes[np.arange(len(codes)), votes.argmax(1)]
    return np.stack([best // 16, best % 16], axis=1).astype(np.uint8)


@dataclass(frozen=True)
class Encoder:
    """From bytes to the transformer's scale in one convolution; every drawing process has its own.

    weight: (C,3,16,16); bias: (C,).
    """

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, vae: AutoencoderKL, scaling: float, shift: float) -> "Encoder":
        """The written encoder of an autoencoder, with the scale of pixels and of latents folded in."""
        weight, bias = (part.cpu() for part in as_convolution(vae))
        return cls(weight * (scaling / 127.5), (bias - weight.sum((1, 2, 3)) - shift) * scaling)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(D,3,H,W) uint8 -> (D,C,H/16,W/16) fp16 latents."""
        return F.conv2d(images.float(), self.weight, self.bias, stride=16).half()


class Example:
    """Makes (latents, token labels, captions) of one random scene, drawn several times.

    The drawings, (D,C,h,w) and (D,tokens,2), differ in what no caption speaks of; captions: (K,LONGEST) as `_tokens`.
    """

    def __init__(
        self,
        world: World,
        size: tuple[int, int],
        captions: int,
        drawings: int,
        encode: Callable[[Tensor], Tensor],
        tokenizer: Tokenizer,
    ) -> None:
        self.world, self.size, self.captions, self.drawings = world, size, captions, drawings
        self.encode, self.tokenizer = encode, tokenizer

    def __call__(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        scene = sample_scene(self.world, rng)
        seeds = rng.choice(self.world.variants, self.drawings, replace=False)
        pictures = [draw(replace(scene, seed=int(seed)), *self.size) for seed in seeds]
        texts = [
            (expanded_caption if index < EXPANDED * self.captions else caption)(scene, rng)
            for index in range(self.captions)
        ]
        latents = self.encode(torch.stack([to_tensor(picture.image) for picture in pictures]))
        labels = np.stack([token_labels(picture.labels) for picture in pictures])
        return latents, torch.from_numpy(labels), _tokens(texts, self.tokenizer)


def _tokens(texts: list[str], tokenizer: Tokenizer) -> Tensor:
    """(captions, LONGEST) int16 ids, filled up with -1; those that are too long are left empty."""
    ids = torch.full((len(texts), LONGEST), -1, dtype=torch.int16)
    for row, text in zip(ids, texts, strict=True):
        found = tokenizer.encode(chat_prompt(text)).ids  # a batch would start threads in every drawing process
        if len(found) <= LONGEST:
            row[: len(found)] = torch.tensor(found, dtype=torch.int16)
    return ids


def bucket_folder(folders: Folders, width: int, height: int) -> Path:
    return folders.latents / f"{width}x{height}"


def fill(bucket: Bucket, profile: Profile, folders: Folders, encode: Callable[[Tensor], Tensor]) -> None:
    """Draw and encode what is missing of one bucket."""
    folder, size = bucket_folder(folders, bucket.width, bucket.height), (bucket.width, bucket.height)
    folder.mkdir(parents=True, exist_ok=True)
    world = profile.practice or profile.world
    world = world if bucket.lounging is None else replace(world, lounging=bucket.lounging)
    drawings = profile.drawings
    make = Example(world, size, profile.captions_per_scene, drawings, encode, load_tokenizer(folders))
    scenes, shard = bucket.pictures // drawings, max(1, SHARD * max(1, profile.workers) // drawings)
    at_once = max(1, min(16 // drawings, scenes))
    for index, first in enumerate(range(0, scenes, shard)):
        path = folder / f"{index:04d}.pt"
        if path.exists():
            continue
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        count, started = min(shard, scenes - first), time.monotonic()
        source = stream(
            make, at_once, profile.workers, profile.seed + 1000 * index + 4096 * bucket.width + bucket.height
        )
        while sum(len(latents) for latents, _, _ in parts) < count:
            parts.append(tuple(part.clone() for part in next(source)))  # what workers share holds a file open each
        latents, labels, captions = (torch.cat(column)[:count] for column in zip(*parts, strict=True))
        save(path, {"latents": latents, "labels": labels, "captions": captions})
        rate = drawings * count / (time.monotonic() - started)
        left = drawings * (scenes - first - count) / rate / 60
        done = f"{drawings * (first + count)}/{bucket.pictures}"
        print(f"latents {bucket.width}x{bucket.height}: {done}, {rate:.1f}/s, {left:.1f} min left", flush=True)


def fill_all(profile: Profile, folders: Folders) -> None:
    """Every bucket, in the profile's order."""
    vae, scaling, shift = load_vae(folders, profile)
    encode = Encoder.of(vae, scaling, shift)
    for bucket in profile.buckets:
        fill(bucket, profile, folders, encode)


class Batch(NamedTuple):
    """Scenes of one caption each, all of one length, in every drawing that the cache has.

    latents: (B,D,C,h,w) fp32; labels: (B,D,tokens,2) int64; ids: (B,L) int64 of the captions.
    """

    latents: Tensor
    labels: Tensor
    ids: Tensor


def nearest_drawing(latents: Tensor, noise: Tensor, kept: Tensor | None = None) -> Tensor:
    """Which drawing of each scene lies nearest to its noise: (B,D,C,h,w), (B,C,h,w) -> (B,) indices.

    Where seeds decide what prompts do not say, a model that has to guess draws several things at once. Noise that is
    paired with the nearest of the pictures it might become (multisample flow matching, Pooladian et al. 2023; Tong et
    al. 2024) says from the first step on which it is, and stays Gaussian: it is drawn before the picture is chosen.

    kept: tokens (B,K) that alone are shown to the model, and must therefore decide.
    """
    alike = (latents * noise.unsqueeze(1)).sum(2)  # (B,D,h,w); what is left out is the same for all or nearly so
    tokens = alike.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH)).sum((3, 5)).flatten(2)  # (B,D,tokens)
    if kept is not None:
        tokens = tokens.gather(2, kept.unsqueeze(1).expand(-1, tokens.shape[1], -1))
    return tokens.sum(2).argmax(1)


def chosen_drawing(latents: Tensor, labels: Tensor, noise: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Latents (B,C,h,w) and labels (B,tokens,2) of each scene's `nearest_drawing`, out of all its drawings."""
    rows, picked = torch.arange(len(latents), device=latents.device), nearest_drawing(latents, noise, kept)
    return latents[rows, picked], labels[rows, picked]


@dataclass
class Cache:
    """One bucket in the device's memory; captions are drawn by their exact length, because a batch has one length.

    latents: (N,D,C,h,w) fp16 in the transformer's scale; labels: (N,D,tokens,2) uint8; captions: (N,K,LONGEST) int16.
    """

    latents: Tensor
    labels: Tensor
    captions: Tensor

    def __post_init__(self) -> None:
        lengths = (self.captions >= 0).sum(-1).cpu()  # (N,K)
        order = lengths.flatten().argsort()
        counts = torch.bincount(lengths.flatten(), minlength=LONGEST + 1)
        self.by_length = list(order.split(counts.tolist()))
        self.shares = counts.float()
        self.shares[0] = 0.0  # captions that were too long

    @classmethod
    def load(cls, folder: Path) -> "Cache":
        """All shards of a folder; those that another process is still writing are not seen."""
        shards: list[dict[str, Any]] = [torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pt"))]
        parts = (torch.cat([shard[name] for shard in shards]) for name in ("latents", "labels", "captions"))
        return cls(*(part.to(device()) for part in parts))

    @property
    def tokens(self) -> int:
        """Image tokens of a picture."""
        return self.labels.shape[2]

    def batch(self, count: int, generator: torch.Generator) -> Batch:
        """Random scenes with a random caption of each, chosen by a generator of the CPU."""
        length = int(torch.multinomial(self.shares, 1, generator=generator))
        pairs = self.by_length[length]
        chosen = pairs[torch.randint(len(pairs), (count,), generator=generator)].to(self.latents.device)
        scene, text = chosen // self.captions.shape[1], chosen % self.captions.shape[1]
        ids = self.captions[scene, text, :length].long()
        return Batch(self.latents[scene].float(), self.labels[scene].long(), ids)


def caches(folders: Folders, buckets: Sequence[tuple[int, int, float]]) -> tuple[list[Cache], Tensor]:
    """The buckets (width, height, share) that have pictures yet, and their shares; the others may still be being drawn.

    All processes get the same ones.

    Raises:
        FileNotFoundError: none has.
    """
    found = [any(bucket_folder(folders, width, height).glob("*.pt")) for width, height, _ in buckets]
    there = [bool(parallel.agreed(float(one))) for one in found]
    missing = [f"{width}x{height}" for (width, height, _), one in zip(buckets, there, strict=True) if not one]
    if len(missing) == len(buckets):
        raise FileNotFoundError(f"{folders.latents}: draw the pictures first (python -m nano.latents)")
    if missing and not parallel.rank():
        print(f"not drawn yet, left out: {', '.join(missing)}", flush=True)
    chosen = [bucket for bucket, one in zip(buckets, there, strict=True) if one]
    loaded = [Cache.load(bucket_folder(folders, width, height)) for width, height, _ in chosen]
    return loaded, torch.tensor([share for *_, share in chosen])


def main() -> None:
    profile, folders = opened(arguments("draw and encode the training pictures").parse_args())
    fill_all(profile, folders)


if __name__ == "__main__":
    main()
