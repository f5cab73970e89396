"""Train the autoencoder: pictures to smooth latents of few channels and back, with crisp edges.

    python -m nano.vae --profile cpu --folder RUN

The encoder is written down (moments.py), so latents can be cached at once; the decoder is trained: L1 on pixels and
on every level of a Laplacian pyramid (edges count as much as areas), with noise on the latents, so that small errors
of the transformer stay small errors of the picture.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from nano.config import Folders, Profile, VaeShape
from nano.drawing import Crops, stream
from nano.moments import write_encoder
from nano.training import Average, Optimizers, Run, arguments, cosine, device, half_precision, opened, restored, save
from zturbo.models.configs import VaeConfig
from zturbo.models.vae import AutoencoderKL, ResnetBlock

LATENT_NOISE = 0.15  # standard deviation at most, in latents of unit deviation; every crop draws its own share of it
EDGE_WEIGHT = 1.0
LEVELS = 4


def vae_config(shape: VaeShape, scaling: float = 1.0, shift: float = 0.0) -> dict[str, object]:
    """`vae/config.json` of a shape and a latent scale."""
    levels = len(shape.channels)
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(shape.channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "force_upcast": False,
        "in_channels": 3,
        "latent_channels": shape.latents,
        "layers_per_block": 1,
        "mid_block_add_attention": False,
        "norm_num_groups": shape.groups,
        "out_channels": 3,
        "sample_size": 512,
        "scaling_factor": scaling,
        "shift_factor": shift,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "use_post_quant_conv": False,
        "use_quant_conv": False,
    }


def build(shape: VaeShape) -> AutoencoderKL:
    """An untrained autoencoder."""
    model = AutoencoderKL(VaeConfig.from_dict(vae_config(shape), "nano"))
    for layer in model.modules():
        if isinstance(
            layer, torch.nn.Conv2d
        ):  # keeps the variance: the default lets nine layers in a row fade to their biases
            torch.nn.init.normal_(layer.weight, std=(layer.weight[0].numel()) ** -0.5)
            torch.nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    for layer in model.modules():
        if isinstance(layer, ResnetBlock):  # starts as its shortcut, so that the whole starts as a linear autoencoder
            torch.nn.init.zeros_(layer.conv2.weight)
    return model.to(device=device(), memory_format=torch.channels_last)  # type: ignore[call-overload]


def load(folders: Folders, profile: Profile) -> tuple[AutoencoderKL, float, float]:
    """The trained autoencoder, its scaling factor and its shift."""
    state = restored(folders.vae)
    if state is None:
        raise FileNotFoundError(f"{folders.vae}: train the autoencoder first (python -m nano.vae)")
    model = build(profile.vae)
    model.load_state_dict(state["average"])
    return model.eval().requires_grad_(False), state["scaling"], state["shift"]


def pyramid_loss(drawn: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error over the bands of a Laplacian pyramid; (B,3,H,W) each."""
    error, loss = drawn - target, torch.zeros((), device=drawn.device)
    for _ in range(LEVELS):
        coarse = F.avg_pool2d(error, 2)
        loss = loss + (error - F.interpolate(coarse, scale_factor=2.0)).abs().mean()
        error = coarse
    return loss + error.abs().mean()


def losses(model: AutoencoderKL, images: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Mean absolute error and edge error of a batch (B,3,H,W) in [-1,1], drawn from slightly wrong latents."""
    with torch.no_grad(), half_precision():
        mean = model.encode(images)[0].float()
        wrong = LATENT_NOISE / scaling * torch.rand(len(mean), 1, 1, 1, device=mean.device) ** 2
    return errors(model, mean + wrong * torch.randn_like(mean), images)


def errors(model: AutoencoderKL, latents: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean absolute error and edge error of latents (B,C,h,w), in the decoder's scale, of a batch (B,3,H,W)."""
    with half_precision():
        drawn = model.decode(latents).float()
    if drawn.requires_grad:  # the pyramid's gradients come in another memory layout, which slows every convolution
        drawn.register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))
    return (drawn - images).abs().mean(), pyramid_loss(drawn, images)


def batches(profile: Profile, first: int = 0) -> Iterator[Tensor]:
    """(B,3,crop,crop) in [-1,1] on the device, for ever; others where a run goes on from step `first`."""
    make = Crops(profile.world, profile.vae_crop)
    for crops in stream(make, profile.vae_batch // make.per_picture, profile.workers, profile.seed + 1000 * first):
        images = crops.flatten(0, 1).to(device(), non_blocking=True).float() / 127.5 - 1
        yield images.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def start(profile: Profile, source: Iterator[Tensor]) -> tuple[AutoencoderKL, float, float]:
    """A model with its encoder written down, and the scaling factor and shift that give latents of deviation 1."""
    model, samples = build(profile.vae), torch.cat([next(source) for _ in range(24)])
    write_encoder(model, samples)
    latents = model.encode(samples)[0]
    return model, 1.0 / float(latents.std()), float(latents.mean())


def optimizers(model: AutoencoderKL, rate: float = 1.0) -> Optimizers:
    """Of the decoder, at a share of the learning rates; the encoder stays as it is written."""
    rates = {"lr": 3e-3 * rate, "muon_lr": 0.01 * rate}
    return Optimizers(model.decoder.named_parameters(), muon=("blocks", "mid_block"), **rates)


def train(profile: Profile, folders: Folders, minutes: float) -> None:
    """Train, or go on training, to the profile's number of steps; a decoder that was finished is left as it is."""
    state = restored(folders.vae)
    if state and state.get("finished"):
        return
    source = batches(profile, state["step"] if state else 0)
    model, scaling, shift = (build(profile.vae), 1.0, 0.0) if state else start(profile, source)
    model.encoder.requires_grad_(False)
    average, optimizer = Average(model, horizon=200), optimizers(model)
    run = Run("vae", profile.vae_steps, minutes, profile.checkpoint_every_s)
    if state:
        model.load_state_dict(state["model"])
        average.model.load_state_dict(state["average"])
        average.steps, scaling, shift = state["step"], state["scaling"], state["shift"]
        optimizer.load_state_dict(state["optimizers"])
        run = Run("vae", profile.vae_steps, minutes, profile.checkpoint_every_s, state["step"], state["spent_s"])

    def checkpoint() -> None:
        save(
            folders.vae,
            {
                "model": model.state_dict(),
                "average": average.model.state_dict(),
                "optimizers": optimizer.state_dict(),
                "step": run.step,
                "spent_s": run.elapsed_s,
                "scaling": scaling,
                "shift": shift,
            },
        )

    checkpoint()
    while not run.done:
        pixels, edges = losses(model, next(source), scaling)
        (pixels + EDGE_WEIGHT * edges).backward()
        optimizer.step(cosine(run.progress, floor=0.02))
        average.update(model)
        run.tick(l1=pixels.detach(), edges=edges.detach())
        if run.due():
            checkpoint()


def main() -> None:
    parsed = arguments("train the autoencoder").parse_args()
    profile, folders = opened(parsed)
    train(profile, folders, parsed.minutes)


if __name__ == "__main__":
    main()
