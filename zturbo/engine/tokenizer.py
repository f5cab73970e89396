"""Prompts to token ids, in the chat form that Z-Image was trained with."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from zturbo.errors import WeightsError, WeightsNotFound

MAX_TOKENS = 512
"""Longer prompts are cut on the right, as the reference does (ZImagePipeline, max_sequence_length)."""


def chat_prompt(prompt: str) -> str:
    """One user turn of Qwen3's chat template with the answer opened; thinking adds nothing to it."""
    return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


class PromptTokenizer:
    """The byte-level BPE of a model folder's `tokenizer/tokenizer.json`.

    Raises:
        WeightsNotFound: there is no such file.
        WeightsError: the file is not a tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise WeightsNotFound(f"{path} does not exist", "a model folder has tokenizer/tokenizer.json")
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust library raises bare Exception
            raise WeightsError(f"{path} is not a tokenizer: {error}") from error
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()

    @property
    def size(self) -> int:
        """One more than the largest token id."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, prompt: str, limit: int = MAX_TOKENS) -> Tensor:
        """(1, L) int64 ids of the templated prompt, 1 <= L <= limit, without padding."""
        ids = self.tokenizer.encode(chat_prompt(prompt), add_special_tokens=False).ids
        return torch.tensor([ids[:limit]], dtype=torch.int64)
