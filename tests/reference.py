"""Small models that the reference libraries make, save and run: the truth that the tests compare with."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""Qwen3's template, cut to what one user turn needs."""


def spread(module: torch.nn.Module, seed: int) -> None:
    """Weights of useful size everywhere, pad tokens and norms included, so that no path of the network is silent."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1 and "pad_token" not in name:
                parameter.copy_(values / parameter[0].numel() ** 0.5)
            elif "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * values)
            else:
                parameter.copy_(0.3 * values)


def transformer(seed: int = 0, fresh: bool = False, **changes: Any) -> ZImageTransformer2DModel:
    """A small S3-DiT; `fresh` keeps the library's own initial weights, with pad tokens that are not zero."""
    config = {
        "dim": 128, "n_heads": 2, "n_kv_heads": 2, "n_layers": 3, "n_refiner_layers": 2, "in_channels": 16,
        "cap_feat_dim": 48, "axes_dims": [16, 24, 24], "axes_lens": [1536, 512, 512],
    }  # fmt: skip
    torch.manual_seed(seed)
    model = ZImageTransformer2DModel(**(config | changes)).eval()
    if not fresh:
        spread(model, seed)
        return model
    with torch.no_grad():
        model.x_pad_token.normal_()
        model.cap_pad_token.normal_()
    return model


def text_encoder(seed: int = 1, **changes: Any) -> Qwen3ForCausalLM:
    config = {
        "vocab_size": 320, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
    }  # fmt: skip
    model = Qwen3ForCausalLM(Qwen3Config(**(config | changes))).eval()
    spread(model, seed)
    return model


def vae(seed: int = 2, **changes: Any) -> AutoencoderKL:
    widths = list(changes.pop("block_out_channels", (16, 32, 32, 32)))
    config = {
        "in_channels": 3, "out_channels": 3, "latent_channels": 16, "layers_per_block": 1, "norm_num_groups": 8,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths), "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "block_out_channels": widths, "use_quant_conv": False, "use_post_quant_conv": False,
        "scaling_factor": 0.3611, "shift_factor": 0.1159, "sample_size": 64,
    }  # fmt: skip
    model = AutoencoderKL(**(config | changes)).eval()
    spread(model, seed)
    return model


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, without merges: one token per byte, after the three special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: index for index, piece in enumerate((*SPECIAL, *alphabet))}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=SPECIAL[0], eos_token=SPECIAL[2], chat_template=CHAT_TEMPLATE
    )


def pipeline(**parts: Any) -> ZImagePipeline:
    """A whole ZImagePipeline in fp32; parts replace the default ones."""
    made = {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=False),
        "vae": parts.get("vae") or vae(),
        "text_encoder": parts.get("text_encoder") or text_encoder(),
        "tokenizer": tokenizer(),
        "transformer": parts.get("transformer") or transformer(),
    }
    pipe = ZImagePipeline(**made)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save(pipe: ZImagePipeline, folder: Path) -> Path:
    """Write a pipeline's folder as diffusers does."""
    pipe.save_pretrained(folder)
    return folder
