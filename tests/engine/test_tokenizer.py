"""Prompts to ids, compared with what diffusers feeds its text encoder."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tests import reference
from zturbo.engine.tokenizer import PromptTokenizer, chat_prompt
from zturbo.errors import WeightsError, WeightsNotFound


@pytest.fixture(scope="module")
def theirs() -> PreTrainedTokenizerFast:
    return reference.tokenizer()


@pytest.fixture(scope="module")
def ours(tiny_folder: Path) -> PromptTokenizer:
    return PromptTokenizer(tiny_folder / "tokenizer")


@given(prompt=st.text(max_size=600))
def test_ids_are_the_references(theirs: PreTrainedTokenizerFast, ours: PromptTokenizer, prompt: str) -> None:
    messages = [{"role": "user", "content": prompt}]
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    expected = theirs(text, truncation=True, max_length=512).input_ids
    assert ours.encode(prompt)[0].tolist() == expected


def test_the_template_adds_no_thinking() -> None:
    assert chat_prompt("a cat") == "<|im_start|>user\na cat<|im_end|>\n<|im_start|>assistant\n"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFound, match=r"tokenizer\.json"):
        PromptTokenizer(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", '{"model": 3}', "\x00\x01"])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(WeightsError, match=r"tokenizer\.json is not a tokenizer"):
        PromptTokenizer(tmp_path)
