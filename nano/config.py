"""The sizes and budgets of a training, in one table: a profile per machine. Every script takes `--profile`.

`tiny` rehearses the whole chain in a minute (the tests run it), `cpu` trains a small world on two cores in some hours,
`onward` goes on from such weights, `gpu` trains a wide world on one large GPU in some half an hour (a first, shorter
run is in the log).
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from nano.world import PRACTICE, SMALL, WIDE, WIDE_PRACTICE, World


@dataclass(frozen=True)
class Bucket:
    """Pictures of one size (pixels) in the latent cache, drawings of fewer scenes.

    lounging: share of creatures on sun loungers among its scenes, where it differs from the world's.
    """

    width: int
    height: int
    pictures: int
    lounging: float | None = None


@dataclass(frozen=True)
class Stage:
    """A stretch of transformer training: which buckets, how often each, and for how long.

    tokens_per_batch: image tokens of one step of one process; the batch is this over the tokens that a picture is
        judged by.
    steps: how many, at most; by them the stages share `--minutes` out.
    peak, floor: of the learning rate; it falls from the one to their product.
    coarse: share of steps at the noise levels that decide the composition.
    kept: share of a picture's tokens that those steps look at.
    """

    buckets: tuple[tuple[int, int, float], ...]  # width, height, share
    tokens_per_batch: int
    steps: int
    peak: float = 1.0
    floor: float = 0.1
    coarse: float = 0.6
    kept: float = 1.0


@dataclass(frozen=True)
class Distillation:
    """How guidance is folded into the trained transformer.

    guidance: how far the teacher goes beyond its own velocity, as a multiple of its distance from what it is led away
        from: its weaker self, or (weaker_self false) what it would draw for the empty prompt.
    substeps: Euler steps of the teacher for one of the student's.
    tokens_per_batch: image tokens of one step of one process.
    rate: of the learning rates of training.
    share: how far the shipped weights go from the trained ones to the student's (Wortsman et al. 2022); under 1 keeps
        sizes whole that the weaker self had never seen.
    """

    steps: int
    guidance: float
    weaker_self: bool
    substeps: int
    tokens_per_batch: int
    rate: float
    share: float = 1.0


@dataclass(frozen=True)
class Finish:
    """How the decoder learns to draw from what the transformer draws.

    crops: of each drawing of a step's scene.
    rate: of the learning rates of training.
    """

    steps: int
    crops: int
    rate: float


@dataclass(frozen=True)
class LanguageShape:
    """Qwen3 in small."""

    vocabulary: int = 2048
    hidden: int = 192
    intermediate: int = 512
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 48


@dataclass(frozen=True)
class VaeShape:
    """AutoencoderKL in small; five levels make one latent per 16x16 pixels."""

    channels: tuple[int, ...] = (16, 16, 32, 64, 128)
    latents: int = 16
    groups: int = 4


@dataclass(frozen=True)
class TransformerShape:
    """S3-DiT in small; `axes` sums to the head's width."""

    dim: int = 240
    layers: int = 6
    refiners: int = 1
    heads: int = 3
    axes: tuple[int, int, int] = (16, 32, 32)


@dataclass(frozen=True)
class Profile:
    """All that a training is told."""

    name: str
    world: World
    workers: int  # drawing processes
    language: LanguageShape
    language_steps: int
    language_batch: int
    vae: VaeShape
    vae_steps: int
    vae_batch: int
    vae_crop: int
    transformer: TransformerShape
    buckets: tuple[Bucket, ...]
    stages: tuple[Stage, ...]
    judge_steps: int
    distillation: Distillation | None = None
    finish: Finish | None = None  # of the decoder
    compiled: bool = (
        False  # the transformer's blocks, for training: takes minutes, and a compiler (C++; on CUDA Triton)
    )
    practice: World | None = None  # what the transformer's pictures are drawn from, where that is not `world`
    drawings: int = 1  # of each scene in the cache, all its arrangements at best; noise says which it becomes
    captions_per_scene: int = 8
    checkpoint_every_s: float = 120.0
    sheet_every_s: float = 480.0
    seed: int = 20


_CPU_SHARES = (  # width, height, share; the published example's size often
    (512, 512, 0.48),
    (768, 512, 0.07),
    (512, 768, 0.07),
    (1440, 512, 0.18),
    (1024, 768, 0.08),
    (768, 1024, 0.05),
    (1024, 576, 0.03),
    (576, 1024, 0.02),
    (1024, 1024, 0.02),
)

_ALL_SHARES = (  # the largest sizes as well, which the network does not continue to from smaller ones by itself;
    # 1024x768, what a request has that names no size, second only to 512x512
    (512, 512, 0.29),
    (768, 512, 0.04),
    (512, 768, 0.04),
    (1440, 512, 0.11),
    (1024, 768, 0.18),
    (768, 1024, 0.05),
    (1024, 576, 0.02),
    (576, 1024, 0.015),
    (1024, 1024, 0.12),
    (2048, 2048, 0.015),
    (1536, 1024, 0.03),
    (1024, 1536, 0.02),
    (512, 1440, 0.01),
    (512, 2048, 0.005),
    (2048, 512, 0.01),
    (2048, 1024, 0.01),
    (1024, 2048, 0.01),
    (1536, 1536, 0.025),
)


def every_size(count: int, seed: int) -> tuple[tuple[int, int], ...]:
    """So many widths and heights (pixels) of all that a request may name, none twice.

    A picture's size decides where its things stand and how high they are. From sizes of a list a model learns the list,
    and draws a thing of two heights at once between them; from sizes of all kinds it learns the rule.
    """
    sides, chance = range(512, 2049, 32), Random(seed)
    return tuple(chance.sample([(width, height) for width in sides for height in sides], count))


_EVERY_SIZE = every_size(96, seed=17)
_ASKED_SHARES = (  # what most requests have, the narrowest and the largest
    (512, 512, 0.12),
    (1440, 512, 0.11),
    (1024, 768, 0.15),
    (1024, 1024, 0.09),
    (2048, 2048, 0.05),
    (768, 512, 0.015),
    (512, 768, 0.015),
    (768, 1024, 0.03),
    (1536, 1024, 0.02),
    (1024, 1536, 0.01),
    (1536, 1536, 0.01),
    (2048, 512, 0.01),
    (512, 1440, 0.005),
    (512, 2048, 0.005),
)
_EVERY_SHARES = (*_ASKED_SHARES, *((width, height, 0.36 / len(_EVERY_SIZE)) for width, height in _EVERY_SIZE))

CPU = Profile(
    name="cpu",
    world=SMALL,
    workers=2,
    language=LanguageShape(),
    language_steps=1500,
    language_batch=32,
    vae=VaeShape(),
    vae_steps=6000,
    vae_batch=4,
    vae_crop=128,
    transformer=TransformerShape(),
    buckets=(
        Bucket(512, 512, 16384),
        Bucket(1024, 768, 12288),
        Bucket(1024, 1024, 8192),
        Bucket(1440, 512, 5120, lounging=0.5),
        Bucket(768, 1024, 3072),
        Bucket(768, 512, 2048),
        Bucket(512, 768, 2048),
        Bucket(1024, 576, 1536),
        Bucket(576, 1024, 1024),
        Bucket(1536, 1024, 1024, lounging=0.25),
        Bucket(1024, 1536, 768),
        Bucket(2048, 2048, 512),
        Bucket(512, 1440, 512),
        Bucket(512, 2048, 512),
        Bucket(2048, 512, 512, lounging=0.25),
        Bucket(2048, 1024, 512, lounging=0.25),
        Bucket(1024, 2048, 512),
        Bucket(1536, 1536, 512),
    ),
    stages=(
        Stage(buckets=_CPU_SHARES, tokens_per_batch=3072, steps=4000, peak=0.7, floor=0.75, coarse=0.75, kept=0.5),
        # Its end is the weaker self of the distillation, which therefore has to know the largest sizes.
        Stage(buckets=_ALL_SHARES, tokens_per_batch=3072, steps=3000, peak=0.525, floor=0.5, coarse=0.75, kept=0.5),
        Stage(buckets=_ALL_SHARES, tokens_per_batch=3072, steps=3000, peak=0.2625, floor=0.0, coarse=0.7, kept=0.5),
    ),
    judge_steps=2000,
    distillation=Distillation(
        steps=1000, guidance=2.25, weaker_self=True, substeps=1, tokens_per_batch=3072, rate=0.25
    ),
    finish=Finish(steps=4000, crops=4, rate=0.3),
    practice=PRACTICE,
    drawings=4,
    captions_per_scene=24,
)

ONWARD = replace(
    CPU,
    name="onward",
    language_steps=900,
    buckets=(
        *(
            bucket
            for bucket in CPU.buckets
            if any(asked[:2] == (bucket.width, bucket.height) for asked in _ASKED_SHARES)
        ),
        *(Bucket(width, height, 64) for width, height in _EVERY_SIZE),
    ),
    stages=(
        Stage(buckets=_EVERY_SHARES, tokens_per_batch=4096, steps=1600, peak=0.5, floor=0.7, coarse=0.55, kept=0.5),
        Stage(buckets=_EVERY_SHARES, tokens_per_batch=4096, steps=3400, peak=0.35, floor=0.0, coarse=0.55, kept=0.5),
    ),
    distillation=Distillation(steps=650, guidance=1.2, weaker_self=True, substeps=1, tokens_per_batch=3072, rate=0.25),
    finish=Finish(steps=450, crops=4, rate=0.3),
    compiled=True,
)
"""`CPU` from weights that know most of it (`nano.adopt`): all sizes from the first step."""

_GPU_SHARES = (  # the sizes of most requests, before the largest
    (512, 512, 0.6),
    (768, 512, 0.12),
    (512, 768, 0.1),
    (1440, 512, 0.18),
)

GPU = Profile(
    name="gpu",
    world=WIDE,
    workers=14,
    language=LanguageShape(vocabulary=3072),
    language_steps=3000,
    language_batch=64,
    vae=VaeShape(),
    vae_steps=2000,
    vae_batch=64,
    vae_crop=128,
    transformer=TransformerShape(dim=256, layers=8, heads=4, axes=(16, 24, 24)),
    buckets=(
        Bucket(256, 256, 36864),
        Bucket(512, 512, 57344),
        Bucket(768, 512, 6144),
        Bucket(512, 768, 6144),
        Bucket(1440, 512, 8192, lounging=0.5),
        Bucket(1024, 768, 8192),
        Bucket(1024, 1024, 2560),
        Bucket(768, 1024, 2048),
        Bucket(2048, 2048, 384),
        Bucket(1536, 1024, 768, lounging=0.25),
        Bucket(1024, 1536, 512),
        Bucket(1024, 576, 1536),
        Bucket(576, 1024, 1024),
        Bucket(512, 1440, 768),
        Bucket(512, 2048, 512),
        Bucket(2048, 512, 512, lounging=0.25),
        Bucket(2048, 1024, 512, lounging=0.25),
        Bucket(1024, 2048, 384),
        Bucket(1536, 1536, 384),
    ),
    stages=(
        Stage(buckets=((256, 256, 1.0),), tokens_per_batch=32 * 1024, steps=3600, floor=0.8, kept=1.0),
        Stage(buckets=_GPU_SHARES, tokens_per_batch=32 * 1024, steps=4800, peak=0.8, floor=0.625, kept=0.5),
        # Its end is the weaker self of the distillation, which therefore has to know the largest sizes.
        Stage(buckets=_ALL_SHARES, tokens_per_batch=32 * 1024, steps=3000, peak=0.5, floor=0.6, kept=0.5),
        Stage(buckets=_ALL_SHARES, tokens_per_batch=32 * 1024, steps=5400, peak=0.3, floor=0.0, kept=0.5),
    ),
    judge_steps=2500,
    distillation=Distillation(
        steps=500, guidance=1.5, weaker_self=True, substeps=1, tokens_per_batch=32 * 1024, rate=0.25
    ),
    finish=Finish(steps=2000, crops=16, rate=0.3),
    compiled=True,
    practice=WIDE_PRACTICE,
    drawings=4,
    captions_per_scene=12,
)

TINY = Profile(
    name="tiny",
    world=SMALL,
    workers=1,
    language=LanguageShape(vocabulary=512, hidden=32, intermediate=64, layers=2, heads=2, kv_heads=1, head_dim=16),
    language_steps=3,
    language_batch=4,
    vae=VaeShape(channels=(16, 16, 16, 32, 64)),
    vae_steps=2,
    vae_batch=2,
    vae_crop=64,
    transformer=TransformerShape(dim=48, layers=3, refiners=1, heads=2, axes=(8, 8, 8)),
    buckets=(Bucket(256, 256, 8), Bucket(320, 256, 4)),
    stages=(
        Stage(buckets=((256, 256, 0.5), (320, 256, 0.5)), tokens_per_batch=256, steps=3),
        Stage(buckets=((256, 256, 0.5), (320, 256, 0.5)), tokens_per_batch=256, steps=2, peak=0.5, floor=0.0),
    ),
    judge_steps=3,
    distillation=Distillation(
        steps=2, guidance=1.0, weaker_self=True, substeps=2, tokens_per_batch=256, rate=0.25, share=0.5
    ),
    finish=Finish(steps=2, crops=1, rate=0.3),
    drawings=2,
    captions_per_scene=2,
)

PROFILES = {profile.name: profile for profile in (TINY, CPU, ONWARD, GPU)}


@dataclass(frozen=True)
class Folders:
    """Where a run keeps its things."""

    root: Path
    tokenizer: Path = field(init=False)
    language: Path = field(init=False)
    vae: Path = field(init=False)
    latents: Path = field(init=False)
    transformer: Path = field(init=False)
    distillation: Path = field(init=False)
    decoder: Path = field(init=False)

    def __post_init__(self) -> None:
        for name, where in (
            ("tokenizer", "tokenizer.json"),
            ("language", "language.pt"),
            ("vae", "vae.pt"),
            ("latents", "latents"),
            ("transformer", "transformer.pt"),
            ("distillation", "distillation.pt"),
            ("decoder", "decoder.pt"),
        ):
            object.__setattr__(self, name, self.root / where)
