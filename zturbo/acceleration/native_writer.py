"""A small language model on the C kernels, writing: a token of a few texts is one call, not a hundred operations.

    scribe = Scribe(encoder, rank)
    follow = scribe.begin(length=90)
    best = follow([[1, 2, 3], [1, 2, 3]])  # the prompt, the same for all texts
    best = follow([[4], [5]])              # one token more of each

For models whose weights lie in a processor's caches: there the operations' own cost is nearly all of a token's. One
thread computes, so larger models are better off with PyTorch's products. It computes in fp32, whatever the weights'
dtype: where two words are nearly as likely, roundings of bf16 decide, and they differ from processor to processor.
"""

import ctypes

import torch
from torch import Tensor

from zturbo.acceleration import native
from zturbo.acceleration.decoding import Follow, Rank
from zturbo.acceleration.native import (
    PANEL,
    TextLayerStruct,
    TextStruct,
    Unavailable,
    WeightsStruct,
    pack,
)
from zturbo.models.configs import TextEncoderConfig
from zturbo.models.text_encoder import DecoderLayer, KVCache, Qwen3, rope_tables

MOST_BYTES = 64 * 2**20
"""Of a small model's weights in fp32: more do not lie in the caches, and are read faster by several threads."""
TRIAL_TOKENS = 7
TRIAL_LIMIT = 1e-4
"""Relative error of the logits against the eager model's."""


class Scribe:
    """Writes on a resident language model, one text of several candidates at a time.

    Args:
        encoder: the language model, in eval mode.
        rank: (rows, vocab) logits -> what the caller picks from.
    """

    def __init__(self, encoder: Qwen3, rank: Rank) -> None:
        self._config, self._rank = encoder.config, rank
        self._embedding = encoder.model.embed_tokens
        self._kept: list[object] = []  # what the structs point at
        self._words = self._packed(encoder.model.embed_tokens.weight)
        self._last_norm = self._vector(encoder.model.norm.weight)
        layers = [self._layer(layer) for layer in encoder.model.layers if isinstance(layer, DecoderLayer)]
        self._layers = (TextLayerStruct * len(layers))(*layers)

    def _packed(self, weight: Tensor) -> WeightsStruct:
        packed = pack(weight, "fp32")
        self._kept.append(packed)
        return packed.struct()

    def _vector(self, weight: Tensor) -> int:
        self._kept.append(values := weight.float().contiguous())
        return values.data_ptr()

    def _layer(self, layer: DecoderLayer) -> TextLayerStruct:
        attention, mlp = layer.self_attn, layer.mlp
        norms = (layer.input_layernorm, attention.q_norm, attention.k_norm, layer.post_attention_layernorm)
        products = (attention.qkv_proj, attention.o_proj, mlp.gate_up_proj, mlp.down_proj)
        return TextLayerStruct(
            *(self._vector(norm.weight) for norm in norms), *(self._packed(one.weight) for one in products)
        )

    def begin(self, length: int) -> Follow:
        """A new text.

        Args:
            length: tokens of the prompt and the answer together, at most.

        Returns:
            Called with the prompt (the same in each row), then with one token for each row at a time.
        """
        tables, states, before = rope_tables(self._config, length, torch.float32, torch.device("cpu")), Tensor(), 0

        def follow(tokens: list[list[int]]) -> Tensor:
            nonlocal states, before
            ids = torch.tensor(tokens)
            if not before:
                states = torch.zeros(KVCache.size(self._config, 1, length))
                logits = self._read(ids[:1], states, tables, before).expand(len(ids), -1)
                shape = (self._config.num_hidden_layers, 2, 1, self._config.num_key_value_heads, length, -1)
                states = states.view(shape).repeat(1, 1, len(ids), 1, 1, 1)
            else:
                logits = self._read(ids, states, tables, before)
            before += ids.shape[1]
            return self._rank(logits)

        return follow

    def _read(self, ids: Tensor, states: Tensor, tables: tuple[Tensor, Tensor], before: int) -> Tensor:
        """(texts, count) tokens after so many others -> (texts, vocab) logits of what follows.

        Raises:
            MemoryError: there is none for so many tokens.
        """
        config, (texts, count) = self._config, ids.shape
        x = self._embedding(ids).float().contiguous()
        logits = torch.empty(texts, self._words.count * PANEL)
        work = TextStruct(
            self._layers, tables[0].data_ptr(), tables[1].data_ptr(), self._last_norm, x.data_ptr(),
            states.data_ptr(), logits.data_ptr(), self._words, config.rms_norm_eps, config.num_hidden_layers, texts,
            count, before, tables[0].shape[0], config.hidden_size, config.num_attention_heads,
            config.num_key_value_heads, config.head_dim, config.intermediate_size,
        )  # fmt: skip
        if native.library().zt_text(ctypes.byref(work)):
            raise MemoryError(f"no memory for {texts} texts of {count} tokens")
        return logits[:, : config.vocab_size]


def weight_bytes(config: TextEncoderConfig) -> int:
    """Of the packed weights."""
    heads = config.num_attention_heads * config.head_dim
    keys = 2 * config.num_key_value_heads * config.head_dim
    layer = config.hidden_size * (2 * heads + keys + 3 * config.intermediate_size)
    return 4 * (config.num_hidden_layers * layer + config.vocab_size * config.hidden_size)


@torch.inference_mode()
def unfit(encoder: Qwen3) -> str | None:
    """Why a small language model in fp32 does not write on the kernels, or None: widths, and a trial beside it."""
    config = encoder.config
    if any(width % PANEL for width in (config.hidden_size, config.intermediate_size, config.head_dim)):
        return f"widths are multiples of {PANEL} there"
    try:
        native.library()
    except Unavailable as reason:
        return str(reason)
    ids = torch.arange(1, 1 + TRIAL_TOKENS) % config.vocab_size
    expected = encoder.next_logits(ids[None], KVCache(config, 1, TRIAL_TOKENS, torch.float32, torch.device("cpu")))
    follow = Scribe(encoder, lambda logits: logits).begin(TRIAL_TOKENS)
    follow([ids[:-1].tolist()])
    off = float((follow([ids[-1:].tolist()]) - expected).norm() / expected.norm())
    return None if off < TRIAL_LIMIT else f"their result is off by {off:.1g}"
