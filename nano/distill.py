"""Make eight steps without guidance enough: a student learns in one step what its teacher does with guidance.

    python -m nano.distill --profile cpu --folder RUN [--minutes M] [--weak CHECKPOINT]

Teacher and student start as the trained transformer. The teacher is guided away from what it would draw without the
prompt (Ho and Salimans 2022), or from what its weaker self, an earlier checkpoint, would draw (Karras et al. 2024: both
make the same mistakes, the weaker one larger ones). Over one step of the eight-step schedule the teacher takes some
guided Euler steps; the student's velocity at its start is to be the straight line to where the teacher arrives
(progressive distillation, Salimans and Ho 2022, on Euler steps).
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nano import parallel
from nano.config import Distillation, Folders, Profile
from nano.language import load as load_language
from nano.latents import Batch, Cache, caches, chosen_drawing
from nano.sheet import SHIFT, save_sheet
from nano.training import (
    Average,
    Optimizers,
    Run,
    Shadow,
    arguments,
    cosine,
    device,
    fingerprint,
    opened,
    restored,
    save,
    working_dtype,
)
from nano.transformer import (
    ANYWHERE,
    VISITED,
    asked_to_compile,
    build,
    compile_flag,
    compiled,
    empty_prompt,
    open_weights,
    stage_file,
    token_weights,
)
from zturbo.engine.sampling import sigmas
from zturbo.models.text_encoder import Qwen3
from zturbo.models.transformer import ZImageTransformer, patchify

Guided = Callable[[Tensor, Tensor], Tensor]
"""Latents (B,C,h,w) and their noise levels (B,) -> guided velocity (B,C,h,w) fp32."""


class Teacher:
    """The trained transformer, guided; it and its weaker self are turned to the working dtype in place.

    weak: its weaker self; None guides away from the empty prompt.
    guidance: how far beyond its own velocity, as a multiple of the distance to what it is led away from.
    empty: token ids (1,L) of the empty prompt.
    """

    def __init__(
        self, model: ZImageTransformer, weak: ZImageTransformer | None, guidance: float, empty: Tensor
    ) -> None:
        self.models = [one.to(working_dtype()).requires_grad_(False) for one in (model, weak or model)]
        self.guidance, self.empty = guidance, None if weak else empty

    def asked(self, ids: Tensor, language: Qwen3) -> Guided:
        """The velocity for prompts of token ids (B,L)."""
        prompt = language.encode(ids)
        instead = prompt if self.empty is None else language.encode(self.empty.expand(len(ids), -1))
        captions = [model.embed_caption(states) for model, states in zip(self.models, (prompt, instead), strict=True)]

        def velocity(latents: Tensor, level: Tensor) -> Tensor:
            good, bad = (
                model(latents.to(working_dtype()), caption, model.modulation(1 - level)).float()
                for model, caption in zip(self.models, captions, strict=True)
            )
            return good + self.guidance * (good - bad)

        return velocity


def steps_of(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(count,) noise levels where steps of the eight-step schedule start and end; some are moved to between its own."""
    place = generator.device
    levels = torch.cat((sigmas(VISITED, SHIFT), torch.zeros(1))).to(place)
    index = torch.randint(VISITED, (count,), generator=generator, device=place)
    moved = torch.rand(count, generator=generator, device=place) < ANYWHERE
    share = torch.rand(count, generator=generator, device=place) * moved
    return tuple(torch.lerp(levels[index + i], levels[index + i + 1], share) for i in (0, 1))  # type: ignore[return-value]


def teacher_path(guided: Guided, latents: Tensor, start: Tensor, end: Tensor, substeps: int) -> Tensor:
    """Mean guided velocity (B,C,h,w) fp32 from noise levels `start` to `end`, (B,) each, in equal Euler steps."""
    here, mean, step = latents, torch.zeros_like(latents), ((start - end) / substeps).view(-1, 1, 1, 1)
    for number in range(substeps):
        velocity = guided(here, torch.lerp(start, end, number / substeps))
        here, mean = here + step * velocity, mean + velocity / substeps
    return mean


def distillation_loss(
    student: ZImageTransformer,
    teacher: Teacher,
    language: Qwen3,
    batch: Batch,
    substeps: int,
    generator: torch.Generator,
) -> Tensor:
    """Squared distance of the student's velocity from its teacher's path, tokens weighted as in training.

    generator: on the device of the batch.
    """
    drawings, all_labels, ids = batch
    start, end = steps_of(len(drawings), generator)
    noise = torch.randn(drawings[:, 0].shape, generator=generator, device=generator.device)
    clean, labels = chosen_drawing(drawings, all_labels, noise)
    latents = torch.lerp(clean, noise, start.view(-1, 1, 1, 1))
    with torch.no_grad():
        target = teacher_path(teacher.asked(ids, language), latents, start, end, substeps)
        prompt = language.encode(ids)
    drawn = student(latents.to(working_dtype()), student.embed_caption(prompt), student.modulation(1 - start))
    error = patchify((drawn.float() - target).square(), student.config.patch_size).mean(-1)
    open_ones = open_weights(drawings, None, student.config.patch_size)
    weight = token_weights(labels[..., 0]).maximum(open_ones)
    return (error * weight).sum() / weight.sum()


class Distiller:
    """All the state of a distillation, and how it is saved and restored."""

    def __init__(
        self,
        profile: Profile,
        folders: Folders,
        minutes: float,
        plan: Distillation,
        trained: dict[str, Any],
        weak: Path | None,
        compile_blocks: bool = False,
    ) -> None:
        self.profile, self.plan, self.path = profile, plan, folders.distillation
        self.language, tokenizer = load_language(folders, profile)
        self.language.to(working_dtype())
        self.student = _filled(profile, trained["average"])
        self.trained = [weight.detach().clone() for weight in self.student.parameters()]
        weaker = _filled(profile, _average(weak)) if weak else None
        self.teacher = Teacher(_filled(profile, trained["average"]), weaker, plan.guidance, empty_prompt(tokenizer))
        self.average = Average(self.student, horizon=200)
        rates = {"lr": 1e-3 * plan.rate, "muon_lr": 0.02 * plan.rate}
        self.optimizers = Optimizers(self.student.named_parameters(), muon=("layers", "refiner"), **rates)
        self.choice = torch.Generator().manual_seed(profile.seed + 77)  # of sizes: the same in all processes
        self.run = Run("distill", plan.steps, minutes, profile.checkpoint_every_s)
        self.of = fingerprint(trained["average"])
        if (state := restored(self.path)) and state.get("of") == self.of:  # else of weights trained on since
            self.student.load_state_dict(state["student"])
            self.average.model.load_state_dict(state["average"])
            self.optimizers.load_state_dict(state["optimizers"])
            self.choice.set_state(state["choice"])
            self.average.steps = self.run.step = self.run.first = state["step"]
            self.run.spent_s = state["spent_s"]
        first = 1000 * (profile.seed + self.run.step) + 78 + parallel.rank()
        self.generator = torch.Generator(device()).manual_seed(first)
        self.picks = torch.Generator().manual_seed(first + 50)  # of pictures and captions
        self.shadow = Shadow(self.student)
        if compile_blocks:
            for model in (self.shadow.model, *self.teacher.models):
                compiled(model)

    def step(self, cache: Cache, progress: float) -> Tensor:
        """One step on one batch at a share of the whole; returns its loss."""
        self.shadow.refresh()
        batch = cache.batch(max(1, self.plan.tokens_per_batch // cache.tokens), self.picks)
        loss = distillation_loss(
            self.shadow.model, self.teacher, self.language, batch, self.plan.substeps, self.generator
        )
        loss.backward()
        self.shadow.hand_back()
        parallel.average_gradients(self.student)
        self.optimizers.step(cosine(progress))
        self.average.update(self.student)
        return loss.detach()

    def save(self) -> None:
        save(
            self.path,
            {
                "student": self.student.state_dict(),
                "average": self.average.model.state_dict(),
                "optimizers": self.optimizers.state_dict(),
                "choice": self.choice.get_state(),
                "step": self.run.step,
                "spent_s": self.run.elapsed_s,
                "of": self.of,
            },
        )


def teacher_file(folders: Folders) -> Path:
    """Where a distilled run keeps its transformer as it was before."""
    return folders.transformer.with_name("teacher.pt")


def distill(
    profile: Profile, folders: Folders, minutes: float, weak: Path | None = None, compile_blocks: bool = False
) -> None:
    """Distil, and put the student in the trained transformer's place; the teacher is kept beside it.

    weak: checkpoint of the weaker self; the one that training left before its last stage where none is given.

    Raises:
        FileNotFoundError: nothing has been trained yet, or there is no weaker self and the profile asks for one.
    """
    parallel.start()
    plan, state = profile.distillation, restored(folders.transformer)
    if state is None:
        raise FileNotFoundError(f"{folders.transformer}: train the transformer first (python -m nano.transformer)")
    if plan is None or state.get("distilled"):
        return
    weak = (weak or stage_file(folders, len(profile.stages) - 2)) if plan.weaker_self else None
    distiller = Distiller(profile, folders, minutes, plan, state, weak, compile_blocks)
    stage, first = profile.stages[-1], parallel.rank() == 0
    sizes, shares = caches(folders, stage.buckets)
    while (progress := parallel.agreed(distiller.run.progress)) < 1.0:
        loss = distiller.step(sizes[int(torch.multinomial(shares, 1, generator=distiller.choice))], progress)
        distiller.run.tick(loss=loss)
        if first and distiller.run.due():
            distiller.save()
    if first:
        average = distiller.average.model
        for trained, weight in zip(distiller.trained, average.parameters(), strict=True):
            weight.copy_(torch.lerp(trained, weight, plan.share))
        save(teacher_file(folders), state)
        save(folders.transformer, {**state, "average": average.state_dict(), "distilled": True})
        save_sheet(profile, folders, average, "distilled")


def _filled(profile: Profile, weights: dict[str, Tensor]) -> ZImageTransformer:
    model = build(profile)
    model.load_state_dict(weights)
    return model


def _average(path: Path) -> dict[str, Tensor]:
    state = restored(path)
    if state is None:
        raise FileNotFoundError(f"{path}: no checkpoint of a weaker transformer; name one with --weak")
    weights: dict[str, Tensor] = state["average"]
    return weights


def main() -> None:
    parser: argparse.ArgumentParser = arguments("distil the transformer to eight steps without guidance")
    parser.add_argument("--weak", type=Path, help="checkpoint (.pt) of the weaker self that guidance leads away from")
    compile_flag(parser)
    parsed = parser.parse_args()
    profile, folders = opened(parsed)
    distill(profile, folders, parsed.minutes, parsed.weak, asked_to_compile(parsed, profile))


if __name__ == "__main__":
    main()
