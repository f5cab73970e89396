"""What this machine is, how it would run each known model, in how much memory, and what to do if it does not fit.

Nothing is loaded and nothing is downloaded: the 6B's sizes are those of its published configs.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from zturbo import __version__
from zturbo.engine.catalog import CATALOG, Z_IMAGE_TURBO, known, local_path, resolve
from zturbo.engine.engine import LoadOptions, complete, model_size
from zturbo.engine.machine import Machine, detect
from zturbo.engine.plan import GIB, ModelSize, Plan, choose_plan
from zturbo.errors import ConfigError, DoesNotFit, WeightsError, WeightsNotFound
from zturbo.models.configs import TextEncoderConfig, TransformerConfig, VaeConfig
from zturbo.weights import published
from zturbo.weights.checkpoint import open_checkpoint


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One model on one machine: the plan that would run it, or why none does."""

    model: str
    present: bool
    plan: Plan | None
    trouble: str

    def advice(self) -> str:
        """What to do next, in one line."""
        if self.plan is None:
            return self.trouble
        if not self.present:
            return f"`zturbo models pull {self.model}` downloads it"
        return "ready"


@dataclass(frozen=True, slots=True)
class Report:
    """The whole examination; `text` for people, `as_dict` for machines."""

    machine: Machine
    diagnoses: tuple[Diagnosis, ...]

    def as_dict(self) -> dict[str, Any]:
        models = [asdict(diagnosis) | {"advice": diagnosis.advice()} for diagnosis in self.diagnoses]
        versions = {"zturbo": __version__, "torch": torch.__version__}
        machine = asdict(self.machine) | {"fp8": self.machine.fp8}
        return {"versions": versions, "machine": machine, "models": models}

    def text(self) -> str:
        return "\n\n".join([_machine_text(self.machine), *map(_diagnosis_text, self.diagnoses)])


def examine(model: str | None = None, options: LoadOptions | None = None) -> Report:
    """Examine this machine for one model, or for every known one.

    Args:
        model: a known name, folder or file; None for all known models, with the parts that they come with.
        options: as for `Engine.load`, of which device, dtype, quantization and replacements count.

    Raises:
        DeviceError: the device is not there.
        WeightsError, ConfigError: the model named is not there, or is damaged.
    """
    options = options or LoadOptions()
    machine = detect(options.device)
    if model is not None:
        return Report(machine, (_diagnose(model, machine, options),))
    own = replace(options, text_encoder=None, vae=None)
    return Report(machine, tuple(_diagnose_known(entry.name, machine, own) for entry in CATALOG))


def published_size() -> ModelSize:
    """Size of the published 6B model."""
    return ModelSize.of(
        TransformerConfig.from_dict(published.TRANSFORMER, "published transformer"),
        TextEncoderConfig.from_dict(published.TEXT_ENCODER, "published text encoder"),
        VaeConfig.from_dict(published.VAE, "published vae"),
    )


def _diagnose_known(name: str, machine: Machine, options: LoadOptions) -> Diagnosis:
    """One of all known models: that it is damaged is told in its place, and the others are examined all the same."""
    try:
        return _diagnose(name, machine, options)
    except (WeightsError, ConfigError) as error:
        return Diagnosis(name, True, None, str(error))


def _diagnose(name: str, machine: Machine, options: LoadOptions) -> Diagnosis:
    present = not (known(name) is Z_IMAGE_TURBO and local_path(Z_IMAGE_TURBO) is None)
    checkpoint = None
    if present:
        checkpoint = open_checkpoint(resolve(name)[1], text_encoder=options.text_encoder, vae=options.vae)
    try:
        # A single file may need parts of a model that is still to be pulled: no damage, but the next thing to do.
        size = model_size(complete(checkpoint)) if checkpoint else published_size()
        return Diagnosis(name, present, choose_plan(machine, size, options.dtype, options.quantization), "")
    except (DoesNotFit, WeightsNotFound) as error:
        return Diagnosis(name, present, None, str(error))


def _machine_text(machine: Machine) -> str:
    capability = f", compute capability {machine.capability[0]}.{machine.capability[1]}" if machine.capability else ""
    rows = {
        "zturbo": f"{__version__}, PyTorch {torch.__version__}",
        "device": f"{machine.device}: {machine.name}{capability}",
        "memory": f"{machine.device_free / GIB:.1f} of {machine.device_total / GIB:.1f} GiB free on the device, "
        f"{machine.host_free / GIB:.1f} of {machine.host_total / GIB:.1f} GiB on the host",
        "cores": str(machine.cores),
        "bf16": "native" if machine.bf16 else "emulated",
        "fp8": "native" if machine.fp8 else "not available",
    }
    return _aligned(rows)


def _diagnosis_text(diagnosis: Diagnosis) -> str:
    rows = {"model": diagnosis.model}
    if (plan := diagnosis.plan) is not None:
        where = {"resident": "on the device", "streamed": "streamed from the host, layer by layer", "quantized": "int8"}
        rows |= {
            "dtype": f"{plan.dtype}  ({plan.dtype_reason})",
            "weights": f"{plan.quantization or 'not quantized'}  ({plan.quantization_reason})",
            "text encoder": f"{plan.text_encoder_dtype}, {where[plan.text_encoder_placement]}",
            "pictures": (f"decoded in tiles of {plan.tile} pixels" if plan.tile else "decoded whole")
            + f", up to {plan.max_pixels / 2**20:.0f} megapixels",
            "needs": f"{plan.device_bytes / GIB:.1f} GiB on the device"
            + (f", {plan.host_bytes / GIB:.1f} GiB on the host" if plan.host_bytes else ""),
        }
    return _aligned(rows | {"next": diagnosis.advice()})


def _aligned(rows: dict[str, str]) -> str:
    return "\n".join(f"{name:>12}  {value}" for name, value in rows.items())
