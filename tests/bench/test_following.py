"""Prompt following with and without expansion, at its smallest."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("cv2", reason="the training recipe draws with OpenCV (opencv-python-headless)")

import torch

from bench import following, report
from nano.captions import with_article
from nano.config import CPU
from nano.evaluate import THERE
from nano.judge import Judge, Verdict, open_judge
from nano.world import Scene, Subject


def test_compares_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    torch.save({"average": Judge(CPU.world).state_dict()}, tmp_path / "judge.pt")
    judge = str(tmp_path / "judge.pt")
    monkeypatch.setattr(sys, "argv", ["following", "--judge", judge, "--prompts", "2", "--size", "512"])
    following.main()
    rows = json.loads((tmp_path / "following.json").read_text())["rows"]
    assert [(row["prompts"], row["expansion"]) for row in rows] == [
        ("plain", "off"),
        ("plain", "on"),
        ("free", "off"),
        ("free", "on"),
        ("bare", "off"),
        ("bare", "on"),
    ]
    assert rows[0]["expanded"] == rows[0]["mean gain, points"] == 0
    assert rows[1]["expanded"] > 0
    few, expanded = (row["seeds differ"] for row in rows[-2:])
    assert expanded > few > 0, "each seed has a composition of its own where the prompt names none"


def test_a_bare_prompt_says_neither_place_nor_clothes() -> None:
    for prompt, scene in following.prompts(CPU, 20)["bare"]:
        (subject,) = scene.subjects
        assert prompt == f"{with_article(f'{subject.colour} {subject.kind}')} {THERE[scene.setting]}"
        assert not subject.worn
        assert not subject.on_lounger


def test_where_no_place_was_asked_for_any_is_right() -> None:
    scene = Scene("forest", "day", (Subject("cat", "red", "centre"),), 0)
    seen = Verdict.of(Scene("forest", "day", (Subject("cat", "red", "left"),), 0))
    assert following.right(seen, "a red cat in a forest", scene)["place"]
    assert not following.right(seen, "in the middle, a red cat in a forest", scene)["place"]


def test_the_difference_is_of_pairs() -> None:
    without = [{"subject": True, "place": False}, {"subject": False, "place": False}]
    gain, error = following.difference(without, [{"subject": True, "place": True}, {"subject": True, "place": False}])
    assert (gain, error) == (50.0, 0.0)


def test_a_missing_judge_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nano\.judge"):
        open_judge(CPU, tmp_path / "judge.pt")
