"""From a prompt to pixels on one device, top to bottom.

    caption = pipeline.caption("a cat")                       # text encoder and context refiner, cached
    for step in pipeline.denoise(caption, 1024, 768, 8, 42):  # one forward each; stop whenever you like
        ...
    pixels = pipeline.decode(step.latents)                    # (768, 1024, 3) uint8

One forward is one picture: on most devices the result of a product depends on the batch it is computed in, and a seed
must give the same bytes alone and next to others. Where several pictures are computed side by side, `Lanes` shares
the threads between them.
"""

import copy
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zturbo.engine.lanes import Lanes
from zturbo.engine.pace import Pace
from zturbo.engine.sampling import Step, denoise, extrapolate, noise, sigmas, timesteps
from zturbo.engine.tiling import decode_tiled
from zturbo.engine.tokenizer import MAX_TOKENS, PromptTokenizer
from zturbo.models.configs import SchedulerConfig
from zturbo.models.text_encoder import Qwen3
from zturbo.models.transformer import Modulation, ZImageTransformer
from zturbo.models.vae import AutoencoderKL, to_pixels

CAPTIONS_KEPT = 16


@dataclass(frozen=True, slots=True)
class Schedule:
    """Noise levels of a number of steps, and what they mean to the transformer."""

    levels: Tensor
    modulation: Modulation


class Pipeline:
    """The four networks of a model folder, placed on a device.

    Args:
        tokenizer, text_encoder, transformer, vae: loaded, in eval mode.
        scheduler: the folder's noise schedule.
        tile: decode in tiles of this many latents a side where a picture is larger; None never tiles.
        lanes: shares the processor between pictures that are computed side by side.
        level: the acceleration level that this pipeline was forked for.
    """

    def __init__(
        self,
        tokenizer: PromptTokenizer,
        text_encoder: Qwen3,
        transformer: ZImageTransformer,
        vae: AutoencoderKL,
        scheduler: SchedulerConfig,
        tile: int | None = None,
        lanes: Lanes | None = None,
        level: str = "none",
    ) -> None:
        self.tokenizer, self.text_encoder, self.transformer, self.vae = tokenizer, text_encoder, transformer, vae
        self.scheduler = scheduler
        self.tile, self.level = tile, level
        self.lanes = lanes or Lanes()
        self.device = transformer.x_pad_token.device
        self.dtype = transformer.x_pad_token.dtype
        self.vae_dtype = vae.decoder.conv_in.weight.dtype
        self.guessed: Callable[[int], frozenset[int]] = lambda _steps: frozenset()
        """Which of so many forwards are extrapolated from the two before them; an acceleration pass sets it."""
        self._captions: OrderedDict[str, Tensor] = OrderedDict()
        self._captions_lock = threading.Lock()
        self._schedules: dict[int, Schedule] = {}

    def fork(self, level: str) -> "Pipeline":
        """The same model for another level: transformer and VAE of its own, which share the weights with this one."""
        networks = (self.transformer, self.vae)
        shared = {id(one): one for network in networks for one in (*network.parameters(), *network.buffers())}
        transformer, vae = copy.deepcopy(networks, shared)
        return Pipeline(
            self.tokenizer, self.text_encoder, transformer, vae, self.scheduler, self.tile, self.lanes, level
        )

    @property
    def pixels_per_token(self) -> int:
        """Side of one image token in pixels; sizes are multiples of it."""
        return self.vae.config.factor * self.transformer.config.patch_size

    @torch.inference_mode()
    def caption(self, prompt: str) -> Tensor:
        """The prompt as the transformer reads it, (1, Lp, dim); the last 16 prompts are kept."""
        if (known := self._kept(prompt)) is not None:  # without waiting for a prompt that is being expanded
            return known
        with self.lanes.alone():
            if (known := self._kept(prompt)) is not None:
                return known
            caption = self._embed(prompt)
            with self._captions_lock:
                self._captions[prompt] = caption
                if len(self._captions) > CAPTIONS_KEPT:
                    self._captions.popitem(last=False)
            return caption

    def _kept(self, prompt: str) -> Tensor | None:
        with self._captions_lock:
            if prompt in self._captions:
                self._captions.move_to_end(prompt)
            return self._captions.get(prompt)

    def _embed(self, prompt: str) -> Tensor:
        limit = min(MAX_TOKENS, self.transformer.config.max_caption_tokens)
        ids = self.tokenizer.encode(prompt, limit).to(self.text_encoder.model.embed_tokens.weight.device)
        return self.transformer.embed_caption(self.text_encoder.encode(ids).to(self.device, self.dtype))

    def forget_captions(self) -> None:
        """Drop the kept captions, as after a change of the text encoder."""
        with self._captions_lock:
            self._captions.clear()

    @torch.inference_mode()
    def schedule(self, steps: int) -> Schedule:
        """Noise levels and modulation tables of a number of steps, computed once."""
        if (known := self._schedules.get(steps)) is not None:
            return known
        with self.lanes.alone():
            if steps not in self._schedules:
                levels = sigmas(steps, self.scheduler.shift)
                times = timesteps(levels, self.scheduler.num_train_timesteps).to(self.device)
                self._schedules[steps] = Schedule(levels.to(self.device), self.transformer.modulation(times))
            return self._schedules[steps]

    def denoise(self, caption: Tensor, width: int, height: int, steps: int, seed: int) -> Iterator[Step]:
        """One picture, step by step.

        Args:
            caption: of `caption`.
            width, height: pixels, multiples of `pixels_per_token`.
            steps: forwards of the network, from 1.
            seed: decides the noise (`sampling.noise`).

        Raises:
            ValueError: width or height is not a multiple of `pixels_per_token`.
        """
        if width % self.pixels_per_token or height % self.pixels_per_token:
            raise ValueError(f"sizes are multiples of {self.pixels_per_token}, received {width}x{height}")
        factor, channels = self.vae.config.factor, self.transformer.config.in_channels
        first = noise(seed, channels, height // factor, width // factor).to(self.device)
        schedule, side = self.schedule(steps), self.pixels_per_token
        rope = self.transformer.rope(height // side, width // side, caption.shape[1], self.device)
        shape = f"a step at {width}x{height} with {caption.shape[1]} caption slots, level {self.level}"

        guessed, known = self.guessed(steps), deque[tuple[Tensor, Tensor]](maxlen=2)

        def predict(latents: Tensor, index: int) -> Tensor:
            if index in guessed:
                return extrapolate(known[0], known[1], schedule.levels[index])
            step = (latents.to(self.dtype), caption, schedule.modulation[index], rope)
            velocity = self.lanes.compute(shape, lambda: self.transformer(*step))
            known.append((schedule.levels[index], velocity))
            return velocity

        walk, pace = denoise(predict, first, schedule.levels), Pace.on(self.device)
        while (step := self._advance(walk)) is not None:
            pace.keep()
            yield step

    @torch.inference_mode()
    def _advance(self, walk: Iterator[Step]) -> Step | None:
        """The next step; inference mode and the one thread must not stay on in the caller's code between two steps."""
        with self.lanes.between():
            return next(walk, None)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
        """Pixels (H, W, 3) uint8 of latents (1, C, h, w) fp32."""
        shape = f"the decoding of {latents.shape[3]}x{latents.shape[2]} latents, level {self.level}"
        with self.lanes.between():
            z = self.vae.to_vae_scale(latents.to(self.vae_dtype)).contiguous(memory_format=torch.channels_last)
            images = self.lanes.compute(shape, lambda: self._decoded(z))
            pixels: np.ndarray[tuple[int, int, int], np.dtype[np.uint8]] = to_pixels(images)[0].cpu().numpy()
        return pixels

    def _decoded(self, z: Tensor) -> Tensor:
        return self.vae.decode(z) if self.tile is None else decode_tiled(self.vae, z, self.tile)
