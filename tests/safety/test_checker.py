"""What becomes of pictures: judged, withheld, veiled; and who may switch that off."""

from typing import Any

import numpy as np
import pytest

from tests.safety.stubs import StubChecker
from zturbo.engine.progress import Picture
from zturbo.errors import SafetyError
from zturbo.params import OUTPUT_FORMATS
from zturbo.pictures import encode, read_metadata
from zturbo.safety.checker import VEIL_SIDE, Safety, Verdict, described, judge, screen, veiled

NOISE = np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8)
PICTURE = Picture(NOISE, 7)


def test_a_harmless_picture_passes_untouched() -> None:
    screened = screen(StubChecker(lambda _: 0.49), PICTURE)
    assert screened.picture is PICTURE
    assert screened.withheld is None
    assert screened.verdict == Verdict(score=0.49, threshold=0.5)


def test_a_flagged_picture_comes_out_black() -> None:
    before = NOISE.copy()
    screened = screen(StubChecker(lambda _: 0.5), PICTURE)
    assert screened.verdict is not None
    assert screened.verdict.flagged
    assert screened.withheld is not None
    assert screened.picture.pixels.shape == NOISE.shape
    assert screened.picture.pixels.dtype == np.uint8
    assert not screened.picture.pixels.any()
    assert screened.picture.seed == 7
    assert np.array_equal(NOISE, before), "the engine's own picture is not written to"


def test_without_a_checker_everything_passes() -> None:
    screened = screen(None, PICTURE)
    assert (screened.picture, screened.verdict, screened.withheld) == (PICTURE, None, None)


@pytest.mark.parametrize("error", [ValueError("x"), MemoryError(), AssertionError(), SafetyError("x")], ids=repr)
def test_a_checker_that_fails_is_named(error: Exception) -> None:
    def fail(_pixels: object) -> float:
        raise error

    with pytest.raises(SafetyError, match="the safety checker stub failed") as caught:
        judge(StubChecker(fail), NOISE)
    assert caught.value.__cause__ is error
    assert (caught.value.status, caught.value.code) == (500, "safety_checker_failed")


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -0.01, 1.01])
def test_a_score_that_is_none_fails_as_well(score: float) -> None:
    with pytest.raises(SafetyError, match="its score is"):
        judge(StubChecker(lambda _: score), NOISE)


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_the_black_picture_says_only_that_it_was_withheld(output_format: str) -> None:
    screened = screen(StubChecker(lambda _: 1.0), PICTURE)
    data = encode(screened.picture.pixels, output_format, screened.withheld)
    read = read_metadata(data)
    assert read["ai_generated"]
    assert read["settings"].keys() == {"withheld", "software_version"}
    assert read["settings"]["withheld"] == read["parameters"] == "withheld by the safety checker stub"


@pytest.mark.parametrize("size", [(512, 512), (1440, 512), (512, 1440), (33, 2048), (1, 1)], ids=str)
def test_a_veil_keeps_the_size(size: tuple[int, int]) -> None:
    hidden = veiled(np.full((size[1], size[0], 3), 200, np.uint8))
    assert hidden.shape == (size[1], size[0], 3)
    assert hidden.dtype == np.uint8
    assert (hidden == 200).all()


def test_behind_a_veil_nothing_is_told_but_the_mean_of_each_twelfth() -> None:
    rng, cell = np.random.default_rng(0), 16
    pixels = rng.integers(0, 256, (VEIL_SIDE * cell, VEIL_SIDE * cell, 3), dtype=np.uint8)
    cells = pixels.reshape(VEIL_SIDE, cell, VEIL_SIDE, cell, 3).swapaxes(1, 2).reshape(-1, cell * cell, 3)
    shuffled = rng.permuted(cells, axis=1).reshape(VEIL_SIDE, VEIL_SIDE, cell, cell, 3)
    other: Any = shuffled.swapaxes(1, 2).reshape(pixels.shape)
    assert not np.array_equal(pixels, other)
    difference = veiled(pixels).astype(int) - veiled(other).astype(int)
    assert np.abs(difference).max() <= 2, "no more than the rounding of 8 bits, in each of two passes"
    assert VEIL_SIDE <= 16


@pytest.mark.parametrize(
    ("asked", "may_switch_off", "always", "applies"),
    [
        (True, True, False, True), (True, False, False, True), (False, True, False, False), (False, False, False, True),
        (False, True, True, True), (False, False, True, True), (True, True, True, True),
    ],
)  # fmt: skip
def test_who_may_switch_it_off(asked: bool, may_switch_off: bool, always: bool, applies: bool) -> None:
    safety = Safety(StubChecker(), always)
    assert safety.applies(asked, may_switch_off) == applies


def test_a_server_says_what_it_checks() -> None:
    assert Safety(StubChecker(), always=True).row() == "      safety  stub@0, threshold 0.5  (always on)"
    assert Safety().row() == "      safety  none: pictures are not checked"
    assert described(None) == {"name": "none"}
    assert described(StubChecker()) == {
        "name": "stub", "version": "0", "licence": "none needed", "source": "tests", "threshold": 0.5,
    }  # fmt: skip
