"""Train the tokenizer: byte-level BPE in Qwen's form, on captions.

    python -m nano.tokenizer --profile cpu --folder RUN

Any text can be encoded; words of the world are mostly one token each.
"""

from collections.abc import Iterator

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from nano.captions import EXPAND_INSTRUCTION, caption, long_caption
from nano.config import Folders, Profile
from nano.training import arguments, opened
from nano.world import sample_scene

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen cuts text into words before the byte pairs are merged."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "add_bos_token": False,
    "bos_token": None,
    "chat_template": CHAT_TEMPLATE,
    "clean_up_tokenization_spaces": False,
    "eos_token": "<|im_end|>",
    "model_max_length": 1024,
    "pad_token": "<|endoftext|>",
    "padding_side": "right",
    "unk_token": None,
}


def texts(profile: Profile, count: int) -> Iterator[str]:
    """Captions of random scenes, every fourth a long one."""
    rng = np.random.default_rng((profile.seed, 1))
    for i in range(count):
        scene = sample_scene(profile.world, rng)
        yield long_caption(scene, rng) if i % 4 == 0 else caption(scene, rng)
    yield "user\nassistant\n" + EXPAND_INSTRUCTION


def train(profile: Profile, folders: Folders, count: int) -> Tokenizer:
    """Train on `count` captions and write `tokenizer.json`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=profile.language.vocabulary,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(profile, count), trainer)
    tokenizer.save(str(folders.tokenizer))
    return tokenizer


def load(folders: Folders) -> Tokenizer:
    """The trained tokenizer."""
    return Tokenizer.from_file(str(folders.tokenizer))


def main() -> None:
    profile, folders = opened(arguments("train the tokenizer").parse_args())
    if (
        folders.tokenizer.exists()
    ):  # what was trained since reads its numbers, which another world's captions would change
        return
    tokenizer = train(profile, folders, 20000)
    print(f"tokenizer: {tokenizer.get_vocab_size()} tokens in {folders.tokenizer}")


if __name__ == "__main__":
    main()
