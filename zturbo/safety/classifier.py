"""Any image-classification model of the transformers library as a checker, for example Falconsai/nsfw_image_detection.

Read from a folder, or from the hub's cache after `zturbo models pull OWNER/NAME`; nothing is downloaded here. Three
files of the folder are read and no others: config.json, preprocessor_config.json and model.safetensors. So nothing is
unpickled, no code and no adapter that may lie beside them is run. Every weight must be in the file: what transformers
would fill in with noise is an error here.

It runs in float32 on the processor. The library is the extra `zturbo[safety]`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zturbo.errors import SafetyError, WeightsError, WeightsNotFound
from zturbo.safety.checker import Verdict
from zturbo.weights import hub

if TYPE_CHECKING:
    from zturbo.engine.progress import Pixels

EXAMPLE = "Falconsai/nsfw_image_detection"
CONFIG, PREPROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
MAX_CONFIG_BYTES, MAX_WEIGHTS_BYTES = 1 << 20, 8 << 30
SAFE_LABELS = frozenset({"normal", "safe", "sfw", "neutral", "drawing", "drawings"})
UNSAFE_LABELS = frozenset({"nsfw", "unsafe", "porn", "hentai", "explicit", "nude", "nudity"})
"""Labels that mean the same to every model. Of others, "sexy" or "medium", the operator must say what they are."""
LICENCES = {EXAMPLE: "Apache-2.0"}


class ImageClassifier:
    """Implements `Checker`: the score is the sum of the shares of the labels that count as unsafe.

    Args:
        name: OWNER/NAME[@REVISION] of a model in the hub's cache, or a folder.
        threshold: the lowest score that is flagged.
        unsafe_labels: the labels that count as unsafe, of any case; those that are well known by default.

    Raises:
        SafetyError: the library or a file is missing, or the files are not a whole image classifier, or its labels
            do not say which of them are unsafe.
    """

    def __init__(self, name: str, threshold: float, unsafe_labels: frozenset[str] = frozenset()) -> None:
        folder = _folder(name)
        local = folder == hub.existing(name)
        self.name = folder.name if local else name  # where a folder lies is nobody's business, and /v1/models is public
        self.threshold = threshold
        self.licence = LICENCES.get(name, "see its source")
        self.source = "a folder of this server" if local else f"https://huggingface.co/{name}"
        self.labels = _labels(folder)
        self.unsafe = _unsafe(name, self.labels, unsafe_labels)
        self.version = _version(folder / WEIGHTS)
        self._processor, self._model = _load(name, folder)

    def check(self, pixels: "Pixels") -> Verdict:
        """Judge one picture."""
        import torch

        inputs = self._processor(pixels, return_tensors="pt", input_data_format="channels_last")
        with torch.inference_mode():
            shares = self._model(**inputs).logits[0].softmax(-1).tolist()
        categories = dict(zip(self.labels, shares, strict=True))
        # The sum may round to a little more than 1. In this order of arguments NaN stays NaN, which `judge` refuses.
        score = min(sum(categories[label] for label in self.unsafe), 1.0)
        return Verdict(score=score, threshold=self.threshold, categories=categories)


def _folder(name: str) -> Path:
    if (folder := hub.existing(name)) is not None and folder.is_dir():
        return folder
    try:
        hub.model_named(name)
    except WeightsNotFound as error:
        hint = f"known words are bundled and none; else a folder, or OWNER/NAME of the hub, for example {EXAMPLE}"
        raise SafetyError(f"the safety checker {name!r} is neither a folder nor a name of the hub", hint) from error
    found = hub.find(name)
    if found is None:
        hint = f"`zturbo models pull {name}` downloads it, here or into a cache that is copied here (HF_HOME)"
        raise SafetyError(f"the safety checker {name} is not on this computer", hint)
    return found


def _labels(folder: Path) -> tuple[str, ...]:
    """The model's labels, in the order of its outputs."""
    path = folder / CONFIG
    named = _json(path).get("id2label")
    if not isinstance(named, Mapping) or len(named) < 2 or not all(isinstance(one, str) for one in named.values()):
        raise SafetyError(f"{path} names no labels (id2label): it is not an image classifier")
    labels = tuple(named.get(str(index), "") for index in range(len(named)))
    if "" in labels or len(set(labels)) < len(labels):
        raise SafetyError(f"{path}: id2label must number different labels from 0; got {dict(named)}")
    return labels


def _unsafe(name: str, labels: tuple[str, ...], chosen: frozenset[str]) -> frozenset[str]:
    """Which of the labels count as unsafe. None, or all of them, would be no checker at all."""
    known = {label.lower(): label for label in labels}
    unsafe = chosen or known.keys() & UNSAFE_LABELS
    open_labels = set() if chosen else known.keys() - SAFE_LABELS - UNSAFE_LABELS
    if open_labels or not unsafe <= known.keys() or not unsafe or unsafe == known.keys():
        message = f"the safety checker {name} has the labels {', '.join(labels)}"
        got = f"; safety_labels is {', '.join(sorted(chosen))}" if chosen else ""
        raise SafetyError(message + got, "set safety_labels to those of them that count as unsafe, separated by commas")
    return frozenset(known[label] for label in unsafe)


def _version(weights: Path) -> str:
    from zturbo.weights.version import file_digest

    try:
        return file_digest(weights)[:8]
    except WeightsError as error:
        hint = "pickled weights are not loaded: choose a model, or a revision of it, that has safetensors"
        raise SafetyError(f"the safety checker's weights cannot be read: {error.message}", hint) from error


def _load(name: str, folder: Path) -> tuple[Any, Any]:
    """The library's processor and model of a folder; all of its weights come from the one file."""
    try:
        import torch
        import transformers
    except ImportError as error:
        hint = "`pip install '.[safety]'` in zturbo's folder installs it; or set safety_checker to bundled"
        raise SafetyError(f"the safety checker {name} needs the library transformers: {error}", hint) from error
    transformers.utils.logging.disable_progress_bar()
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        _json(folder / PREPROCESSOR)
        processor = transformers.AutoImageProcessor.from_pretrained(str(folder), backend="pil", **local)
        # Not PyTorch's attention: which kernels it may take is the process's, and who draws beside it changes that.
        config = transformers.AutoConfig.from_pretrained(str(folder), attn_implementation="eager", **local)
        if config.problem_type not in (None, "single_label_classification"):  # shares of one are no odds of several
            raise SafetyError(
                f"the safety checker {name} is for {config.problem_type}: one label a picture is supported"
            )
        with torch.device("meta"):
            kind = type(transformers.AutoModelForImageClassification.from_config(config, trust_remote_code=False))
        model, report = kind.from_pretrained(
            None, config=config, state_dict=_weights(folder), dtype=torch.float32, output_loading_info=True
        )
    except SafetyError:
        raise
    except Exception as error:  # the library raises whatever its parts raise; all of it means: not this model
        reason = " ".join(str(error).split())[:300]
        raise SafetyError(f"the safety checker {name} in {folder} cannot be loaded: {reason}") from error
    if missing := sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}):
        told = f"{folder / WEIGHTS} lacks {len(missing)} of the model's tensors, {missing[0]} for one"
        raise SafetyError(f"the safety checker {name} is not whole: {told}")
    return processor, model.eval()


def _weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    if (size := path.stat().st_size) > MAX_WEIGHTS_BYTES:
        raise SafetyError(f"{path} has {size} bytes; a safety checker may have {MAX_WEIGHTS_BYTES}")
    return load_file(path)


def _json(path: Path) -> dict[str, Any]:
    """A file's JSON object."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
        value = json.loads(data) if len(data) <= MAX_CONFIG_BYTES else None
    except OSError as error:
        raise SafetyError(f"cannot read the safety checker's {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise SafetyError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise SafetyError(f"{path} must hold a JSON object of at most {MAX_CONFIG_BYTES} bytes")
    return value
