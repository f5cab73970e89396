"""The image autoencoder of Z-Image (the FLUX.1 VAE): pixels to latents and back.

Same parameter names and arithmetic as diffusers' `AutoencoderKL` without quant convolutions; any number of
levels and widths. Written here because importing diffusers costs more start-up time than the whole small model
(docs/log.md). It knows neither devices nor dtypes nor the latent scale: the pipeline does.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zturbo.models.configs import VaeConfig

NORM_EPS = 1e-6


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions, each after GroupNorm and SiLU, and a shortcut: (B,Cin,h,w) -> (B,Cout,h,w)."""

    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels_in, eps=NORM_EPS)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels_out, eps=NORM_EPS)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x)
        x = self.conv1(F.silu(self.norm1(x)))
        x = self.conv2(F.silu(self.norm2(x)))
        return shortcut + x


class Attention(nn.Module):
    """One head of full attention over all positions, with a shortcut: (B,C,h,w) -> (B,C,h,w)."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=NORM_EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        tokens = self.group_norm(x).flatten(2).transpose(1, 2).unsqueeze(1)  # (B,1,h*w,C)
        mixed = F.scaled_dot_product_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        mixed = self.to_out[0](mixed).squeeze(1).transpose(1, 2)  # (B,C,h*w)
        return x + mixed.unflatten(2, (height, width))


class MidBlock(nn.Module):
    """Resnet, attention (where the config has it), resnet, at the lowest resolution."""

    def __init__(self, channels: int, config: VaeConfig) -> None:
        super().__init__()
        groups = config.norm_num_groups
        self.resnets = nn.ModuleList([ResnetBlock(channels, channels, groups) for _ in range(2)])
        attentions = [Attention(channels, groups)] if config.mid_block_add_attention else []
        self.attentions = nn.ModuleList(attentions)

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class Downsample(nn.Module):
    """Halve both sides with a stride-2 convolution, padded on the right and bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double both sides by nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class DownBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, config: VaeConfig, *, last: bool) -> None:
        super().__init__()
        widths = [channels_in] + [channels_out] * (config.layers_per_block - 1)
        self.resnets = nn.ModuleList([ResnetBlock(width, channels_out, config.norm_num_groups) for width in widths])
        self.downsamplers = nn.ModuleList([] if last else [Downsample(channels_out)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in [*self.resnets, *self.downsamplers]:
            x = layer(x)
        return x


class UpBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, config: VaeConfig, *, last: bool) -> None:
        super().__init__()
        widths = [channels_in] + [channels_out] * config.layers_per_block
        self.resnets = nn.ModuleList([ResnetBlock(width, channels_out, config.norm_num_groups) for width in widths])
        self.upsamplers = nn.ModuleList([] if last else [Upsample(channels_out)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in [*self.resnets, *self.upsamplers]:
            x = layer(x)
        return x


class Encoder(nn.Module):
    """(B,3,H,W) in [-1,1] -> (B,2C,H/f,W/f): mean and log variance of the latents, stacked."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = config.block_out_channels
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        pairs = list(zip((widths[0], *widths), widths, strict=False))
        self.down_blocks = nn.ModuleList(
            [DownBlock(a, b, config, last=i == len(widths) - 1) for i, (a, b) in enumerate(pairs)]
        )
        self.mid_block = MidBlock(widths[-1], config)
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Decoder(nn.Module):
    """(B,C,h,w) -> (B,3,h*f,w*f) in about [-1,1]."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = config.block_out_channels[::-1]
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], config)
        pairs = list(zip((widths[0], *widths), widths, strict=False))
        self.up_blocks = nn.ModuleList(
            [UpBlock(a, b, config, last=i == len(widths) - 1) for i, (a, b) in enumerate(pairs)]
        )
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(latents))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class AutoencoderKL(nn.Module):
    """The whole autoencoder; the engine drops `encoder`, which only training and editing need."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents, before shift and scale.

        Args:
            images: (B, 3, H, W) in [-1, 1]; H and W multiples of `config.factor`.

        Returns:
            Two tensors (B, C, H/f, W/f); the log variance clamped to [-30, 20].
        """
        mean, logvar = self.encoder(images).chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, h*f, w*f) in about [-1, 1] from latents (B, C, h, w) in the VAE's own scale."""
        return self.decoder(latents)

    def to_vae_scale(self, latents: Tensor) -> Tensor:
        """From the transformer's scale to the VAE's: z / scaling_factor + shift_factor."""
        return latents / self.config.scaling_factor + self.config.shift_factor


def to_pixels(images: Tensor) -> Tensor:
    """8-bit pictures (B, H, W, 3) on the same device from (B, 3, H, W) in [-1, 1]: round(255 * clamp(y / 2 + 0.5))."""
    own = images.to(torch.float32, copy=True)  # changed in place: fresh memory costs more than the arithmetic
    scaled = own.mul_(0.5).add_(0.5).clamp_(0, 1).mul_(255).round_()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
