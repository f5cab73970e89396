"""Levels as lists of passes: what is chosen, what is told, and that one engine draws all of them at once."""

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from zturbo.acceleration import levels
from zturbo.acceleration.levels import Level, Levels, Pass, build_passes
from zturbo.engine.engine import Engine, LoadOptions
from zturbo.engine.pipeline import Pipeline
from zturbo.params import ACCELERATIONS, GenerationParams


@pytest.fixture(scope="module")
def engine(tiny_folder: Path) -> Engine:
    return Engine.load(str(tiny_folder), LoadOptions(device="cpu", dtype="float32"))


def darker(pipeline: Pipeline) -> None:
    bias = pipeline.vae.decoder.get_parameter("conv_out.bias")
    pipeline.vae.decoder.conv_out.bias = torch.nn.Parameter(bias - 1, requires_grad=False)


def a_pass(name: str, unfit: str | None = None, bytes_needed: int = 0, build: Callable[[], None] | None = None) -> Pass:
    return Pass(name, False, lambda _pipeline: unfit, darker, lambda _pipeline: bytes_needed, build)


def test_a_level_changes_a_fork_and_shares_the_weights(engine: Engine) -> None:
    before = engine.pipeline.vae.decoder.get_parameter("conv_out.bias").clone()
    level = Levels(engine.pipeline, table={"none": (), "regular": (a_pass("darker"),), "high": ()})["regular"]
    ours, theirs = (dict(one.vae.named_parameters()) for one in (level.pipeline, engine.pipeline))
    differing = [name for name in theirs if theirs[name] is not ours[name]]
    assert differing == ["decoder.conv_out.bias"]
    assert torch.equal(engine.pipeline.vae.decoder.get_parameter("conv_out.bias"), before)
    assert level.added_bytes == before.nbytes
    assert all(
        a is b
        for a, b in zip(engine.pipeline.transformer.parameters(), level.pipeline.transformer.parameters(), strict=True)
    )


def test_a_level_that_gains_nothing_draws_as_a_lower_one_and_says_so(engine: Engine) -> None:
    one = a_pass("one")
    table = {"none": (), "regular": (one,), "high": (one, a_pass("two", "no such products here"))}
    made = Levels(engine.pipeline, table=table)
    high = made["high"]
    assert (high.name, high.drawn) == ("high", "regular")
    assert high.pipeline is made["regular"].pipeline
    assert str(high) == "draws as regular; no two: no such products here"
    assert str(Levels(engine.pipeline, table=dict.fromkeys(ACCELERATIONS, ()))["regular"]) == "draws as none"


def test_a_pass_that_stands_in_for_another_is_the_same_pass(engine: Engine) -> None:
    """Without the better one `high` is what `regular` is, and takes no memory of its own."""
    one = a_pass("one", bytes_needed=2**20)
    for unfit, passes in (("no such products here", ("one",)), (None, ("better",))):
        better = a_pass("better", unfit)
        made = Levels(engine.pipeline, 2**20, {"none": (), "regular": (one,),
                                               "high": (better, replace(one, instead_of=better))})  # fmt: skip
        assert made["high"].passes == passes
        assert made["high"].drawn == ("regular" if unfit else "high")
        assert made["high"].left_out == ({"better": unfit} if unfit else {"one": "better go first"})
    assert levels.INT8_INSTEAD == levels.INT8


def test_a_pass_that_does_not_fit_the_memory_is_left_out_with_the_reason(engine: Engine) -> None:
    table = {"none": (), "regular": (a_pass("large", bytes_needed=2**30), a_pass("small", bytes_needed=2**20)),
             "high": ()}  # fmt: skip
    level = Levels(engine.pipeline, spare_bytes=2**29, table=table)["regular"]
    assert level.passes == ("small",)
    assert level.left_out == {"large": "it needs 1.0 GiB, 0.5 GiB are left"}


def test_what_a_level_has_does_not_depend_on_what_was_asked_for_first(engine: Engine) -> None:
    """There is memory for one of the two: whoever comes first, the lower level has it."""
    one, two = a_pass("one", bytes_needed=2**20), a_pass("two", bytes_needed=2**20)
    table = {"none": (), "regular": (one,), "high": (two,)}
    for order in (("regular", "high"), ("high", "regular")):
        made = Levels(engine.pipeline, 2**20, table)
        passes = {name: made[name].passes for name in order}
        assert passes == {"regular": ("one",), "high": ()}
        assert made["high"].drawn == "none"


def test_a_level_that_continues_a_lower_one_shares_what_that_one_made(engine: Engine) -> None:
    one, two = a_pass("one", bytes_needed=2**20), a_pass("two")
    made = Levels(engine.pipeline, 2**20, {"none": (), "regular": (one,), "high": (one, two)})
    assert made["high"].passes == ("one", "two")
    brightness = [
        made[name].pipeline.vae.decoder.get_parameter("conv_out.bias") for name in ("none", "regular", "high")
    ]
    assert torch.allclose(brightness[1], brightness[0] - 1)
    assert torch.allclose(brightness[2], brightness[0] - 2)


def test_a_level_that_is_ready_does_not_wait_for_another_that_is_being_made(engine: Engine) -> None:
    begun, answered, go_on = threading.Event(), threading.Event(), threading.Event()

    def long(_pipeline: Pipeline) -> None:
        begun.set()
        assert go_on.wait(60)

    slow = Pass("slow", False, lambda _pipeline: None, long)
    made = Levels(engine.pipeline, table={"none": (), "regular": (a_pass("one"),), "high": (slow,)})
    regular = made["regular"]
    maker = threading.Thread(target=lambda: made["high"])
    maker.start()
    assert begun.wait(60)

    def ask() -> None:
        if made["regular"] is regular:
            answered.set()

    asker = threading.Thread(target=ask)
    asker.start()
    in_time = answered.wait(5)
    go_on.set()
    asker.join()
    maker.join()
    assert in_time


def test_each_request_is_drawn_at_its_own_level_and_told_so(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = a_pass("darker")
    monkeypatch.setattr(levels, "LEVELS", {"none": (), "regular": (one,), "high": (one,)})
    engine = Engine.load(str(tiny_folder), LoadOptions(device="cpu", dtype="float32"))

    def draw(level: str) -> tuple[str | None, bytes]:
        values = {"prompt": "a cat", "size": "512x512", "steps": 1, "seed": 7, "acceleration": level}
        *_, last = engine.draw(GenerationParams.parse(values))
        return last.level, last.pictures[0].pixels.tobytes()

    drawn = {level: draw(level) for level in ("high", "none", "regular")}
    assert {level: told for level, (told, _) in drawn.items()} == {
        "none": "none", "regular": "regular", "high": "regular"
    }  # fmt: skip
    assert drawn["high"][1] == drawn["regular"][1] != drawn["none"][1]
    assert [draw(level) for level in drawn] == list(drawn.values())
    assert "level regular  darker" in engine.block()


def test_a_build_that_fails_leaves_the_others_built(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    built: list[str] = []

    def broken() -> None:
        raise OSError("no compiler")

    passes = (a_pass("bad", build=broken), a_pass("good", build=lambda: built.append("good")))
    monkeypatch.setattr(levels, "LEVELS", {"none": (), "regular": passes, "high": passes})
    with caplog.at_level(logging.WARNING, "zturbo"):
        build_passes()
    assert built == ["good"]
    assert [record.getMessage() for record in caplog.records] == ["bad could not be built: no compiler"]


def test_only_servers_build(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    table = {"none": (), "regular": (a_pass("one", build=lambda: built.append("one")),), "high": ()}
    monkeypatch.setattr(levels, "LEVELS", table)
    Engine.load(str(tiny_folder), LoadOptions(device="cpu", dtype="float32"))
    assert built == []
    Engine.load(str(tiny_folder), LoadOptions(device="cpu", dtype="float32", build=True))
    assert built == ["one"]


def test_the_memory_of_a_level_is_told() -> None:
    level = Level("high", "high", ("int8 products",), None, 3 * 2**29, {})  # type: ignore[arg-type]
    assert str(level) == "int8 products (+1.50 GiB)"
