"""Sample sheets: what the weights draw now, on one page.

python -m nano.sheet --profile cpu --folder RUN --output sheet.png
"""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from nano.captions import SEED_PROMPT
from nano.config import Folders, Profile
from nano.language import load as load_language
from nano.training import arguments, device, opened, restored, working_dtype
from nano.vae import load as load_vae
from zturbo.engine.sampling import denoise, noise, sigmas
from zturbo.engine.tokenizer import chat_prompt
from zturbo.models.text_encoder import Qwen3
from zturbo.models.transformer import ZImageTransformer
from zturbo.models.vae import AutoencoderKL, to_pixels

SHIFT = 3.0  # of the schedule
SHEET_PROMPTS: tuple[tuple[str, int, int], ...] = (
    (SEED_PROMPT, 1440, 512),
    ("a red car on the left and a yellow house on the right in a meadow", 512, 512),
    ("Two blue cats wearing hats in the snow at night.", 512, 512),
    ("an orange cat wearing sunglasses sitting in a meadow", 512, 512),
    ("a purple balloon in the city at sunset", 512, 512),
    ("three pink flowers in a forest", 512, 512),
    ("a white robot in space with a scarf", 512, 512),
    ("sailing boat, sea, sunset", 512, 512),
    ("a big green tree on the right, beach", 512, 512),
)


EXTREMES = ((2048, 2048), (1536, 1024), (1024, 1536), (2048, 1024), (1024, 2048), (2048, 512), (512, 2048), (512, 1440))
"""Width and height: the largest sizes and the narrowest."""


class Painter:
    """Everything that turns a prompt into pixels, as the engine does it in bf16, without its plans for speed."""

    def __init__(
        self,
        transformer: ZImageTransformer,
        language: Qwen3,
        tokenizer: Tokenizer,
        vae: AutoencoderKL,
        scale: tuple[float, float],
    ) -> None:
        self.transformer = deepcopy(transformer).eval().to(working_dtype())
        self.language, self.tokenizer = deepcopy(language).eval().to(working_dtype()), tokenizer
        self.vae, (self.scaling, self.shift) = deepcopy(vae).eval().to(working_dtype()), scale

    @torch.no_grad()
    def __call__(self, prompt: str, width: int, height: int, seed: int = 0, steps: int = 8) -> NDArray[np.uint8]:
        """One picture (H,W,3) uint8."""
        ids = torch.tensor(self.tokenizer.encode(chat_prompt(prompt)).ids, device=device())
        latents = noise(seed, self.vae.config.latent_channels, height // 16, width // 16).to(device())
        latents = self.denoised(latents, ids, sigmas(steps, SHIFT).to(device()))
        image = self.vae.decode((latents / self.scaling + self.shift).to(working_dtype()))
        return to_pixels(image)[0].cpu().numpy()

    @torch.no_grad()
    def denoised(self, latents: Tensor, ids: Tensor, levels: Tensor) -> Tensor:
        """Latents (B,C,h,w) fp32 at the first of these noise levels, taken to the last, for a prompt of ids (L,)."""
        caption = self.transformer.embed_caption(self.language.encode(ids[None])).expand(len(latents), -1, -1)
        modulation = self.transformer.modulation(1 - levels[:-1])
        for step in denoise(
            lambda x, i: self.transformer(x.to(working_dtype()), caption, modulation[i]), latents, levels
        ):
            latents = step.latents
        return latents


def load_painter(profile: Profile, folders: Folders, transformer: ZImageTransformer | None = None) -> Painter:
    """The painter of a run's checkpoints, with this transformer or the run's averaged one."""
    from nano.transformer import build  # it imports this file for its own sheets

    if transformer is None:
        state = restored(folders.transformer)
        if state is None:
            raise FileNotFoundError(f"{folders.transformer}: train the transformer first (python -m nano.transformer)")
        transformer = build(profile)
        transformer.load_state_dict(state["average"])
    language, tokenizer = load_language(folders, profile)
    vae, scaling, shift = load_vae(folders, profile)
    return Painter(transformer, language, tokenizer, vae, (scaling, shift))


def arrange(pictures: Sequence[NDArray[np.uint8]], columns: int, cell: int) -> NDArray[np.uint8]:
    """A page of pictures in cells of `cell` pixels; wide pictures first, alone in their row."""
    wide = [p for p in pictures if p.shape[1] > 1.6 * p.shape[0]]
    square = [
        cv2.resize(p, (cell, cell), interpolation=cv2.INTER_AREA) for p in pictures if p.shape[1] <= 1.6 * p.shape[0]
    ]
    rows = []
    for picture in wide:
        scale = cell * columns / picture.shape[1]
        rows.append(
            cv2.resize(picture, (cell * columns, round(picture.shape[0] * scale)), interpolation=cv2.INTER_AREA)
        )
    for first in range(0, len(square), columns):
        row = square[first : first + columns]
        row += [np.full((cell, cell, 3), 255, np.uint8)] * (columns - len(row))
        rows.append(np.concatenate(row, axis=1))
    return np.concatenate(rows, axis=0)


def save_sheet(
    profile: Profile, folders: Folders, transformer: ZImageTransformer, name: str, small: bool = False
) -> Path:
    """Draw the fixed prompts and write `sheets/<name>.png`; at half of their size for a stage of small pictures."""
    painter = load_painter(profile, folders, transformer)
    share = 0.5 if small else 1.0
    pictures = [
        painter(prompt, max(256, int(width * share) // 32 * 32), max(256, int(height * share) // 32 * 32), seed)
        for seed, (prompt, width, height) in enumerate(SHEET_PROMPTS)
    ]
    return write_png(folders.root / "sheets" / f"{name}.png", arrange(pictures, 4, 320))


def save_sizes(painter: Painter, path: Path, cell: int = 320) -> Path:
    """Draw two prompts by turns at the extreme sizes, each picture in a square of `cell` pixels."""
    squares = []
    for seed, (width, height) in enumerate(EXTREMES):
        picture = painter((SEED_PROMPT, "a red boat on the sea at sunset")[seed % 2], width, height, seed)
        scale = cell / max(width, height)
        small = cv2.resize(picture, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
        square = np.full((cell, cell, 3), 255, np.uint8)
        top, left = (cell - small.shape[0]) // 2, (cell - small.shape[1]) // 2
        square[top : top + small.shape[0], left : left + small.shape[1]] = small
        squares.append(square)
    return write_png(path, arrange(squares, 4, cell))


def write_png(path: Path, picture: NDArray[np.uint8]) -> Path:
    """Write an RGB picture (H,W,3)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), picture[..., ::-1])
    return path


def main() -> None:
    parser = arguments("draw a sample sheet")
    parser.add_argument("--output", type=Path, default=Path("sheet.png"))
    parsed = parser.parse_args()
    profile, folders = opened(parsed)
    painter = load_painter(profile, folders)
    write_png(
        parsed.output,
        arrange(
            [painter(prompt, width, height, seed) for seed, (prompt, width, height) in enumerate(SHEET_PROMPTS)], 4, 320
        ),
    )
    print(f"sheet: {parsed.output}")


if __name__ == "__main__":
    main()
