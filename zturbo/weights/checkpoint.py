"""The front door: what a path holds, and for each network its config, its names and its tensors.

A path is a diffusers folder, or one file (safetensors or GGUF) with a transformer in diffusers' or Comfy's names,
perhaps with a text encoder and a VAE beside it in the same file. Text encoder and VAE may be given separately,
as a file or as a folder with a config.json. Opening reads headers and small JSON files only, and checks every
name and shape; data moves when a component is loaded.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar, cast

import torch
from torch import nn

from zturbo.errors import WeightsError, WeightsNotFound
from zturbo.models.configs import SchedulerConfig, TextEncoderConfig, TransformerConfig, VaeConfig, read_json
from zturbo.weights import names, published
from zturbo.weights.folder import open_component
from zturbo.weights.gguf_file import GgufFile
from zturbo.weights.infer import infer_text_encoder, infer_transformer, infer_vae, text_encoder_from_gguf
from zturbo.weights.load import check_names, load_weights, some
from zturbo.weights.lora import Lora, merge
from zturbo.weights.names import Found, NameTable, Shape
from zturbo.weights.scaled import DecodedTensors
from zturbo.weights.single_file import open_file
from zturbo.weights.sources import TensorSource
from zturbo.weights.version import version_of

Config = TypeVar("Config")

WEIGHTS = ("*.safetensors", "*.gguf")
FOLDER_HINT = "a model folder has transformer/, text_encoder/, vae/, scheduler/ and tokenizer/, each with its files"


@dataclass(frozen=True, slots=True)
class Component(Generic[Config]):
    """One network of a checkpoint, its names and shapes already checked against its config."""

    config: Config
    table: NameTable
    source: TensorSource

    def tensors(self, dtype: torch.dtype = torch.float32) -> Iterator[tuple[str, torch.Tensor]]:
        """(checkpoint name, tensor) in file order, decoded or cast to `dtype`."""
        return self.source.tensors(frozenset(self.table.placements), dtype)

    def without(self, *parameters: str) -> "Component[Config]":
        """The component less the parts a caller has dropped from its module, e.g. `without("encoder.")` of a VAE."""
        kept = {
            name: place for name, place in self.table.placements.items() if not place.parameter.startswith(parameters)
        }
        return replace(self, table=replace(self.table, placements=kept))

    def load_into(
        self, module: nn.Module, *, dtype: torch.dtype, device: torch.device | str, loras: Sequence[Lora] = ()
    ) -> None:
        """Fill a module that was made on the meta device.

        Raises:
            WeightsError: the file changed, or cannot be read to its end.
        """
        # An adapter is added in fp32, so a decoded base is not rounded before the sum.
        stream = self.tensors(torch.float32 if loras else dtype)
        merged = merge(stream, self.table.placements, loras) if loras else stream
        places, path = self.table.placements, self.source.path
        load_weights(module, merged, places, source=path, dtype=dtype, device=device, keep=True)


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk. `text_encoder`, `vae` and `tokenizer` are None where a single file does not bring them."""

    path: Path
    kind: str
    transformer: Component[TransformerConfig]
    text_encoder: Component[TextEncoderConfig] | None
    vae: Component[VaeConfig] | None
    scheduler: SchedulerConfig
    tokenizer: Path | None
    """A `tokenizer.json`."""

    @cached_property
    def version(self) -> str:
        """16 hexadecimal digits bound to the content of all files and configs; see `zturbo.weights.version`."""
        parts = {"transformer": self.transformer, "text_encoder": self.text_encoder, "vae": self.vae}
        present = [(role, repr(part.config), part.source.files) for role, part in parts.items() if part]
        tokenizer = () if self.tokenizer is None else (self.tokenizer,)
        return version_of([*present, ("scheduler", repr(self.scheduler), ()), ("tokenizer", "", tokenizer)])


def open_checkpoint(path: Path, *, text_encoder: Path | None = None, vae: Path | None = None) -> Checkpoint:
    """Open a model folder or file; separately given parts replace those of `path`.

    Raises:
        WeightsNotFound: a path or a needed file does not exist.
        WeightsError: a file is corrupt, hostile, of another model or of an unsupported format.
        ConfigError: a config file is missing a member or wrong.
    """
    checkpoint = _open_folder(path, text_encoder, vae) if path.is_dir() else _open_single(path, text_encoder, vae)
    caption, feature = checkpoint.transformer.config.cap_feat_dim, checkpoint.text_encoder
    if feature is not None and feature.config.hidden_size != caption:
        raise WeightsError(
            f"{feature.source.path}: the text encoder gives {feature.config.hidden_size} values per token, "
            f"the transformer takes {caption}",
            "the text encoder of Z-Image-Turbo is Qwen3-4B",
        )
    return checkpoint


# --- folders -------------------------------------------------------------------------------------------------


def _open_folder(path: Path, text_encoder: Path | None, vae: Path | None) -> Checkpoint:
    if not (path / "transformer").is_dir():
        files = [str(file) for depth in ("", "*/", "*/*/") for kind in WEIGHTS for file in path.glob(f"{depth}{kind}")]
        hint = f"pass one of its files: {some(files)}" if files else FOLDER_HINT
        raise WeightsNotFound(f"{path}: holds no transformer/ folder", hint)
    if (index := path / "model_index.json").is_file():
        pipeline = read_json(index).get("_class_name")
        if not isinstance(pipeline, str) or not pipeline.startswith("ZImage"):
            raise WeightsError(f"{index}: is a model for {pipeline!r}, expected a ZImagePipeline", FOLDER_HINT)
    encoder = text_encoder or path / "text_encoder"
    return Checkpoint(
        path=path,
        kind="diffusers folder",
        transformer=_transformer_folder(path / "transformer"),
        text_encoder=open_text_encoder(encoder),
        vae=open_vae(vae or path / "vae"),
        scheduler=_scheduler(path / "scheduler" / "scheduler_config.json"),
        tokenizer=_tokenizer(path / "tokenizer") or _tokenizer(encoder),
    )


def _scheduler(path: Path) -> SchedulerConfig:
    return SchedulerConfig.from_dict(read_json(path), str(path))


def _tokenizer(encoder: Path) -> Path | None:
    """`tokenizer.json` in an encoder's folder, or beside its file, or in the tokenizer/ next to either."""
    folder = encoder if encoder.is_dir() else encoder.parent
    places = (folder / "tokenizer.json", encoder.parent / "tokenizer" / "tokenizer.json")
    return next((file for file in places if file.is_file()), None)


def _transformer_folder(folder: Path) -> Component[TransformerConfig]:
    config = TransformerConfig.from_dict(read_json(folder / "config.json"), str(folder / "config.json"))
    source = DecodedTensors(open_component(folder))
    _check_depth(config.n_layers + 2 * config.n_refiner_layers, source)
    found = _only(names.find_transformer(source.shapes), "Z-Image transformer", folder)
    return _component(config, _transformer_table(config, found), source, source.shapes)


def _text_encoder_folder(folder: Path) -> Component[TextEncoderConfig]:
    config = TextEncoderConfig.from_dict(read_json(folder / "config.json"), str(folder / "config.json"))
    source = DecodedTensors(open_component(folder))
    _check_depth(config.num_hidden_layers, source)
    found = _only(names.find_text_encoder(source.shapes), "Qwen3 text encoder", folder)
    return _component(config, _text_encoder_table(config, found), source, source.shapes)


def _vae_folder(folder: Path) -> Component[VaeConfig]:
    config = VaeConfig.from_dict(read_json(folder / "config.json"), str(folder / "config.json"))
    source = DecodedTensors(open_component(folder))
    _check_depth(len(config.block_out_channels) * config.layers_per_block, source)
    return _component(config, names.vae_names(config, "diffusers"), source, source.shapes)


def _check_depth(blocks: int, source: TensorSource) -> None:
    """A config may announce a million layers; no table of names is built for more blocks than there are tensors."""
    if blocks > len(source.shapes):
        raise WeightsError(
            f"{source.path}: the config asks for {blocks} blocks, the file has {len(source.shapes)} tensors"
        )


# --- single files --------------------------------------------------------------------------------------------


def _open_single(path: Path, text_encoder: Path | None, vae: Path | None) -> Checkpoint:
    """A file with a transformer; a text encoder and a VAE in the same file are taken where none is given."""
    source = open_file(path)
    transformer = _only(names.find_transformer(source.shapes), "Z-Image transformer", path)
    encoders = [found for found in names.find_text_encoder(source.shapes) if found.prefix]
    vaes = [found for found in names.find_vae(source.shapes) if found.prefix]
    parts = [transformer, *encoders, *vaes]
    _check_unclaimed(source, parts)
    inner_encoder = _text_encoder_in(source, encoders[0]) if encoders else None
    inner_vae = _vae_in(source, vaes[0]) if vaes else None
    return Checkpoint(
        path=path,
        kind=f"single file, {transformer.layout} names",
        transformer=_transformer_in(source, transformer, parts),
        text_encoder=open_text_encoder(text_encoder) if text_encoder else inner_encoder,
        vae=open_vae(vae) if vae else inner_vae,
        scheduler=SchedulerConfig.from_dict(published.SCHEDULER, "published scheduler"),
        tokenizer=_tokenizer(text_encoder or path) if text_encoder or inner_encoder else None,
    )


def open_text_encoder(path: Path) -> Component[TextEncoderConfig]:
    """A text encoder alone: a folder with config.json, a safetensors file, or a GGUF of llama.cpp."""
    if path.is_dir():
        return _text_encoder_folder(path)
    source = open_file(path)
    found = _only(names.find_text_encoder(source.shapes), "Qwen3 text encoder", path)
    _check_unclaimed(source, [found])
    return _text_encoder_in(source, found)


def open_vae(path: Path) -> Component[VaeConfig]:
    """A VAE alone: a folder with config.json, or a file in diffusers' or the original Flux names."""
    if path.is_dir():
        return _vae_folder(path)
    source = open_file(path)
    found = _only(names.find_vae(source.shapes), "Flux VAE", path)
    _check_unclaimed(source, [found])
    return _vae_in(source, found)


def _only(found: Sequence[Found], what: str, path: Path) -> Found:
    if len(found) != 1:
        number = "no" if not found else f"{len(found)} different layouts of a"
        raise WeightsError(
            f"{path}: holds {number} {what}", "is it the right file? `zturbo models list` shows known models"
        )
    return found[0]


def _check_unclaimed(source: TensorSource, parts: Sequence[Found]) -> None:
    prefixes = tuple(part.prefix for part in parts)
    if unclaimed := [name for name in source.shapes.keys() - names.OUTSIDE if not name.startswith(prefixes)]:
        raise WeightsError(f"{source.path}: {len(unclaimed)} tensors do not belong to this model: {some(unclaimed)}")


def _shapes_of(source: TensorSource, part: Found, others: Sequence[Found] = ()) -> dict[str, Shape]:
    """Shapes under one prefix, with the prefix; names under another part's longer prefix are that part's."""
    longer = tuple(other.prefix for other in others if len(other.prefix) > len(part.prefix))
    return {
        name: shape
        for name, shape in source.shapes.items()
        if name.startswith(part.prefix) and not (longer and name.startswith(longer))
    }


def _bare(shapes: Mapping[str, Shape], prefix: str) -> dict[str, Shape]:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items()}


def _transformer_table(config: TransformerConfig, found: Found) -> NameTable:
    layout = cast(names.TransformerLayout, found.layout)
    return names.transformer_names(config, layout).prefixed(found.prefix)


def _text_encoder_table(config: TextEncoderConfig, found: Found) -> NameTable:
    layout = cast(names.TextEncoderLayout, found.layout)
    return names.text_encoder_names(config, layout).prefixed(found.prefix)


def _transformer_in(source: TensorSource, found: Found, parts: Sequence[Found]) -> Component[TransformerConfig]:
    shapes = _shapes_of(source, found, parts)
    config = infer_transformer(_bare(shapes, found.prefix), found.layout, source.path)
    return _component(config, _transformer_table(config, found), source, shapes)


def _text_encoder_in(source: TensorSource, found: Found) -> Component[TextEncoderConfig]:
    shapes = _shapes_of(source, found)
    bare = _bare(shapes, found.prefix)
    if found.layout == "llama.cpp":
        if not isinstance(source, GgufFile) or source.architecture != "qwen3":
            raise WeightsError(f"{source.path}: is not a GGUF of the architecture qwen3", "use a Qwen3-4B GGUF")
        config = text_encoder_from_gguf(source.metadata, bare, source.path)
        _check_depth(config.num_hidden_layers, source)
    else:
        config = infer_text_encoder(bare, cast(names.TextEncoderLayout, found.layout), source.path)
    return _component(config, _text_encoder_table(config, found), source, shapes)


def _vae_in(source: TensorSource, found: Found) -> Component[VaeConfig]:
    shapes = _shapes_of(source, found)
    config = infer_vae(_bare(shapes, found.prefix), found.layout, source.path)
    table = names.vae_names(config, cast(names.VaeLayout, found.layout)).prefixed(found.prefix)
    return _component(config, table, source, shapes)


def _component(
    config: Config, table: NameTable, source: TensorSource, shapes: Mapping[str, Shape]
) -> Component[Config]:
    check_names(shapes, table, source.path)
    return Component(config, table, source)
