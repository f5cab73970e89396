"""The embedded model: diffusers loads its folder unchanged and draws the same picture."""

import numpy as np
import pytest
import torch
from diffusers import ZImagePipeline
from numpy.typing import NDArray

from tests.parity.test_pipeline import difference, our_picture
from zturbo.engine.catalog import NANO, local_path
from zturbo.engine.engine import Engine, LoadOptions
from zturbo.engine.pipeline import Pipeline

PROMPT = "A T-Rex relaxing on a beach, lying on a sun lounger and wearing sunglasses."
MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def theirs() -> ZImagePipeline:
    pipe = ZImagePipeline.from_pretrained(local_path(NANO), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def ours() -> Pipeline:
    return Engine.load("nano", LoadOptions(device="cpu", dtype="float32")).pipeline


@pytest.mark.parametrize(("width", "height", "steps"), [(512, 512, 8), (704, 256, 4), (256, 320, 1)])
def test_diffusers_draws_the_same(theirs: ZImagePipeline, ours: Pipeline, width: int, height: int, steps: int) -> None:
    assert difference(theirs, ours, PROMPT, width, height, steps, 7) <= 1


@pytest.mark.parametrize(("width", "height", "steps"), [(512, 512, 8), (704, 256, 4), (256, 320, 1)])
def test_diffusers_draws_what_none_draws(theirs: ZImagePipeline, width: int, height: int, steps: int) -> None:
    """With whatever passes this machine gives the level: on a CPU with a compiler, blocks and decoder in C."""
    none = Engine.load("nano", LoadOptions(device="cpu", dtype="float32", build=True)).levels["none"].pipeline
    assert difference(theirs, none, PROMPT, width, height, steps, 7) <= 1


def test_bf16_draws_nearly_the_same(ours: Pipeline) -> None:
    half = Engine.load("nano", LoadOptions(device="cpu", dtype="bfloat16")).pipeline
    exact, found = (our_picture(pipe, PROMPT, 512, 512, 8, 7).astype(int) for pipe in (ours, half))
    assert np.abs(exact - found).mean() < 3


def test_it_draws_what_is_asked_for_and_not_noise(ours: Pipeline) -> None:
    """The coarsest facts, by the picture itself: blue above and sand below on a beach, dark at night."""
    beach = our_picture(ours, "a beach on a sunny day", 512, 512, 8, 1).astype(float)
    top, bottom = beach[:128].mean(axis=(0, 1)), beach[-96:].mean(axis=(0, 1))
    assert top[2] > top[0]
    assert bottom[0] > bottom[2]
    night = our_picture(ours, "space at night", 512, 512, 8, 1)
    assert night.mean() < beach.mean() - 50


def test_a_picture_obeys_its_composition(ours: Pipeline) -> None:
    """What an expansion says of a thing's place is where it is, and what it says of its size how large it is."""

    def red(sentence: str) -> NDArray[np.intp]:
        """Columns of the pixels that are plainly red."""
        picture = our_picture(ours, f"A red house on a plain background. {sentence}", 512, 512, 8, 5).astype(int)
        return np.nonzero(picture[..., 0] - picture[..., 1:].max(-1) > 60)[1]

    left, middle, right = (
        red(f"It is {spot} of the picture.") for spot in ("on the left", "in the middle", "on the right")
    )
    assert left.mean() < 200 < middle.mean() < 312 < right.mean()
    assert red("It is big and in the middle of the picture.").size > 1.4 * middle.size


def test_its_files_move_easily() -> None:
    folder = local_path(NANO)
    assert folder is not None
    sizes = {path.name: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    assert sum(sizes.values()) < 41 * MEBIBYTE
    assert max(sizes.values()) <= 16 * MEBIBYTE
    assert (folder / "README.md").is_file()
