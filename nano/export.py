"""Write a run's weights as a model folder that zturbo and diffusers' `ZImagePipeline` load unchanged.

    python -m nano.export --profile cpu --folder RUN --output FOLDER --card card.md

bf16 safetensors under the published names; no file over 16 MB (larger components are cut into numbered shards).
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import zturbo
from nano.config import Folders, Profile
from nano.language import config_of
from nano.sheet import SHIFT, load_painter
from nano.tokenizer import TOKENIZER_CONFIG
from nano.training import arguments, opened
from nano.transformer import transformer_config
from nano.vae import vae_config
from zturbo.weights.names import NameTable, text_encoder_names, transformer_names, vae_names

EXPANSION = Path(zturbo.__file__).parent / "embedded" / "nano" / "expansion.json"
"""How the language model was trained to expand prompts, for every model of this recipe."""
FILE_LIMIT_BYTES = 16_000_000
DIFFUSERS_VERSION = "0.36.0"

MODEL_INDEX = {
    "_class_name": "ZImagePipeline",
    "_diffusers_version": DIFFUSERS_VERSION,
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen3ForCausalLM"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "transformer": ["diffusers", "ZImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "_diffusers_version": DIFFUSERS_VERSION,
    "num_train_timesteps": 1000,
    "shift": SHIFT,
    "use_dynamic_shifting": False,
}


def published(model: nn.Module, table: NameTable) -> dict[str, Tensor]:
    """A model's weights in bf16 under a layout's names, fused matrices cut into their parts."""
    weights = dict(model.named_parameters())
    tensors = {
        name: weights[place.parameter].detach()[place.first_row : place.first_row + place.shape[0]].reshape(place.shape)
        for name, place in table.placements.items()
    }
    written = sum(tensor.numel() for tensor in tensors.values())
    held = sum(weight.numel() for weight in weights.values())
    assert written == held, f"{written} values written of {held}"
    return {name: tensor.to(torch.bfloat16).cpu().contiguous() for name, tensor in tensors.items()}


def shards(tensors: Mapping[str, Tensor], limit_bytes: int) -> list[dict[str, Tensor]]:
    """Split by size, in order; every shard stays under the limit unless one tensor alone is over it."""
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if parts[-1] and size + tensor.nbytes > limit_bytes:
            parts.append({})
            size = 0
        parts[-1][name] = tensor
        size += tensor.nbytes
    return parts


def write_component(folder: Path, stem: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """`config.json` and the weights of one component, with an index where there is more than one file."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", config)
    parts = shards(tensors, FILE_LIMIT_BYTES - 100_000)
    if len(parts) == 1:
        save_file(parts[0], folder / f"{stem}.safetensors", metadata={"format": "pt"})
        return
    names = [f"{stem}-{i + 1:05d}-of-{len(parts):05d}.safetensors" for i in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        save_file(part, folder / name, metadata={"format": "pt"})
    total = sum(tensor.nbytes for tensor in tensors.values())
    where = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
    _write_json(folder / f"{stem}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def export(profile: Profile, folders: Folders, output: Path) -> None:
    """Write the whole folder."""
    painter = load_painter(profile, folders)
    output.mkdir(parents=True, exist_ok=True)
    _write_json(output / "model_index.json", MODEL_INDEX)
    if not (output / EXPANSION.name).exists():
        shutil.copy(EXPANSION, output)
    (output / "scheduler").mkdir(exist_ok=True)
    _write_json(output / "scheduler" / "scheduler_config.json", SCHEDULER)
    (output / "tokenizer").mkdir(exist_ok=True)
    painter.tokenizer.save(str(output / "tokenizer" / "tokenizer.json"))
    _write_json(output / "tokenizer" / "tokenizer_config.json", TOKENIZER_CONFIG)
    config = transformer_config(profile.transformer, profile.vae.latents, profile.language.hidden)
    tensors = published(painter.transformer, transformer_names(painter.transformer.config, "diffusers"))
    write_component(
        output / "transformer", "diffusion_pytorch_model", {"_diffusers_version": DIFFUSERS_VERSION, **config}, tensors
    )
    tensors = published(painter.language, text_encoder_names(painter.language.config, "transformers"))
    write_component(output / "text_encoder", "model", config_of(profile, painter.tokenizer), tensors)
    config = vae_config(profile.vae, painter.scaling, painter.shift)
    tensors = published(painter.vae, vae_names(painter.vae.config, "diffusers"))
    write_component(
        output / "vae", "diffusion_pytorch_model", {"_diffusers_version": DIFFUSERS_VERSION, **config}, tensors
    )


def main() -> None:
    parser = arguments("write the model folder")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write, e.g. zturbo/embedded/nano")
    parser.add_argument("--card", type=Path, help="model card (Markdown) to put beside the weights as README.md")
    parsed = parser.parse_args()
    profile, folders = opened(parsed)
    export(profile, folders, parsed.output)
    if parsed.card:
        (parsed.output / "README.md").write_text(parsed.card.read_text())
    for path in sorted(parsed.output.rglob("*.safetensors")):
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
