"""The engine owns the device: it loads a model by a plan, and draws.

engine = Engine.load("nano")
for progress in engine.draw(params):
    print(progress.stage, progress.step)
progress.pictures[0].pixels
"""

import copy
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn

from zturbo.acceleration import decoding, native_writer
from zturbo.acceleration.attention import choose_attention, use_attention
from zturbo.acceleration.cpu import NativeTransformer
from zturbo.acceleration.fp16 import fit_half_precision
from zturbo.acceleration.graphs import CudaRecorder
from zturbo.acceleration.levels import Levels, build_passes
from zturbo.acceleration.quantize import TEXT_ENCODER_LAYERS, TRANSFORMER_LAYERS, quantize_layers
from zturbo.config import Config, adapters_of
from zturbo.engine.breath import rested_s
from zturbo.engine.catalog import NANO, Z_IMAGE_TURBO, local_path, resolve
from zturbo.engine.lanes import Lanes, abreast, lane_count, sum_on_one_thread
from zturbo.engine.losses import losses_told
from zturbo.engine.machine import Machine, control_group_cores, detect
from zturbo.engine.offload import stream_layers
from zturbo.engine.pipeline import Pipeline
from zturbo.engine.plan import DTYPES, GIB, HEADROOM, ModelSize, Plan, Wish, choose_plan
from zturbo.engine.progress import Picture, Progress, preview_steps
from zturbo.engine.tokenizer import PromptTokenizer
from zturbo.engine.warming import keep_compiled, warm_up, warm_writer
from zturbo.engine.writing import Writer, open_writer
from zturbo.errors import (
    Cancelled,
    DoesNotFit,
    InvalidInput,
    Problem,
    WeightsError,
    WeightsNotFound,
    ZTurboError,
)
from zturbo.expansion.expansion import Expansion
from zturbo.models.text_encoder import Qwen3
from zturbo.models.transformer import ZImageTransformer
from zturbo.models.vae import AutoencoderKL
from zturbo.params import GenerationParams
from zturbo.weights.checkpoint import Checkpoint, open_checkpoint
from zturbo.weights.lora import Lora, open_lora
from zturbo.weights.version import file_digest

PARTS_HINT = "the parts are of different models: leave --vae and --text-encoder out, or pass matching ones"
Network = TypeVar("Network", bound=nn.Module)
Shape = TypeVar("Shape")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a model is loaded; "auto" leaves the choice to the plan.

    loras: adapter files with the scale of each, merged in this order.
    text_encoder, vae: files or folders that replace the model's own, or complete a single file.
    expansion: whether the engine expands the prompts of requests that ask for it.
    """

    device: str = "auto"
    dtype: str = "auto"
    quantization: Wish = "auto"
    acceleration: str = "regular"
    """The level that is made ready while loading; the others are when a request first asks for them."""
    build: bool = False
    """Compile what the levels' passes need and is not on the disk yet, beside the loading."""
    attention: str = "auto"
    """The attention kernel: "auto", or one of `acceleration.attention`."""
    loras: tuple[tuple[Path, float], ...] = ()
    text_encoder: Path | None = None
    vae: Path | None = None
    expansion: bool = True

    @classmethod
    def of(cls, config: Config, **parts: Any) -> "LoadOptions":
        """What the settings ask for; `parts` are further members."""
        return cls(
            device=config.device,
            dtype=config.dtype,
            quantization=cast(Wish, config.quantization),  # the settings' table allows nothing else
            acceleration=config.acceleration,
            attention=config.attention,
            loras=adapters_of(config.lora),
            text_encoder=Path(config.text_encoder) if config.text_encoder else None,
            vae=Path(config.vae) if config.vae else None,
            expansion=config.expansion_provider == "local",
            **parts,
        )


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Which model answers; `version` is its name and the digest of its files and adapters."""

    name: str
    version: str
    path: Path
    is_nano: bool
    description: str


class Engine:
    """One loaded model on one device."""

    features: frozenset[str] = frozenset({"prompt_expansion"})
    """What this engine can do beside drawing: "prompt_expansion"."""

    def __init__(
        self,
        pipeline: Pipeline,
        model: ModelInfo,
        machine: Machine,
        plan: Plan,
        levels: Levels | None = None,
        writer: Writer | None = None,
    ) -> None:
        self.pipeline, self.model, self.machine, self.plan = pipeline, model, machine, plan
        self.levels, self.writer = levels or Levels(pipeline), writer

    @classmethod
    def load(
        cls,
        model: str,
        options: LoadOptions = LoadOptions(),
        report: Callable[[str], None] = lambda _line: None,
    ) -> "Engine":
        """Read a model's files into the memory the plan assigns.

        Args:
            model: a known name, a diffusers folder, a safetensors or a GGUF file.
            options: device, dtype, quantization, adapters, replacements.
            report: receives one line at the start of each part.

        Raises:
            WeightsError, WeightsNotFound, ConfigError: the files are missing, damaged or of another model.
            DeviceError, DoesNotFit: this machine cannot run it as asked.
            DeviceLost: the device failed for good.
        """
        keep_compiled()
        builder = threading.Thread(target=build_passes if options.build else lambda: None, name="builder", daemon=True)
        builder.start()
        name, path, known = resolve(model)
        checkpoint = complete(open_checkpoint(path, text_encoder=options.text_encoder, vae=options.vae))
        machine = detect(options.device)
        plan = choose_plan(machine, model_size(checkpoint), options.dtype, options.quantization)
        loras = tuple(open_lora(file, checkpoint.transformer.config, scale) for file, scale in options.loras)
        description = known.description if known else checkpoint.kind
        adapters = "".join(f"+{file_digest(file)[:8]}*{scale:g}" for file, scale in options.loras)
        info = ModelInfo(name, f"{name}@{checkpoint.version}{adapters}", path, known is NANO, description)
        with losses_told(torch.device(plan.device)):
            return cls._built(checkpoint, machine, plan, loras, info, options, builder, report)

    @classmethod
    def _built(
        cls,
        checkpoint: Checkpoint,
        machine: Machine,
        plan: Plan,
        loras: tuple[Lora, ...],
        info: ModelInfo,
        options: LoadOptions,
        builder: threading.Thread,
        report: Callable[[str], None],
    ) -> "Engine":
        """The engine on its device; `builder` compiles what its passes need."""
        pipeline = build_pipeline(checkpoint, plan, loras, report)
        pipeline.lanes = _lanes(machine, plan)
        plan = replace(plan, attention=_attention(pipeline, options.attention))
        builder.join()
        spare = _budget(machine) - plan.device_bytes
        writer = _writer(checkpoint, pipeline, plan, info, options)
        if writer is not None:
            spare -= _record_tokens(writer, plan, spare)
            _write_in_fp32(writer, plan)
        levels = Levels(pipeline, spare)
        level = levels[options.acceleration]  # its first request shall not wait for it
        native = isinstance(level.pipeline.transformer, NativeTransformer)
        pipeline.lanes.abreast = abreast(pipeline.lanes.count, native)
        return cls(pipeline, info, machine, plan, levels, writer)

    @classmethod
    def load_configured(
        cls, config: Config, report: Callable[[str], None] = lambda _line: None, **parts: Any
    ) -> "Engine":
        """`load` as the settings ask; `parts` are further members of `LoadOptions`."""
        if config.threads:
            torch.set_num_threads(config.threads)
        elif (cores := control_group_cores()) < torch.get_num_threads():  # more would spin their share of it away
            torch.set_num_threads(max(1, math.ceil(cores)))
        return cls.load(config.model, LoadOptions.of(config, **parts), report)

    @property
    def lanes(self) -> int:
        """How many requests may be under way at a time, each by a `draw` on a thread of its own."""
        return self.pipeline.lanes.count

    @property
    def abreast(self) -> int:
        """How many of them are computed at once, with the threads shared out between them."""
        return self.pipeline.lanes.abreast

    def draw(
        self, params: GenerationParams, cancelled: Callable[[], bool] = lambda: False, previews: int = 0
    ) -> Iterator[Progress]:
        """Draw the pictures of one request, one after another; image i uses the seed + i.

        Between two progresses lies one stretch of work: a prompt, a step, or a decoding. Who draws several requests
        takes turns between their iterators; the pictures do not depend on it.

        Args:
            params: validated.
            cancelled: asked before each stretch, and before each token while the prompt is expanded.
            previews: how many steps of each picture are followed by a preview, spread evenly before the last one.

        Yields:
            progress after every stage and step; the last one has the stage "done" and the pictures.

        Raises:
            Cancelled: `cancelled` said so; at most one step was finished in between.
            DoesNotFit: the picture is larger than the plan has memory for.
            InvalidInput: the model's tokens do not divide the size.
        """
        self._check(params)
        with losses_told(self.pipeline.device):
            level = self.levels[params.acceleration]
        images, steps, pipeline = params.num_images, params.steps, level.pipeline
        work, shown = _Work(cancelled, pipeline.device), preview_steps(steps, previews)
        expansion = None
        if params.prompt_expansion and self.writer is not None:
            yield Progress("expand", 0, images, 0, steps)
            expansion = work.do("expand", self._expand, self.writer, params, cancelled)
        yield Progress("encode", 0, images, 0, steps, expansion=expansion)
        pictures, encoded = [], None
        for image in range(images):
            seed = params.seed + image
            text = expansion.for_seed(seed).text if expansion else params.prompt
            if text != encoded:
                caption, encoded = work.do("encode", pipeline.caption, text), text
            yield Progress("denoise", image, images, 0, steps)
            walk = pipeline.denoise(caption, params.width, params.height, steps, seed)
            for _ in range(steps):
                step = work.do("denoise", next, walk)
                yield Progress("denoise", image, images, step.index, steps)
                if step.index in shown:
                    preview = work.do("decode", lambda last: pipeline.decode(last.clean_latents()), step)
                    yield Progress("denoise", image, images, step.index, steps, preview)
            work.do("denoise", _check_finite, step.latents, self.plan.dtype)  # it waits for the last step
            yield Progress("decode", image, images, steps, steps)
            pictures.append(Picture(work.do("decode", pipeline.decode, step.latents), seed))
            yield Progress("drawn", image, images, steps, steps, None, (pictures[-1],), expansion=expansion)
        yield Progress(
            "done",
            images - 1,
            images,
            steps,
            steps,
            None,
            tuple(pictures),
            work.timings(),
            expansion,
            level=level.drawn,
        )

    def _check(self, params: GenerationParams) -> None:
        """Refuse what this model or this machine cannot draw."""
        side = self.pipeline.pixels_per_token
        if params.width % side or params.height % side:
            size = f"{params.width}x{params.height}"
            raise InvalidInput([Problem(("size",), f"this model draws multiples of {side} pixels; got {size}", size)])
        if params.width * params.height > self.plan.max_pixels:
            raise DoesNotFit(
                f"{params.width}x{params.height} does not fit: there is memory for {self.plan.max_pixels} pixels",
                "ask for a smaller picture; `zturbo doctor` shows the memory",
            )

    def _expand(self, writer: Writer, params: GenerationParams, cancelled: Callable[[], bool]) -> Expansion:
        with self.pipeline.lanes.alone():
            return writer.expand(params.prompt, cancelled).for_seed(params.seed)

    def warm_up(self) -> None:
        """On CUDA, expand two prompts, and draw the common shapes once at the level that was made ready.

        Raises:
            DeviceLost: the device failed for good.
        """
        if self.pipeline.device.type == "cuda":
            with losses_told(self.pipeline.device):
                if self.writer is not None:
                    warm_writer(self.writer)
                for level in self.levels.made():
                    warm_up(level.pipeline, self.plan.max_pixels)

    def block(self) -> str:
        """The start-up block: what runs, how, and why, a line each."""
        plan, machine = self.plan, self.machine
        rows = {
            "model": f"{self.model.version}  ({self.model.description})",
            "device": f"{plan.device}: {machine.name}, {machine.device_free / GIB:.1f} GiB free",
            "dtype": f"{plan.dtype}  ({plan.dtype_reason})",
            "weights": f"{plan.quantization or 'not quantized'}  ({plan.quantization_reason})",
            "text encoder": f"{plan.text_encoder_dtype}, {plan.text_encoder_placement}",
            "vae": f"{plan.vae_dtype}, {f'in tiles of {plan.tile} pixels' if plan.tile else 'whole pictures'}",
            "attention": plan.attention,
            "expansion": self.writer.words if self.writer else "not here",
            **{f"level {level.name}": str(level) for level in self.levels.made()},
            "lanes": f"{self.lanes}  (requests under way side by side, {self.abreast} of them computed at once)",
            "memory": f"at most {plan.device_bytes / GIB:.1f} GiB",
        }
        return "\n".join(f"{name:>13}  {value}" for name, value in rows.items())


def _attention(pipeline: Pipeline, wish: str) -> str:
    """Give the transformer the attention kernel that fits; returns the reason in words."""
    config = pipeline.transformer.config
    heads, size = config.n_heads, config.dim // config.n_heads
    attend, reason = choose_attention(pipeline.device, pipeline.dtype, heads, size, wish)
    use_attention(pipeline.transformer, attend)
    return reason


def _writer(
    checkpoint: Checkpoint, pipeline: Pipeline, plan: Plan, model: ModelInfo, options: LoadOptions
) -> Writer | None:
    """What expands prompts, where the options want it and the language model can."""
    if not options.expansion:
        return None
    assert checkpoint.tokenizer is not None
    folder = checkpoint.tokenizer.parent.parent  # of the language model, wherever the transformer came from
    return open_writer(pipeline, folder, model.version, plan.text_encoder_placement == "streamed")


def _write_in_fp32(writer: Writer, plan: Plan) -> None:
    """On a CPU, have a small language model write in fp32: the same text on every processor; in C where it can."""
    encoder = writer.pipeline.text_encoder
    small = native_writer.weight_bytes(encoder.config) <= native_writer.MOST_BYTES
    if plan.device != "cpu" or plan.text_encoder_placement != "resident" or not small:
        return
    exact = encoder if plan.text_encoder_dtype == "float32" else copy.deepcopy(encoder).float()
    reason = native_writer.unfit(exact)
    writer.write_with(exact, native=reason is None)
    writer.words += f"; in fp32, {'native kernels' if reason is None else f'no native kernels: {reason}'}"


def _record_tokens(writer: Writer, plan: Plan, spare_bytes: int) -> int:
    """On CUDA, have the writer's steps recorded where it can be; returns the device memory that they take."""
    device, encoder = writer.pipeline.device, writer.pipeline.text_encoder
    if device.type != "cuda":
        return 0
    itemsize = DTYPES[plan.text_encoder_dtype].itemsize
    needed = decoding.memory(encoder.config, writer.recipe.candidates, itemsize)
    if reason := decoding.unfit(plan.text_encoder_placement == "resident", needed, spare_bytes):
        writer.words += f"; no CUDA graph of a token: {reason}"
        return 0
    writer.record(CudaRecorder(device))
    writer.words += "; a token is a CUDA graph"
    return needed


def _lanes(machine: Machine, plan: Plan) -> Lanes:
    """As many as this machine has threads and memory for."""
    count = lane_count(machine.device, torch.get_num_threads(), _budget(machine), plan.device_bytes)
    return Lanes(count, cpu=machine.device == "cpu")


def _budget(machine: Machine) -> int:
    """Bytes of the device's memory that may be used."""
    return int(machine.device_free * HEADROOM[machine.device])


def complete(checkpoint: Checkpoint) -> Checkpoint:
    """A single file's missing parts, taken from Z-Image-Turbo's folder where that lies on this computer.

    Raises:
        WeightsNotFound: a part is missing and that folder is not there.
    """
    missing = [name for name in ("text_encoder", "vae", "tokenizer") if getattr(checkpoint, name) is None]
    if not missing:
        return checkpoint
    folder = local_path(Z_IMAGE_TURBO)
    if folder is None:
        raise WeightsNotFound(
            f"{checkpoint.path} has no {' and no '.join(missing)}",
            "pass --text-encoder FOLDER (tokenizer.json beside it) and --vae FILE, "
            "or `zturbo models pull z-image-turbo`",
        )
    whole = open_checkpoint(folder)
    return Checkpoint(
        path=checkpoint.path,
        kind=checkpoint.kind,
        transformer=checkpoint.transformer,
        text_encoder=checkpoint.text_encoder or whole.text_encoder,
        vae=checkpoint.vae or whole.vae,
        scheduler=checkpoint.scheduler,
        tokenizer=checkpoint.tokenizer or whole.tokenizer,
    )


def model_size(checkpoint: Checkpoint) -> ModelSize:
    """Sizes of a complete checkpoint, from its configs."""
    assert checkpoint.text_encoder is not None
    assert checkpoint.vae is not None
    return ModelSize.of(checkpoint.transformer.config, checkpoint.text_encoder.config, checkpoint.vae.config)


def build_pipeline(
    checkpoint: Checkpoint, plan: Plan, loras: tuple[Lora, ...] = (), report: Callable[[str], None] = lambda _line: None
) -> Pipeline:
    """Load a complete checkpoint's networks as the plan says, tensor by tensor."""
    assert checkpoint.text_encoder is not None
    assert checkpoint.vae is not None
    assert checkpoint.tokenizer is not None
    device = torch.device(plan.device)
    tokenizer = PromptTokenizer(checkpoint.tokenizer.parent)
    _check_fit(checkpoint, tokenizer)

    report("loading the text encoder")
    text_encoder = _empty(Qwen3, checkpoint.text_encoder.config)
    home = torch.device("cpu") if plan.text_encoder_placement == "streamed" else device
    if plan.text_encoder_placement == "quantized":
        quantize_layers(text_encoder, TEXT_ENCODER_LAYERS, "int8", home)
    checkpoint.text_encoder.load_into(text_encoder, dtype=DTYPES[plan.text_encoder_dtype], device=home)
    if plan.text_encoder_placement == "streamed":
        stream_layers(text_encoder, device)

    report("loading the transformer")
    transformer = _empty(ZImageTransformer, checkpoint.transformer.config)
    if plan.quantization is not None:
        quantize_layers(transformer, TRANSFORMER_LAYERS, plan.quantization, device)
    if plan.dtype == "float16":
        fit_half_precision(transformer)
    checkpoint.transformer.load_into(transformer, dtype=plan.torch_dtype, device=device, loras=loras)

    report("loading the vae")
    vae = _empty(AutoencoderKL, checkpoint.vae.config)
    del vae.encoder  # drawing only decodes
    checkpoint.vae.without("encoder.").load_into(vae, dtype=DTYPES[plan.vae_dtype], device=device)
    vae.decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device.type == "cpu":
        sum_on_one_thread(vae)

    tile = plan.tile // vae.config.factor if plan.tile else None
    return Pipeline(tokenizer, text_encoder, transformer, vae, checkpoint.scheduler, tile)


def _check_fit(checkpoint: Checkpoint, tokenizer: PromptTokenizer) -> None:
    """Parts of one model speak of the same latents and the same tokens."""
    assert checkpoint.text_encoder is not None
    assert checkpoint.vae is not None
    ours, theirs = checkpoint.transformer.config.in_channels, checkpoint.vae.config.latent_channels
    if ours != theirs:
        raise WeightsError(f"the transformer draws {ours} latent channels, the VAE decodes {theirs}", PARTS_HINT)
    ours, theirs = tokenizer.size, checkpoint.text_encoder.config.vocab_size
    if ours > theirs:
        raise WeightsError(f"the tokenizer has {ours} tokens, the text encoder knows {theirs}", PARTS_HINT)


def _empty(network: Callable[[Shape], Network], config: Shape) -> Network:
    """A network whose parameters take no memory yet."""
    with torch.device("meta"):
        return network(config).eval().requires_grad_(False)


def _check_finite(latents: torch.Tensor, dtype: str) -> None:
    """A picture of infinities is an error, not a black picture; one look per picture, after its last step."""
    if not bool(latents.isfinite().all()):
        raise ZTurboError(
            f"the drawing ended in values that are not finite, computed in {dtype}",
            "the weights are damaged, or the dtype's range is too small for them: try --dtype bfloat16 or float32",
        )


class _Work:
    """The stretches of one request's work, and their seconds by stage; pauses between two stretches do not count."""

    def __init__(self, cancelled: Callable[[], bool], device: torch.device) -> None:
        self._cancelled, self._device = cancelled, device
        self._seconds: dict[str, float] = {}

    def do(self, stage: str, call: Callable[..., Result], *arguments: Any) -> Result:
        """One stretch.

        Raises:
            Cancelled: the request was cancelled before it began.
            DeviceLost: the device failed for good, such as by an illegal access to its memory.
        """
        if self._cancelled():
            raise Cancelled("the request was cancelled")
        start = time.perf_counter() - rested_s()
        with losses_told(self._device):
            result = call(*arguments)
        self._seconds[stage] = self._seconds.get(stage, 0.0) + time.perf_counter() - rested_s() - start
        return result

    def timings(self) -> dict[str, float]:
        return {**self._seconds, "total": sum(self._seconds.values())}
