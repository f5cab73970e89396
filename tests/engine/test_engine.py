"""The engine as its callers see it: progress, seeds, cancel, plans."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from zturbo.engine.engine import Engine, LoadOptions, Picture, Progress
from zturbo.engine.offload import stream_layers
from zturbo.errors import Cancelled, DoesNotFit, WeightsNotFound
from zturbo.params import GenerationParams


@pytest.fixture(scope="module")
def engine(tiny_folder: Path) -> Engine:
    return Engine.load(str(tiny_folder), LoadOptions(device="cpu", dtype="float32"))


def request(**changes: object) -> GenerationParams:
    return GenerationParams.parse({"prompt": "a cat", "size": "512x512", "steps": 2, "seed": 7} | changes)


def draw(engine: Engine, **changes: object) -> tuple[Picture, ...]:
    *_, last = engine.draw(request(**changes))
    return last.pictures


def test_progress_tells_the_whole_story(engine: Engine) -> None:
    seen = list(engine.draw(request(num_images=2)))
    story = [(progress.stage, progress.image, progress.step) for progress in seen]
    images = [[("denoise", i, 0), ("denoise", i, 1), ("denoise", i, 2), ("decode", i, 2)] for i in range(2)]
    assert story == [("encode", 0, 0), *images[0], *images[1], ("done", 1, 2)]
    assert all((progress.images, progress.steps) == (2, 2) for progress in seen)
    timings = seen[-1].timings
    assert set(timings) == {"encode", "denoise", "decode", "total"}
    assert timings["total"] == pytest.approx(sum(timings.values()) - timings["total"], rel=0.01)


def test_a_seed_gives_the_same_bytes_again(engine: Engine) -> None:
    first, again, other = draw(engine)[0], draw(engine)[0], draw(engine, seed=8)[0]
    assert first.pixels.shape == (512, 512, 3)
    assert first.pixels.dtype == np.uint8
    assert (first.pixels == again.pixels).all()
    assert (first.pixels != other.pixels).any()


def test_image_i_is_the_seed_plus_i_drawn_alone(engine: Engine) -> None:
    together = draw(engine, num_images=3)
    assert [picture.seed for picture in together] == [7, 8, 9]
    for picture in together:
        assert (draw(engine, seed=picture.seed)[0].pixels == picture.pixels).all()


def test_a_freshly_loaded_engine_draws_the_same_bytes(engine: Engine, tiny_folder: Path) -> None:
    other = Engine.load(str(tiny_folder), LoadOptions(device="cpu", dtype="float32"))
    draw(other, prompt="something else first", seed=1)
    assert (draw(other)[0].pixels == draw(engine)[0].pixels).all()


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_cancel_takes_effect_within_one_step(engine: Engine, after: int) -> None:
    """Asked to stop after some steps, the engine starts at most one more and delivers nothing."""
    seen: list[Progress] = []

    def steps_done() -> int:
        return seen[-1].step if seen else 0

    with pytest.raises(Cancelled):
        seen.extend(engine.draw(request(steps=4), cancelled=lambda: steps_done() >= after))
    assert steps_done() <= after
    assert not any(progress.pictures for progress in seen)


def test_a_closed_generator_stops(engine: Engine) -> None:
    walk: Iterator[Progress] = engine.draw(request(steps=8))
    assert next(walk).stage == "encode"
    assert next(walk).stage == "denoise"
    walk.close()  # type: ignore[attr-defined]
    assert next(walk, None) is None


def test_drawing_does_not_leave_inference_mode_on(engine: Engine) -> None:
    for _progress in engine.draw(request()):
        assert not torch.is_inference_mode_enabled()


def test_prompts_are_kept_and_forgotten(engine: Engine) -> None:
    pipeline = engine.pipeline
    assert pipeline.caption("kept") is pipeline.caption("kept")
    for index in range(70):
        pipeline.caption(f"prompt {index}")
    assert len(pipeline._captions) == 64
    assert "kept" not in pipeline._captions


def test_the_start_up_block_names_every_choice(engine: Engine) -> None:
    block = engine.block()
    for word in ("tiny@", "cpu", "float32", "as asked", "SDPA", "GiB", "not quantized"):
        assert word in block, word


def test_the_version_is_bound_to_the_content(engine: Engine, tiny_folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(tiny_folder, tmp_path / "tiny")
    assert Engine.load(str(copy), LoadOptions(device="cpu")).model.version == engine.model.version
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert Engine.load(str(copy), LoadOptions(device="cpu")).model.version != engine.model.version


def test_too_large_a_picture_for_the_plan_is_refused(engine: Engine) -> None:
    small = Engine(engine.pipeline, engine.model, engine.machine, replace(engine.plan, max_pixels=512 * 512), "")
    assert draw(small)
    with pytest.raises(DoesNotFit, match="1024x768"):
        draw(small, size="1024x768")


@pytest.mark.parametrize("name", ["nothing-here", "/nowhere/at/all", ""])
def test_an_unknown_model_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(WeightsNotFound) as caught:
        Engine.load(name or "no-such-name")
    assert "nano" in caught.value.hint


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({"dtype": "bfloat16"}, 40),
        ({"dtype": "float16"}, 10),
        ({"dtype": "float32", "quantization": "int8"}, 60),
        ({"dtype": "float32", "quantization": "fp8"}, 60),
    ],
    ids=str,
)
def test_other_dtypes_draw_nearly_the_same_picture(
    engine: Engine, tiny_folder: Path, options: dict[str, str], limit: int
) -> None:
    """Random weights amplify rounding; what must hold is that the picture is that one and not another."""
    other = Engine.load(str(tiny_folder), LoadOptions(device="cpu", **options))  # type: ignore[arg-type]
    exact, found, stranger = draw(engine)[0].pixels, draw(other)[0].pixels, draw(engine, seed=99)[0].pixels
    distance = np.abs(exact.astype(int) - found).mean()
    assert distance < limit / 10
    assert distance < np.abs(exact.astype(int) - stranger).mean() / 4


def test_a_streamed_text_encoder_gives_the_same_embeddings(tiny_folder: Path) -> None:
    pipeline = Engine.load(str(tiny_folder), LoadOptions(device="cpu", dtype="float32")).pipeline
    ids = pipeline.tokenizer.encode("a cat")
    with torch.inference_mode():
        resident = pipeline.text_encoder.encode(ids)
        homes = {name: p.data_ptr() for name, p in pipeline.text_encoder.named_parameters()}
        stream_layers(pipeline.text_encoder, torch.device("cpu"))
        assert torch.equal(pipeline.text_encoder.encode(ids), resident)
        assert torch.equal(pipeline.text_encoder.encode(ids), resident)
    assert {name: p.data_ptr() for name, p in pipeline.text_encoder.named_parameters()} == homes
