"""`zturbo generate` has its pictures judged too, on a tiny model of random weights."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.safety.conftest import Endpoint, completion
from tests.safety.stubs import StubChecker
from tests.test_cli import PROMPT, Told, in_an_empty_folder, model, one_step, run
from zturbo.pictures import read_metadata
from zturbo.safety import load
from zturbo.safety.open_nsfw import OpenNsfw

__all__ = ["in_an_empty_folder", "model", "one_step", "run"]
Run = Callable[..., Told]


def flag_everything(monkeypatch: pytest.MonkeyPatch) -> StubChecker:
    stub = StubChecker(lambda _pixels: 0.9)
    monkeypatch.setattr(load, "load_checker", lambda _config: stub)
    return stub


def test_the_bundled_checker_is_on_and_says_so(run: Run, one_step: list[str]) -> None:
    told = run(*one_step, "--output", "a.png", "--safety-checker")
    assert told.code == 0
    assert "      safety  open_nsfw@864bb37b, threshold 0.7  (the request decides)\n" in told.err
    assert np.asarray(Image.open("a.png")).any()


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_a_flagged_picture_is_black_and_told(
    run: Run, one_step: list[str], quiet: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = flag_everything(monkeypatch)
    told = run(*one_step, "--seed", "7", "-n", "2", "--output", "a.png", "--json", *quiet)
    assert told.code == 0
    assert json.loads(told.out)["images"] == [
        {"path": f"a-{i}.png", "seed": 6 + i, "flagged": True, "drawn_prompt": PROMPT} for i in (1, 2)
    ]
    line = "zturbo: seed 7 is withheld by the safety checker stub (score 0.90, threshold 0.5): it is a black picture\n"
    assert line in told.err
    assert not np.asarray(Image.open("a-1.png")).any()
    assert read_metadata(Path("a-1.png"))["settings"]["withheld"] == "withheld by the safety checker stub"
    assert PROMPT.encode() not in Path("a-1.png").read_bytes()
    assert stub.asked == [(512, 512, 3)] * 2


def test_the_switch_turns_it_off(run: Run, one_step: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    stub = flag_everything(monkeypatch)
    told = run(*one_step, "--output", "a.png", "--no-safety-checker")
    assert (told.code, stub.asked) == (0, [])
    assert "safety  none: pictures are not checked" in told.err
    assert np.asarray(Image.open("a.png")).any()


def test_the_policy_keeps_it_on(run: Run, one_step: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    stub = flag_everything(monkeypatch)
    monkeypatch.setenv("ZTURBO_SAFETY_POLICY", "always")
    assert run(*one_step, "--output", "a.png", "--no-safety-checker").code == 0
    assert len(stub.asked) == 1


def test_a_checker_that_fails_leaves_no_picture(run: Run, one_step: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(StubChecker):
        def check(self, pixels: object) -> None:  # type: ignore[override]
            raise RuntimeError("broken")

    monkeypatch.setattr(load, "load_checker", lambda _config: Failing())
    told = run(*one_step, "--output", "a.png", "--quiet")
    assert (told.code, told.out) == (1, "")
    assert told.err.startswith("zturbo: the safety checker stub failed (RuntimeError)")
    assert not Path("a.png").exists()


def test_asking_for_a_checker_that_the_settings_leave_out(
    run: Run, one_step: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZTURBO_SAFETY_CHECKER", "none")
    told = run(*one_step, "--safety-checker")
    assert told.code == 2
    assert "--safety-checker: the setting safety_checker is none" in told.err
    assert run(*one_step, "--quiet", "--output", "a.png").code == 0


def test_a_broken_checker_is_told_before_anything_is_loaded(
    run: Run, one_step: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZTURBO_SAFETY_CHECKER", "nobody/nothing")
    told = run(*one_step)
    assert told.code == 1
    assert told.err.startswith("zturbo: the safety checker nobody/nothing is not on this computer\n  hint: `zturbo mod")


def test_a_prompt_that_the_guard_refuses_draws_nothing(
    run: Run, one_step: list[str], monkeypatch: pytest.MonkeyPatch, endpoint: Endpoint
) -> None:
    monkeypatch.setenv("ZTURBO_PROMPT_GUARD_URL", endpoint.url)
    assert run(*one_step, "--output", "a.png", "--quiet").code == 0
    endpoint.answer = lambda _: (200, completion("Safety: Unsafe\nCategories: Violent"))
    told = run(*one_step, "--output", "b.png", "--quiet")
    assert told.code == 1
    assert told.err.startswith("zturbo: the prompt check Qwen/Qwen3Guard-Gen-0.6B calls the prompt unsafe (Violent)")
    assert run(*one_step, "--output", "c.png", "--quiet", "--no-safety-checker").code == 0
    assert [path.name for path in sorted(Path().glob("*.png"))] == ["a.png", "c.png"]
    assert len(endpoint.asked) == 2


def test_a_contradiction_in_the_settings(run: Run, one_step: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZTURBO_SAFETY_CHECKER", "none")
    monkeypatch.setenv("ZTURBO_SAFETY_POLICY", "always")
    told = run(*one_step)
    assert told.code == 2
    assert "safety_policy is always, and safety_checker is none" in told.err


def test_the_threshold_is_a_setting(run: Run, one_step: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZTURBO_SAFETY_THRESHOLD", "0.000000001")
    told = run(*one_step, "--output", "a.png", "--quiet")
    assert OpenNsfw.name in told.err
    assert not np.asarray(Image.open("a.png")).any()
