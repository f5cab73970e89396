"""Qwen3, the causal language model whose inner states condition the transformer.

Same arithmetic and parameter names as transformers' `Qwen3ForCausalLM` with tied embeddings, except that q, k, v and
gate, up are one matrix each (`self_attn.qkv_proj`, `mlp.gate_up_proj`; `weights/names.py` has the table).
`encode` stops after the layer whose output Z-Image reads; `forward` with a `KVCache` writes text with the same weights.

Source: Qwen3 Technical Report (arXiv 2505.09388).
"""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from zturbo.models.configs import TextEncoderConfig

WITHOUT_PLANS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""PyTorch's kernels for CUDA but cuDNN's, which it asks first on Hopper."""


def attention_kernels(device: torch.device) -> AbstractContextManager[object]:
    """Which kernels attention may take there: on CUDA none that is planned anew for each exact length of a text.

    Such a plan takes cuDNN 0.02 to 0.4 s, and nearly every prompt has a length of its own.
    """
    return sdpa_kernel(WITHOUT_PLANS) if device.type == "cuda" else nullcontext()


def rope_tables(
    config: TextEncoderConfig, count: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(count, head_dim) each, of the positions from 0: cos, and sin whose first half is negated.

    The angles are fp32; only their cos and sin are rounded to `dtype`.
    """
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.int64, device=device).float() / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponent)
    angles = torch.outer(torch.arange(count, device=device).float(), frequencies)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1).to(dtype), torch.cat((-sin, sin), dim=-1).to(dtype)


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate channel i with channel i + D/2: (B,heads,S,D) with (S,D) tables of `rope_tables`."""
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


class KVCache:
    """Keys and values of the tokens read so far, in buffers of fixed length.

    Args:
        config: the model's shape.
        batch, length: the most sequences and tokens it can hold.
        dtype, device: of the layers' inputs.
        memory: of at least `size` values, to lie in; default: memory of its own.
    """

    hidden: Tensor | None = None
    """What an attention score has added to it; None where `extend` returns nothing but what was read."""

    def __init__(
        self,
        config: TextEncoderConfig,
        batch: int,
        length: int,
        dtype: torch.dtype,
        device: torch.device,
        memory: Tensor | None = None,
    ) -> None:
        shape = (config.num_hidden_layers, 2, batch, config.num_key_value_heads, length, config.head_dim)
        if memory is None:
            memory = torch.empty(math.prod(shape), dtype=dtype, device=device)
        self.states = memory[: math.prod(shape)].view(shape)
        self.tables = rope_tables(config, length, dtype, device)
        self.length = 0

    @staticmethod
    def size(config: TextEncoderConfig, batch: int, length: int) -> int:
        """How many values such a cache holds."""
        return config.num_hidden_layers * 2 * batch * config.num_key_value_heads * length * config.head_dim

    def rope(self, count: int) -> tuple[Tensor, Tensor]:
        """cos and sin, (count, head_dim) each, of the next tokens."""
        cos, sin = self.tables
        return cos[self.length : self.length + count], sin[self.length : self.length + count]

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append (B, kv_heads, n, D) keys and values of one layer; returns all of them so far."""
        end = self.length + key.shape[2]
        states = self.states[layer]
        states[0, :, :, self.length : end] = key
        states[1, :, :, self.length : end] = value
        return states[0, :, :, :end], states[1, :, :, :end]

    def advance(self, count: int) -> None:
        """All layers have appended so many tokens."""
        self.length += count


class CacheStep:
    """A cache as one more token sees it, in shapes that are the same for every token: what a graph can be made of.

    The position is read on the device. Attention goes over all slots of the cache; those after the position are
    hidden, and must hold finite values all the same.

    Args:
        cache: what the step extends; its `length` is the caller's business.
        position: (1,) int64, where the token goes.
    """

    def __init__(self, cache: KVCache, position: Tensor) -> None:
        self._states, self._tables, self._position = cache.states, cache.tables, position
        slots = torch.arange(cache.states.shape[4], device=position.device)
        zeros = torch.zeros(slots.shape, dtype=cache.states.dtype, device=position.device)
        self.hidden = zeros.masked_fill(slots > position, -math.inf)  # (length,)

    def rope(self, _count: int) -> tuple[Tensor, Tensor]:
        """cos and sin of the position, (1, head_dim) each."""
        cos, sin = self._tables
        return cos.index_select(0, self._position), sin.index_select(0, self._position)

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put (B, kv_heads, 1, D) key and value of one layer into their slot; returns all slots."""
        keys, values = self._states[layer]
        return keys.index_copy_(2, self._position, key), values.index_copy_(2, self._position, value)

    def advance(self, count: int) -> None:
        """Nothing: a graph's replay could not."""


class SelfAttention(nn.Module):
    """Causal grouped-query attention with normed, rotated queries and keys."""

    def __init__(self, config: TextEncoderConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        self.qkv_proj = nn.Linear(config.hidden_size, sum(self.heads) * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * config.head_dim, config.hidden_size, bias=False)
        self.q_norm = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | CacheStep | None) -> Tensor:
        heads = self.qkv_proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B,all heads,S,D)
        query, key, value = heads.split(self.heads, dim=1)
        both = torch.cat((self.q_norm(query), self.k_norm(key)), dim=1)  # rotated in one pass
        query, key = rotate_halves(both, cos, sin).split(self.heads[:2], dim=1)
        if cache is not None:
            key, value = cache.extend(self.layer, key, value)
        mixed = self._attend(query, key, value, None if cache is None else cache.hidden)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None) -> Tensor:
        """(B,heads,S,D) of the queries' tokens over all keys, causal; with `hidden`, of one token over fixed slots."""
        count, seen = query.shape[2], key.shape[2]
        if hidden is not None:
            # The heads that share a key stand in the place of the tokens, so no kernel has to repeat the keys for them.
            groups = query.view(query.shape[0], key.shape[1], -1, self.head_dim)
            mixed = F.scaled_dot_product_attention(groups, key, value, attn_mask=hidden[None, None, None])
            return mixed.reshape(query.shape)
        assert count in (1, seen), "a cache is filled by one prompt, then token by token"
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=count > 1, enable_gqa=self.heads[0] != self.heads[1]
        )


class MLP(nn.Module):
    """SwiGLU: down(silu(gate x) * up x)."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each after a norm and with a residual."""

    def __init__(self, config: TextEncoderConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | CacheStep | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Backbone(nn.Module):
    """Embedding, layers and last norm; in the files all its names start with `model.`."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        weight = torch.empty(config.vocab_size, config.hidden_size)
        if not weight.is_meta:  # a normal_ on the meta device imports torch's compiler, which takes 2 s
            nn.init.normal_(weight)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, _weight=weight)
        self.layers = nn.ModuleList([DecoderLayer(config, layer) for layer in range(config.num_hidden_layers)])
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, input_ids: Tensor, layers: int, cache: KVCache | CacheStep | None = None) -> Tensor:
        """(B,S) token ids -> (B,S,hidden) raw output of the first `layers` layers."""
        x = self.embed_tokens(input_ids)
        count = input_ids.shape[1]
        cos, sin = rope_tables(self.config, count, x.dtype, x.device) if cache is None else cache.rope(count)
        with attention_kernels(x.device):
            for layer in self.layers[:layers]:
                x = layer(x, cos, sin, cache)
        if cache is not None:
            cache.advance(count)
        return x


class Qwen3(nn.Module):
    """The causal language model with tied embeddings."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config)

    def encode(self, input_ids: Tensor) -> Tensor:
        """What conditions the picture: the raw output of the second to last layer, before any final norm.

        Args:
            input_ids: (B, L) without padding: causal attention makes unpadded rows equal to right-padded ones.

        Returns:
            (B, L, hidden_size), transformers' `hidden_states[-2]`.
        """
        return self.model(input_ids, self.config.num_hidden_layers - 1)

    def forward(self, input_ids: Tensor, cache: KVCache | CacheStep | None = None) -> Tensor:
        """Next-token logits: (B, S) -> (B, S, vocab). With a cache, the ids continue what it holds."""
        return self._logits(self.model(input_ids, self.config.num_hidden_layers, cache))

    def next_logits(self, input_ids: Tensor, cache: KVCache | CacheStep) -> Tensor:
        """Logits of the one token that follows: (B, S) -> (B, vocab), where the embedding lies."""
        return self._logits(self.model(input_ids, self.config.num_hidden_layers, cache)[:, -1])

    def _logits(self, x: Tensor) -> Tensor:
        """(..., hidden) of the last layer -> (..., vocab); layers may compute elsewhere than norm and embedding lie."""
        x = self.model.norm(x.to(self.model.norm.weight.device))
        return F.linear(x, self.model.embed_tokens.weight)
