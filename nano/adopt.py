"""Go on from shipped weights, or from another run: its parts become a run's checkpoints, at step 0.

    python -m nano.adopt --profile cpu --folder RUN --model zturbo/embedded/nano
    python -m nano.adopt --profile cpu --folder RUN --run OTHER_RUN

Only where the run has no checkpoint of a part yet. What a model folder has lost is what bf16 rounds off and the
optimizers' memory; what another run keeps, and a model folder does not, is the transformer before its distillation.
"""

import shutil
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from nano.config import Folders, Profile
from nano.distill import teacher_file
from nano.language import build as build_language
from nano.tokenizer import load as load_tokenizer
from nano.training import Optimizers, arguments, opened, restored, save
from nano.transformer import Trainer
from nano.vae import build as build_vae
from nano.vae import optimizers as vae_optimizers
from zturbo.weights.checkpoint import Component, open_checkpoint

Network = TypeVar("Network", bound=nn.Module)


def adopt(profile: Profile, folders: Folders, model: Path) -> None:
    """Write `tokenizer.json`, `language.pt`, `vae.pt` and `transformer.pt` of a run from a model folder.

    Raises:
        WeightsError: the folder's weights are of another shape than the profile's.
    """
    checkpoint = open_checkpoint(model)
    assert checkpoint.text_encoder is not None
    assert checkpoint.vae is not None
    if not folders.tokenizer.exists():
        shutil.copy(model / "tokenizer" / "tokenizer.json", folders.tokenizer)
    if not folders.language.exists():
        language = _filled(build_language(profile, load_tokenizer(folders)), checkpoint.text_encoder)
        fresh = Optimizers(language.named_parameters(), muon=("layers.",), lr=2e-3)
        save(folders.language, _started(language) | {"optimizers": fresh.state_dict()})
    if not folders.vae.exists():
        vae, config = _filled(build_vae(profile.vae), checkpoint.vae), checkpoint.vae.config
        factors = {"scaling": config.scaling_factor, "shift": config.shift_factor}
        save(folders.vae, _started(vae) | {"optimizers": vae_optimizers(vae).state_dict()} | factors)
    if not folders.transformer.exists():
        trainer = Trainer(profile, folders, minutes=1.0)
        _filled(trainer.trainee.model, checkpoint.transformer)
        trainer.average.model.load_state_dict(trainer.trainee.model.state_dict())
        trainer.save()


def adopt_run(folders: Folders, other: Folders) -> None:
    """Copy the same checkpoints from another run of the same shapes; of its transformer the one before distillation.

    Raises:
        FileNotFoundError: the other run has no such checkpoint.
    """
    teacher = teacher_file(other)
    again: dict[str, object] = {"step": 0, "spent_s": 0.0}
    for theirs, ours, more in (
        (other.language, folders.language, again),
        (other.vae, folders.vae, again | {"finished": False}),
        (teacher if teacher.exists() else other.transformer, folders.transformer, again | {"stage": 0}),
    ):
        if ours.exists():
            continue
        if (state := restored(theirs)) is None:
            raise FileNotFoundError(f"{theirs}: the other run has not trained it yet")
        save(ours, state | more)
    if not folders.tokenizer.exists():
        shutil.copy(other.tokenizer, folders.tokenizer)


def _filled(network: Network, part: Component[Any]) -> Network:
    part.load_into(network, dtype=torch.float32, device=torch.device("cpu"))
    return network


def _started(model: nn.Module) -> dict[str, object]:
    return {"model": model.state_dict(), "average": model.state_dict(), "step": 0, "spent_s": 0.0}


def main() -> None:
    parser = arguments("go on from shipped weights")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", type=Path, help="the model folder, e.g. zturbo/embedded/nano")
    source.add_argument("--run", type=Path, help="the folder of another run")
    parsed = parser.parse_args()
    profile, folders = opened(parsed)
    if parsed.run:
        adopt_run(folders, Folders(parsed.run))
    else:
        adopt(profile, folders, parsed.model)


if __name__ == "__main__":
    main()
