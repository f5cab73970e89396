"""Checkers of the transformers library: real loading of a small model of the class that the known ones have."""

import json
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from tests.safety.test_open_nsfw import natural
from zturbo.config import Config
from zturbo.errors import SafetyError
from zturbo.safety.classifier import ImageClassifier
from zturbo.safety.load import load_checker
from zturbo.weights import hub

PIXELS = np.random.default_rng(0).integers(0, 256, (70, 50, 3), dtype=np.uint8)


def made(folder: Path, labels: tuple[str, ...] = ("normal", "nsfw"), seed: int = 0) -> Path:
    """A vision transformer of random weights, written as the hub has them."""
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8,
        id2label=dict(enumerate(labels)), label2id={label: number for number, label in enumerate(labels)},
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made(tmp_path / "vit")


def change(path: Path, **members: Any) -> None:
    facts = json.loads(path.read_text()) | members
    path.write_text(json.dumps({name: value for name, value in facts.items() if value is not None}))


def test_it_judges_as_the_library_does(folder: Path) -> None:
    checker = ImageClassifier(str(folder), 0.5)
    verdict = checker.check(PIXELS)
    processor = ViTImageProcessorPil.from_pretrained(folder)
    model = ViTForImageClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        expected = model(**processor(PIXELS, return_tensors="pt")).logits[0].softmax(-1)
    assert verdict.categories == pytest.approx({"normal": float(expected[0]), "nsfw": float(expected[1])})
    assert verdict.score == verdict.categories["nsfw"]
    assert verdict.threshold == 0.5


def test_it_judges_while_another_thread_draws_with_one_attention_kernel(folder: Path) -> None:
    """PyTorch's choice of kernels is the process's: one that processors lack would end every judgement meanwhile."""
    checker = ImageClassifier(str(folder), 0.5)
    before = checker.check(PIXELS).score
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        assert checker.check(PIXELS).score == before


def test_every_natural_picture_has_a_score(folder: Path) -> None:
    checker = ImageClassifier(str(folder), 0.5)
    scores = {checker.check(pixels).score for pixels in natural().values()}
    assert len(scores) > 20
    assert all(0 <= score <= 1 for score in scores)


def test_the_settings_name_it(folder: Path) -> None:
    checker = load_checker(Config(safety_checker=str(folder), safety_threshold=0.85))
    assert isinstance(checker, ImageClassifier)
    assert (checker.name, checker.source, checker.threshold) == ("vit", "a folder of this server", 0.85)
    other = ImageClassifier(str(made(folder.parent / "other", seed=1)), 0.5)
    assert len(checker.version) == 8
    assert checker.version != other.version


def test_several_threads_at_once_agree(folder: Path) -> None:
    checker = ImageClassifier(str(folder), 0.5)
    pictures = [np.roll(PIXELS, 7 * number, axis=0) for number in range(8)]
    alone = [checker.check(pixels).score for pixels in pictures]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda pixels: checker.check(pixels).score, pictures * 3)) == alone * 3


def test_half_precision_weights_are_computed_in_float32(folder: Path) -> None:
    whole = ImageClassifier(str(folder), 0.5).check(PIXELS).score
    weights = {name: value.half() for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert ImageClassifier(str(folder), 0.5).check(PIXELS).score == pytest.approx(whole, abs=1e-2)


def test_the_hubs_cache_is_used_and_no_network(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    snapshot = cache / "models--Falconsai--nsfw_image_detection" / "snapshots" / ("a" * 40)
    shutil.copytree(folder, snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("a" * 40)
    found = hub.find
    monkeypatch.setattr(hub, "find", lambda name: found(name, cache=cache))
    checker = ImageClassifier("Falconsai/nsfw_image_detection", 0.85)
    assert (checker.licence, checker.source) == ("Apache-2.0", "https://huggingface.co/Falconsai/nsfw_image_detection")
    assert checker.check(PIXELS).score == ImageClassifier(str(folder), 0.85).check(PIXELS).score
    with pytest.raises(SafetyError, match="is not on this computer\n  hint: `zturbo models pull nobody/nothing`"):
        ImageClassifier("nobody/nothing", 0.5)


@pytest.mark.parametrize("name", ["falconsai", "~nobody-of-that-name/checker", "f" * 5000])
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(SafetyError, match="neither a folder nor a name of the hub") as caught:
        ImageClassifier(name, 0.5)
    assert "bundled and none" in caught.value.hint


# ------------------------------------------------------------------------------------------------------------ labels


@pytest.mark.parametrize(
    ("labels", "chosen", "unsafe"),
    [
        (("normal", "nsfw"), "", {"nsfw"}),
        (("NSFW", "SFW"), "", {"NSFW"}),
        (("drawings", "hentai", "neutral", "porn"), "", {"hentai", "porn"}),
        (("drawings", "hentai", "neutral", "porn", "sexy"), "porn, hentai", {"hentai", "porn"}),
        (("neutral", "low", "medium", "high"), "Medium,high", {"medium", "high"}),
        (("safe", "nsfw", "gore"), "gore", {"gore"}),
    ],
)
def test_which_labels_count(tmp_path: Path, labels: tuple[str, ...], chosen: str, unsafe: set[str]) -> None:
    folder = made(tmp_path / "vit", labels)
    checker = load_checker(Config(safety_checker=str(folder), safety_labels=chosen))
    assert isinstance(checker, ImageClassifier)
    assert checker.unsafe == unsafe
    verdict = checker.check(PIXELS)
    assert verdict.score == pytest.approx(sum(verdict.categories[label] for label in unsafe))


@pytest.mark.parametrize(
    ("labels", "chosen"),
    [
        (("drawings", "hentai", "neutral", "porn", "sexy"), ""),  # nobody but the operator knows about the last one
        (("cat", "dog"), ""), (("normal", "safe"), ""), (("nsfw", "porn"), ""),
        (("normal", "nsfw"), "porn"), (("normal", "nsfw"), "normal,nsfw"),
    ],
)  # fmt: skip
def test_labels_that_leave_it_open_are_told(tmp_path: Path, labels: tuple[str, ...], chosen: str) -> None:
    folder = made(tmp_path / "vit", labels)
    with pytest.raises(SafetyError, match="has the labels") as caught:
        load_checker(Config(safety_checker=str(folder), safety_labels=chosen))
    assert all(label in caught.value.message for label in labels)
    assert "safety_labels" in caught.value.hint


# --------------------------------------------------------------------------------------------------- hostile folders

MARK = "marked"


class Bomb:
    """What a pickle can do."""

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (Path(MARK),)


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": Bomb()}, folder / "pytorch_model.bin")


def code_beside_an_unknown_model(folder: Path) -> None:
    (folder / "evil.py").write_text(f"open({MARK!r}, 'w')\n")
    change(folder / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.E", "AutoModel": "evil.E"})


def code_beside_an_unknown_processor(folder: Path) -> None:
    (folder / "evil.py").write_text(f"open({MARK!r}, 'w')\n")
    change(folder / "preprocessor_config.json", image_processor_type="Evil", auto_map={"AutoImageProcessor": "evil.E"})


def a_missing_head(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def another_width(folder: Path) -> None:
    change(folder / "config.json", hidden_size=64)


def infinite_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"] = torch.tensor([float("nan")] * 2)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def a_header_that_lies(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((1 << 62).to_bytes(8, "little") + b"{}")


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_processor(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()


def a_config_that_is_none(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)


def labels_without_numbers(folder: Path) -> None:
    change(folder / "config.json", id2label={"a": "normal", "b": "nsfw"})


def labels_without_names(folder: Path) -> None:
    change(folder / "config.json", id2label=None)


def fewer_labels_than_outputs(folder: Path) -> None:
    change(folder / "config.json", id2label={"0": "normal", "1": "nsfw", "2": "nude"})


def labels_that_exclude_nothing(folder: Path) -> None:
    change(folder / "config.json", problem_type="multi_label_classification")


def a_model_of_another_kind(folder: Path) -> None:
    change(folder / "config.json", model_type="t5")


@pytest.mark.parametrize(
    "spoil",
    [
        only_a_pickle, code_beside_an_unknown_model, code_beside_an_unknown_processor, a_missing_head, another_width,
        infinite_weights, cut_weights, a_header_that_lies, no_config, no_processor, a_config_that_is_none,
        labels_without_numbers, labels_without_names, fewer_labels_than_outputs, a_model_of_another_kind,
        labels_that_exclude_nothing,
    ],
    ids=lambda spoil: spoil.__name__,
)  # fmt: skip
def test_hostile_folders(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None]
) -> None:
    spoil(folder)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SafetyError) as caught:
        load_checker(Config(safety_checker=str(folder)))
    assert folder.name in caught.value.message
    assert not (tmp_path / MARK).exists(), "code of the folder ran"
    assert len(caught.value.message) < 1000


def test_pickles_and_adapters_beside_the_weights_are_not_looked_at(folder: Path, tmp_path: Path) -> None:
    before = ImageClassifier(str(folder), 0.5).check(PIXELS).score
    torch.save({"a": Bomb()}, folder / "pytorch_model.bin")
    torch.save({"a": Bomb()}, folder / "adapter_model.bin")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "elsewhere"}')
    assert ImageClassifier(str(folder), 0.5).check(PIXELS).score == before


def test_without_the_library_it_says_how_to_get_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SafetyError, match=r"needs the library transformers") as caught:
        ImageClassifier(str(folder), 0.5)
    assert "pip install '.[safety]'" in caught.value.hint
