"""Our pictures against diffusers' ZImagePipeline on the same folder and the same noise, in fp32 on the CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ZImagePipeline

from tests import reference
from zturbo.engine.engine import Engine, LoadOptions
from zturbo.engine.pipeline import Pipeline

PROMPTS = {
    "empty": "",
    "short": "a cat",
    "a whole block": "x" * 13,
    "one over a block": "x" * 14,
    "two languages": "一只猫 und ein Hündchen 🐶",
    "cut at 512 tokens": "a long tale " * 100,
    "special tokens in the text": "a <|im_end|> cat",
}


@pytest.fixture(scope="module")
def theirs(tiny_folder: Path) -> ZImagePipeline:
    pipe = ZImagePipeline.from_pretrained(tiny_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def ours(tiny_folder: Path) -> Pipeline:
    return Engine.load(str(tiny_folder), LoadOptions(device="cpu", dtype="float32")).pipeline


def their_picture(pipe: ZImagePipeline, prompt: str, width: int, height: int, steps: int, seed: int) -> Any:
    generator = torch.Generator("cpu").manual_seed(seed)
    result = pipe(
        prompt, width=width, height=height, num_inference_steps=steps, guidance_scale=0.0, generator=generator
    )
    return np.asarray(result.images[0])


def our_picture(pipe: Pipeline, prompt: str, width: int, height: int, steps: int, seed: int) -> Any:
    *_, last = pipe.denoise(pipe.caption(prompt), width, height, steps, seed)
    return pipe.decode(last.latents)


def difference(theirs: ZImagePipeline, ours: Pipeline, *request: Any) -> int:
    """Largest difference of any channel of any pixel, in levels of 255."""
    a, b = their_picture(theirs, *request), our_picture(ours, *request)
    assert a.shape == b.shape
    assert a.std() > 10, "a flat picture would prove nothing"
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS.keys())
def test_prompts(theirs: ZImagePipeline, ours: Pipeline, prompt: str) -> None:
    """Of 19 tokens, of 32 and 33, and of more than the 512 that are read."""
    assert difference(theirs, ours, prompt, 160, 96, 8, 42) <= 1


@pytest.mark.parametrize("steps", range(1, 9))
def test_steps(theirs: ZImagePipeline, ours: Pipeline, steps: int) -> None:
    assert difference(theirs, ours, "a cat", 128, 128, steps, 7) <= 1


@pytest.mark.parametrize(("width", "height"), [(512, 512), (64, 96), (496, 80), (16, 16), (304, 208)])
def test_sizes(theirs: ZImagePipeline, ours: Pipeline, width: int, height: int) -> None:
    """With image padding and without."""
    assert difference(theirs, ours, "a cat", width, height, 4, 3) <= 1


def test_a_batch_of_unequal_captions(theirs: ZImagePipeline, ours: Pipeline) -> None:
    """What the reference draws in one batch, we draw one by one, from the same noise."""
    prompts = ["a cat", "a much longer prompt that takes two blocks of tokens", "x" * 90]
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in (1, 2, 3)]
    batch = theirs(
        list(prompts), width=112, height=80, num_inference_steps=8, guidance_scale=0.0, generator=generators
    ).images
    for index, prompt in enumerate(prompts):
        alone = our_picture(ours, prompt, 112, 80, 8, index + 1)
        assert np.abs(np.asarray(batch[index]).astype(int) - alone).max() <= 1, prompt


@pytest.mark.parametrize("length", [19, 32, 33, 512])
def test_prompt_embeds(theirs: ZImagePipeline, ours: Pipeline, length: int) -> None:
    """Unpadded rows of our encoder against the reference's padded run."""
    prompt = "x" * (length - len(ours.tokenizer.encode("")[0]))
    expected = theirs.encode_prompt(prompt, device=torch.device("cpu"), do_classifier_free_guidance=False)[0][0]
    with torch.no_grad():
        found = ours.text_encoder.encode(ours.tokenizer.encode(prompt))[0]
    assert found.shape == expected.shape
    assert len(found) == length
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_another_vae_factor_and_patch(tmp_path: Path) -> None:
    """The embedded model's form: factor 16, patch 2, eight latent channels."""
    pipe = reference.pipeline(
        transformer=reference.transformer(in_channels=8, n_refiner_layers=1),
        vae=reference.vae(
            block_out_channels=(8, 16, 16, 32, 32), latent_channels=8, scaling_factor=0.7, shift_factor=-0.2
        ),
    )
    ours = Engine.load(str(reference.save(pipe, tmp_path)), LoadOptions(device="cpu", dtype="float32")).pipeline
    assert ours.pixels_per_token == 32
    assert difference(pipe, ours, "a cat", 224, 160, 8, 5) <= 1
