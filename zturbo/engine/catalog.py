"""The models known by name, and what a name or path on the command line means."""

from dataclasses import dataclass
from pathlib import Path

from zturbo.errors import WeightsNotFound

EMBEDDED = Path(__file__).parent.parent / "embedded"


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model with a name of its own.

    repository: on the hub, or None where the model ships with this package.
    """

    name: str
    aliases: tuple[str, ...]
    description: str
    repository: str | None
    licence: str


NANO = KnownModel(
    name="nano",
    aliases=(),
    description="the embedded model: storybook scenes with a T-Rex, cat, dog, robot, fish, car, boat, rocket, house, "
    "tree, flower or balloon, drawn in seconds on any computer",
    repository=None,
    licence="Apache-2.0",
)
Z_IMAGE_TURBO = KnownModel(
    name="z-image-turbo",
    aliases=("alibaba/z-image-turbo", "aimlapi/alibaba/z-image-turbo", "Tongyi-MAI/Z-Image-Turbo"),
    description="Z-Image-Turbo, 6B parameters: photographs and text in English and Chinese; 33 GB to download",
    repository="Tongyi-MAI/Z-Image-Turbo",
    licence="Apache-2.0",
)
CATALOG = (NANO, Z_IMAGE_TURBO)


def known(name: str) -> KnownModel | None:
    """The known model of a name or alias."""
    return next((model for model in CATALOG if name in (model.name, *model.aliases)), None)


def local_path(model: KnownModel) -> Path | None:
    """Where a known model lies on this computer, without asking the network; None where a part of it is not there."""
    if model.repository is None:
        folder = EMBEDDED / model.name
        return folder if (folder / "model_index.json").is_file() else None
    from zturbo.weights.hub import find, is_whole_pipeline

    found = find(model.repository)
    return found if found is not None and is_whole_pipeline(found) else None


def _pulled(name: str) -> Path | None:
    """Where OWNER/NAME[@REVISION] of the hub lies on this computer after `zturbo models pull`."""
    from zturbo.weights.hub import find

    try:
        return find(name)
    except WeightsNotFound:  # no name of the hub
        return None


def resolve(name_or_path: str) -> tuple[str, Path, KnownModel | None]:
    """Name for people, path, and catalog entry (None for a folder or file of one's own, or another model of the hub).

    Raises:
        WeightsNotFound: neither a known model on this computer nor an existing path.
    """
    model = known(name_or_path)
    if model is not None:
        path = local_path(model)
        if path is None and model.repository is None:
            raise WeightsNotFound(
                f"the embedded model {model.name!r} is missing from this installation",
                "install zturbo again, or pass --model FOLDER",
            )
        if path is None:
            raise WeightsNotFound(
                f"the model {model.name!r} is not on this computer",
                f"`zturbo models pull {model.name}` downloads it; `--model nano` draws without a download",
            )
        return model.name, path, model
    from zturbo.weights.hub import existing

    if (path := existing(name_or_path)) is not None:
        return path.stem if path.is_file() else path.resolve().name, path, None
    if (pulled := _pulled(name_or_path)) is not None:
        return name_or_path, pulled, None
    names = ", ".join(model.name for model in CATALOG)
    raise WeightsNotFound(
        f"{name_or_path!r} is neither a known model nor an existing folder or file",
        f"known models: {names}; a folder in diffusers' layout, a .safetensors or a .gguf file work as well, "
        "and OWNER/NAME of the hub after `zturbo models pull OWNER/NAME`",
    )
