"""Give a run the decoder that another run has trained: both encoders hold the same moments, in scales of their own.

    python -m nano.refit --profile cpu --folder RUN --decoder OTHER_RUN/vae.pt

A run's encoder is written down from its own samples (moments.py), and its transformer has learnt those scales. The
other decoder's first convolution takes them over, exactly but at the border, where it sees zeros.
"""

from pathlib import Path

import torch
from torch import Tensor

from nano.config import Folders, Profile
from nano.moments import as_convolution
from nano.training import arguments, opened, restored, save
from nano.vae import build, optimizers
from zturbo.models.vae import AutoencoderKL

ALIKE = 0.02
"""Relative difference, at most, of two encoders' kernels after their scales were matched."""


def scales(own: AutoencoderKL, other: AutoencoderKL) -> tuple[Tensor, Tensor]:
    """Factor and offset (C,) each that turn the means of `own` encoder into those of `other`.

    Raises:
        ValueError: they are not the same moments.
    """
    (ours, our_bias), (theirs, their_bias) = as_convolution(own), as_convolution(other)
    ours, theirs = ours.flatten(1), theirs.flatten(1)
    factor = (ours * theirs).sum(1) / ours.square().sum(1)
    apart = float(((theirs - factor[:, None] * ours).norm(dim=1) / theirs.norm(dim=1)).max())
    if apart > ALIKE:
        raise ValueError(f"the encoders differ by {apart:.2g} beyond their scales, at most {ALIKE} is allowed")
    return factor, their_bias - factor * our_bias


@torch.no_grad()
def refit(own: AutoencoderKL, other: AutoencoderKL) -> None:
    """Replace a decoder by `other`'s, its first convolution reading the latents of `own` encoder."""
    factor, offset = scales(own, other)
    own.decoder.load_state_dict(other.decoder.state_dict())
    first = own.decoder.conv_in
    assert first.bias is not None
    first.bias += (first.weight * offset.view(1, -1, 1, 1)).sum((1, 2, 3))
    first.weight *= factor.view(1, -1, 1, 1)


def refit_run(profile: Profile, folders: Folders, decoder: Path) -> None:
    """Put another run's averaged decoder into the autoencoder of a run; what trained the old one is forgotten.

    Raises:
        FileNotFoundError: one of the two checkpoints is not there.
        ValueError: their encoders are not the same moments.
    """
    found = []
    for path in (folders.vae, decoder):
        state = restored(path)
        if state is None:
            raise FileNotFoundError(f"{path}: no autoencoder; `python -m nano.vae` trains one")
        model = build(profile.vae)
        model.load_state_dict(state["average"])
        found.append((model, state))
    (own, ours), (other, _) = found
    refit(own, other)
    weights, fresh = own.state_dict(), optimizers(own).state_dict()
    folders.decoder.unlink(missing_ok=True)
    save(folders.vae, ours | {"model": weights, "average": weights, "optimizers": fresh, "finished": False})


def main() -> None:
    parser = arguments("take over the decoder of another run")
    parser.add_argument("--decoder", type=Path, required=True, help="the other run's vae.pt")
    parsed = parser.parse_args()
    profile, folders = opened(parsed)
    refit_run(profile, folders, parsed.decoder)


if __name__ == "__main__":
    main()
