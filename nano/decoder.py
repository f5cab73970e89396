"""Train the decoder on, with the latents that the transformer draws in place of the encoder's.

    python -m nano.decoder --profile cpu --folder RUN [--minutes M]

What eight steps draw is never quite the latents of a picture: blocks beside each other disagree on where an edge runs,
and a decoder that has seen the encoder's alone draws the disagreement. So drawings are noised to a level of the
schedule, the transformer takes the steps that are left, and the decoder learns to give the drawings back. As it starts
late in the schedule, the composition stays, and the two still belong together. The encoder and the scales stay as they
are, and with them the transformer and all cached latents.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from nano.canvas import CELL
from nano.captions import caption
from nano.config import Finish, Folders, Profile
from nano.drawing import CROP_SIZES, stream, to_tensor
from nano.latents import FIRST_THING, Encoder
from nano.picture import Picture, draw
from nano.sheet import SHIFT, Painter, load_painter
from nano.training import Average, Run, arguments, cosine, device, fingerprint, opened, restored, save
from nano.transformer import VISITED
from nano.vae import EDGE_WEIGHT, errors, optimizers
from nano.vae import load as load_vae
from nano.world import World, sample_scene
from zturbo.engine.sampling import sigmas
from zturbo.engine.tokenizer import chat_prompt

FIRST_STEPS = (8, 7, 6, 5, 4)  # of eight, where the transformer takes over: noise levels 0, 0.3, 0.5, 0.64, 0.75
SHARES = (0.1, 0.2, 0.3, 0.25, 0.15)
BLOCK = 16  # pixels along a side of a latent


class Drawn(NamedTuple):
    """One scene, drawn several times.

    images: (D,3,H,W) uint8; ids: (L,) token ids of a caption; corners: (D,crops,2) top and left of crops, in latents.
    """

    images: Tensor
    ids: Tensor
    corners: Tensor


class Scenes:
    """Makes `Drawn` of random scenes at random sizes."""

    def __init__(self, world: World, tokenizer: Tokenizer, drawings: int, crops: int, crop: int) -> None:
        self.world, self.tokenizer, self.drawings, self.crops, self.crop = world, tokenizer, drawings, crops, crop

    def __call__(self, rng: np.random.Generator) -> Drawn:
        scene = sample_scene(self.world, rng)
        width, height = CROP_SIZES[int(rng.integers(len(CROP_SIZES)))]
        seeds = rng.choice(self.world.variants, self.drawings, replace=False)
        pictures = [draw(replace(scene, seed=int(seed)), width, height) for seed in seeds]
        ids = self.tokenizer.encode(chat_prompt(caption(scene, rng))).ids
        corners = np.stack([[self._corner(picture, rng) for _ in range(self.crops)] for picture in pictures])
        images = torch.stack([to_tensor(picture.image) for picture in pictures])
        return Drawn(images, torch.tensor(ids), torch.from_numpy(corners))

    def _corner(self, picture: Picture, rng: np.random.Generator) -> tuple[int, int]:
        """Of a crop, mostly around something that was drawn on the backdrop."""
        height, width = picture.image.shape[:2]
        y, x = int(rng.integers(height)), int(rng.integers(width))
        things = np.argwhere(picture.labels[..., 0] >= FIRST_THING)
        if len(things) and rng.random() < 0.85:
            y, x = (int(v) * CELL for v in things[int(rng.integers(len(things)))])
        top = int(np.clip(y - rng.integers(self.crop), 0, height - self.crop))
        left = int(np.clip(x - rng.integers(self.crop), 0, width - self.crop))
        return top // BLOCK, left // BLOCK


class Redrawer:
    """Takes the last steps of a sampler with the run's transformer."""

    def __init__(self, painter: Painter, encode: Encoder, seed: int) -> None:
        self.painter, self.encode = painter, encode
        self.levels = sigmas(VISITED, SHIFT).to(device())
        self.generator = torch.Generator(device()).manual_seed(seed)

    def __call__(self, images: Tensor, ids: Tensor, first: int) -> Tensor:
        """Latents (D,C,h,w) fp32 of drawings (D,3,H,W) uint8 of one caption, noised and drawn again from a step on."""
        latents, levels = self.encode(images).float().to(device()), self.levels[first:]
        if first == VISITED:
            return latents
        noise = torch.randn(latents.shape, generator=self.generator, device=device())
        return self.painter.denoised(torch.lerp(latents, noise, levels[0]), ids.to(device()), levels)


def cut(pictures: Tensor, corners: Tensor, side: int, scale: int = 1) -> Tensor:
    """Squares of `side` * `scale` out of (D,C,H,W), their corners (D,crops,2) given in units of `scale`."""
    return torch.stack([
        picture[:, top * scale : (top + side) * scale, left * scale : (left + side) * scale]
        for picture, places in zip(pictures, corners.tolist(), strict=True)
        for top, left in places
    ])  # fmt: skip


class Finisher:
    """All the state of the decoder's last training, and how it is saved and restored."""

    def __init__(self, profile: Profile, folders: Folders, minutes: float, plan: Finish) -> None:
        self.path, self.side = folders.decoder, profile.vae_crop // BLOCK
        self.model, self.scaling, self.shift = load_vae(folders, profile)
        self.model.decoder.requires_grad_(True)
        self.average, self.optimizers = Average(self.model, horizon=200), optimizers(self.model, plan.rate)
        self.run = Run("decoder", plan.steps, minutes, profile.checkpoint_every_s)
        self.of = drawn_by(folders)
        if (state := restored(self.path)) and state.get("of") == self.of:  # else of what other weights draw
            self.model.load_state_dict(state["model"])
            self.average.model.load_state_dict(state["average"])
            self.optimizers.load_state_dict(state["optimizers"])
            self.average.steps = self.run.step = self.run.first = state["step"]
            self.run.spent_s = state["spent_s"]
        seed = 1000 * (profile.seed + self.run.step) + 91
        painter, encode = load_painter(profile, folders), Encoder.of(self.model, self.scaling, self.shift)
        self.redrawn, self.chance = Redrawer(painter, encode, seed), np.random.default_rng(seed)
        make = Scenes(
            profile.practice or profile.world, painter.tokenizer, profile.drawings, plan.crops, profile.vae_crop
        )
        self.source: Iterator[Drawn] = stream(make, 1, profile.workers, seed)

    def step(self) -> tuple[Tensor, Tensor]:
        """One step on one scene; returns its mean absolute error and edge error."""
        images, ids, corners = (part[0] for part in next(self.source))
        latents = self.redrawn(images, ids, int(self.chance.choice(FIRST_STEPS, p=SHARES)))
        targets = cut(images, corners, self.side, BLOCK).to(device()).float() / 127.5 - 1
        pixels, edges = errors(
            self.model,
            cut(latents, corners, self.side) / self.scaling + self.shift,
            targets.contiguous(memory_format=torch.channels_last),
        )
        (pixels + EDGE_WEIGHT * edges).backward()
        self.optimizers.step(cosine(self.run.progress, floor=0.02))
        self.average.update(self.model)
        return pixels.detach(), edges.detach()

    def save(self) -> None:
        save(
            self.path,
            {
                "model": self.model.state_dict(),
                "average": self.average.model.state_dict(),
                "optimizers": self.optimizers.state_dict(),
                "step": self.run.step,
                "spent_s": self.run.elapsed_s,
                "of": self.of,
            },
        )


def drawn_by(folders: Folders) -> str:
    """Which transformer a decoder learns from.

    Raises:
        FileNotFoundError: there is none yet.
    """
    if (state := restored(folders.transformer)) is None:
        raise FileNotFoundError(f"{folders.transformer}: train the transformer first (python -m nano.transformer)")
    return fingerprint(state["average"])


def finish(profile: Profile, folders: Folders, minutes: float) -> None:
    """Train the decoder on, and put it in the place of the run's; the one before is kept beside it.

    Raises:
        FileNotFoundError: there is no autoencoder or no transformer yet.
    """
    plan, state = profile.finish, restored(folders.vae)
    if plan is None or (state and state.get("finished") == drawn_by(folders)):
        return
    finisher = Finisher(profile, folders, minutes, plan)
    assert state is not None, "the finisher has read it"
    while not finisher.run.done:
        pixels, edges = finisher.step()
        finisher.run.tick(l1=pixels, edges=edges)
        if finisher.run.due():
            finisher.save()
    save(folders.vae.with_name("first-vae.pt"), state)
    model = finisher.average.model
    weights, fresh = model.state_dict(), optimizers(model).state_dict()
    save(folders.vae, {**state, "model": weights, "average": weights, "optimizers": fresh, "finished": finisher.of})


def main() -> None:
    parsed = arguments("train the decoder on what the transformer draws").parse_args()
    profile, folders = opened(parsed)
    finish(profile, folders, parsed.minutes)


if __name__ == "__main__":
    main()
