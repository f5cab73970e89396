"""Warming up: which shapes are drawn before the first request, and where compiled kernels are kept."""

from pathlib import Path

import pytest

from tests.acceleration.test_graphs import StandIn
from zturbo.acceleration.graphs import replay
from zturbo.engine.engine import Engine, LoadOptions
from zturbo.engine.warming import keep_compiled, warm_up, warm_writer
from zturbo.engine.writing import Writer


def test_every_shape_has_its_graph_before_the_first_request(tiny_folder: Path) -> None:
    engine = Engine.load(str(tiny_folder), LoadOptions(device="cpu", dtype="float32"))
    fork = engine.pipeline.fork("none")
    kept = replay(fork.transformer, StandIn())
    sizes = ((64, 64), (96, 64), (1024, 1024), (72, 64))  # one beyond the memory, one that the tokens do not divide
    refined: list[int] = []
    fork.transformer.context_refiner[0].register_forward_pre_hook(
        lambda _block, given: refined.append(given[0].shape[1])
    )
    assert warm_up(fork, 96 * 64, sizes, (32, 64, 10**6)) == 4
    assert len(kept) == 4
    assert refined == [32, 64], "a prompt's caption is refined before its first step"
    caption = fork.caption("a cat")
    for _step in fork.denoise(caption, 96, 64, 3, 7):
        assert len(kept) == 4


def test_what_writes_expansions_is_recorded_before_the_first_request() -> None:
    engine = Engine.load("nano", LoadOptions(device="cpu"))
    assert engine.writer is not None
    writer = Writer(engine.pipeline, engine.writer.recipe, engine.model.version)  # as on CUDA
    warm_writer(writer)
    assert writer.decoder is None, "nothing to record here"
    assert not writer.expand("a cat").cached
    writer.record(recorder := StandIn())
    warm_writer(writer)
    count = len(recorder.recorded)
    assert count > 0
    writer.expand("a dog")
    assert len(recorder.recorded) == count


def test_a_processor_is_not_warmed_up(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine.load(str(tiny_folder), LoadOptions(device="cpu", dtype="float32"))
    monkeypatch.setattr("zturbo.engine.engine.warm_up", lambda *_: pytest.fail("it would delay the start"))
    engine.warm_up()


def test_what_is_compiled_stays_on_the_disk(tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    keep_compiled(environment)
    assert environment["TRITON_CACHE_DIR"] == str(tmp_path / "zturbo" / "triton")
    keep_compiled(environment := {"TRITON_CACHE_DIR": "/kept/here"})
    assert environment == {"TRITON_CACHE_DIR": "/kept/here"}


def test_without_a_home_folder_triton_is_left_alone(homeless: None) -> None:
    keep_compiled(environment := dict[str, str]())
    assert environment == {}
