"""The engine as its callers see it: progress, seeds, cancel, plans."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import reference
from zturbo.engine import losses
from zturbo.engine.engine import Engine, LoadOptions
from zturbo.engine.offload import stream_layers
from zturbo.engine.progress import Picture, Progress, preview_steps
from zturbo.errors import Cancelled, DeviceLost, DoesNotFit, InvalidInput, WeightsError, WeightsNotFound, ZTurboError
from zturbo.params import GenerationParams


@pytest.fixture(scope="module")
def engine(tiny_folder: Path) -> Engine:
    return Engine.load(str(tiny_folder), LoadOptions(device="cpu", dtype="float32"))


def request(**changes: object) -> GenerationParams:
    values = {"prompt": "a cat", "size": "512x512", "steps": 2, "seed": 7, "prompt_expansion": False}
    return GenerationParams.parse(values | changes)


def draw(engine: Engine, **changes: object) -> tuple[Picture, ...]:
    *_, last = engine.draw(request(**changes))
    return last.pictures


def test_progress_tells_the_whole_story(engine: Engine) -> None:
    seen = list(engine.draw(request(num_images=2)))
    story = [(progress.stage, progress.image, progress.step) for progress in seen]
    stages = [("denoise", 0), ("denoise", 1), ("denoise", 2), ("decode", 2), ("drawn", 2)]
    images = [(stage, image, step) for image in range(2) for stage, step in stages]
    assert story == [("encode", 0, 0), *images, ("done", 1, 2)]
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


def test_what_is_kept_waits_for_no_expansion(engine: Engine) -> None:
    """Another request's prompt may be expanded for seconds, by the same encoder."""
    pipeline = engine.pipeline
    known = pipeline.caption("known"), pipeline.schedule(3)
    found: list[object] = []
    with pipeline.lanes.alone():
        asking = threading.Thread(target=lambda: found.extend((pipeline.caption("known"), pipeline.schedule(3))))
        asking.start()
        asking.join(30)
    assert found == list(known)


def test_prompts_are_kept_and_forgotten(engine: Engine) -> None:
    pipeline = engine.pipeline
    assert pipeline.caption("kept") is pipeline.caption("kept")
    for index in range(70):
        pipeline.caption(f"prompt {index}")
    assert len(pipeline._captions) == 16
    assert "kept" not in pipeline._captions


def test_the_start_up_block_names_every_choice(engine: Engine) -> None:
    block = engine.block()
    for word in ("tiny@", "cpu", "float32", "as asked", "SDPA", "GiB", "not quantized"):
        assert word in block, word


def test_the_version_is_bound_to_the_content(engine: Engine, tiny_folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(tiny_folder, tmp_path / "tiny")
    assert Engine.load(str(copy), LoadOptions(device="cpu")).model.version == engine.model.version
    for part in ("vae/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json"):
        data = (copy / part).read_bytes()
        (copy / part).write_bytes(data[:-1] + (b" }" if part.endswith("json") else bytes([data[-1] ^ 1])))
        assert Engine.load(str(copy), LoadOptions(device="cpu")).model.version != engine.model.version, part
        (copy / part).write_bytes(data)


@pytest.mark.parametrize("error", [torch.AcceleratorError, RuntimeError])
@pytest.mark.parametrize("lost", [True, False])
def test_a_device_that_failed_for_good_is_told_apart(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, lost: bool, error: type[RuntimeError]
) -> None:
    """By asking it: after an illegal access Triton raises plain errors, and others may be of one launch alone."""

    def fail(*_: object) -> None:
        raise error("CUDA error: an illegal memory access was encountered\nmore of it")

    monkeypatch.setattr(type(engine.pipeline), "decode", fail)
    monkeypatch.setattr(losses, "is_lost", lambda _device: lost)
    told = "the device failed: CUDA error: an illegal memory access was encountered\n" if lost else "more of it"
    with pytest.raises(DeviceLost if lost else error, match=told):
        draw(engine)


def test_a_level_whose_making_loses_the_device_is_told_as_well(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")

    monkeypatch.setattr(type(engine.levels), "__getitem__", fail)
    monkeypatch.setattr(losses, "is_lost", lambda _device: True)
    with pytest.raises(DeviceLost, match="Triton Error"):
        draw(engine)


def test_a_processor_is_never_lost() -> None:
    assert not losses.is_lost(torch.device("cpu"))


def test_too_large_a_picture_for_the_plan_is_refused(engine: Engine) -> None:
    small = Engine(engine.pipeline, engine.model, engine.machine, replace(engine.plan, max_pixels=512 * 512))
    assert draw(small)
    with pytest.raises(DoesNotFit, match="1024x768"):
        draw(small, size="1024x768")


@pytest.mark.parametrize("name", ["nothing-here", "/nowhere/at/all"])
def test_an_unknown_model_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(WeightsNotFound) as caught:
        Engine.load(name)
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
    """Its layers compute with visiting copies, and their own weights are home again afterwards."""
    pipeline = Engine.load(str(tiny_folder), LoadOptions(device="cpu", dtype="float32")).pipeline
    ids, encoder = pipeline.tokenizer.encode("a cat"), pipeline.text_encoder
    visiting: list[int] = []
    with torch.inference_mode():
        resident = encoder.encode(ids)
        stream_layers(encoder, torch.device("cpu"))
        homes = {name: parameter.data_ptr() for name, parameter in encoder.named_parameters()}
        down = encoder.get_submodule("model.layers.0.mlp.down_proj")
        down.register_forward_hook(lambda *_: visiting.append(down.get_parameter("weight").data_ptr()))
        assert torch.equal(encoder.encode(ids), resident)
        assert torch.equal(encoder.encode(ids), resident)
    assert {name: parameter.data_ptr() for name, parameter in encoder.named_parameters()} == homes
    assert len(visiting) == 2
    assert homes["model.layers.0.mlp.down_proj.weight"] not in visiting


def test_values_that_are_not_finite_are_an_error(tiny_folder: Path) -> None:
    """What half precision does to some models must not leave as a black picture."""
    broken = Engine.load(str(tiny_folder), LoadOptions(device="cpu", dtype="float32"))
    with torch.no_grad():
        broken.pipeline.transformer.get_parameter("layers.0.adaLN_modulation.0.bias").fill_(float("nan"))
    with pytest.raises(ZTurboError, match="not finite, computed in float32"):
        draw(broken)


def test_parts_of_different_models_are_refused(tmp_path: Path) -> None:
    folder = reference.save(reference.pipeline(vae=reference.vae(latent_channels=4)), tmp_path / "vae")
    with pytest.raises(WeightsError, match="draws 16 latent channels, the VAE decodes 4"):
        Engine.load(str(folder))
    folder = reference.save(reference.pipeline(text_encoder=reference.text_encoder(vocab_size=100)), tmp_path / "text")
    with pytest.raises(WeightsError, match="the tokenizer has 259 tokens, the text encoder knows 100"):
        Engine.load(str(folder))


def test_sizes_that_the_models_tokens_do_not_divide_are_refused(tmp_path: Path) -> None:
    vae = reference.vae(block_out_channels=(8, 8, 8, 8, 16, 16))
    large_tokens = Engine.load(str(reference.save(reference.pipeline(vae=vae), tmp_path)))
    with pytest.raises(InvalidInput, match="multiples of 64 pixels; got 544x544"):
        draw(large_tokens, size="544x544")


@pytest.mark.parametrize(
    ("steps", "previews", "expected"),
    [(8, 3, {2, 4, 6}), (8, 0, set()), (1, 3, set()), (2, 3, {1}), (8, 1, {4}), (3, 2, {1, 2})],
)
def test_previews_are_spread_and_never_the_last_step(steps: int, previews: int, expected: set[int]) -> None:
    assert preview_steps(steps, previews) == expected


def test_previews_come_closer_to_the_picture_and_do_not_change_it(engine: Engine) -> None:
    *seen, last = engine.draw(request(steps=6), previews=3)
    previews = [progress.preview for progress in seen if progress.preview is not None]
    picture = last.pictures[0].pixels
    assert len(previews) == 3
    assert (draw(engine, steps=6)[0].pixels == picture).all()
    distances = [np.abs(preview.astype(int) - picture).mean() for preview in previews]
    assert distances[-1] < distances[0]


def test_loading_does_not_import_the_compiler() -> None:
    """One careless initialisation on the meta device would cost every start two seconds."""
    code = (
        "import sys; from zturbo.engine.engine import Engine; Engine.load('nano'); "
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
