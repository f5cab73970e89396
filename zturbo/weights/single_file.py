"""One weights file, by its content and not by its name: safetensors, GGUF, or a refusal."""

from pathlib import Path

from zturbo.errors import WeightsError
from zturbo.weights.gguf_file import MAGIC as GGUF_MAGIC
from zturbo.weights.gguf_file import GgufFile
from zturbo.weights.safetensors_file import SafetensorsFile, open_binary
from zturbo.weights.scaled import DecodedTensors
from zturbo.weights.sources import TensorSource

PICKLE_SUFFIXES = frozenset({".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle"})
_ZIP_MAGIC = b"PK"
_PICKLE_PROTOCOL = 0x80
"""A pickle of protocol 2 to 5 opens with this opcode and its protocol number."""


def open_file(path: Path) -> TensorSource:
    """Open a safetensors or GGUF file.

    Raises:
        WeightsNotFound: there is no such file.
        WeightsError: a folder, a pickle, or a file that is neither of the two formats.
    """
    file, _ = open_binary(path)
    with file:
        start = file.read(8)
    if path.suffix.lower() in PICKLE_SUFFIXES or start[:2] == _ZIP_MAGIC or _opens_a_pickle(start):
        raise WeightsError(
            f"{path}: is a pickle, or named like one; loading it could run code",
            "use the .safetensors or .gguf file of the same model, or convert it with the tool that wrote it",
        )
    return GgufFile(path) if start[:4] == GGUF_MAGIC else DecodedTensors(SafetensorsFile(path))


def _opens_a_pickle(start: bytes) -> bool:
    # A safetensors header of 0x80 + 256 * p bytes opens alike, but continues with zero bytes.
    return len(start) >= 4 and start[0] == _PICKLE_PROTOCOL and 2 <= start[1] <= 5 and any(start[2:8])
