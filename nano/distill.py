"""Make eight steps enough: a student learns to go in one step where its teacher, with guidance, goes in several.

    python -m nano.distill --profile gpu --folder RUN

Teacher and student start as the trained transformer. Between two neighbouring noise levels of the eight-step schedule
the teacher takes `SUBSTEPS` guided Euler steps (Ho and Salimans 2022); the student's velocity at the first level is to
be the straight line to where the teacher arrives (progressive distillation, Salimans and Ho 2022, on Euler steps).
Guidance needs a transformer that was trained on empty prompts too, which profiles with `distill_steps` are.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from nano.config import Folders, Profile
from nano.language import load as load_language
from nano.latents import Cache, bucket_folder
from nano.sheet import save_sheet
from nano.training import (
    Average,
    Optimizers,
    Run,
    Shadow,
    arguments,
    cosine,
    device,
    opened,
    restored,
    save,
    working_dtype,
)
from nano.transformer import SHIFT, build, empty_prompt
from zturbo.engine.sampling import sigmas
from zturbo.models.text_encoder import Qwen3
from zturbo.models.transformer import ZImageTransformer

STEPS = 8
SUBSTEPS = 3
GUIDANCE = 2.5
RATE = 0.15  # of the learning rates of training


@torch.no_grad()
def teacher_path(
    teacher: ZImageTransformer, latents: Tensor, captions: tuple[Tensor, Tensor], start: Tensor, end: Tensor
) -> Tensor:
    """Mean guided velocity (B,C,h,w) fp32 from noise level `start` to `end`, (B,) each; captions: prompt and empty."""
    here, levels = latents, [torch.lerp(start, end, i / SUBSTEPS) for i in range(SUBSTEPS + 1)]
    for now, after in pairwise(levels):
        modulation = teacher.modulation(1 - now)
        asked, free = (teacher(here.to(working_dtype()), caption, modulation).float() for caption in captions)
        here = here + (now - after).view(-1, 1, 1, 1) * (free + GUIDANCE * (asked - free))
    return (here - latents) / (start - end).view(-1, 1, 1, 1)


def distillation_loss(
    student: ZImageTransformer,
    teacher: ZImageTransformer,
    language: Qwen3,
    batch: tuple[Tensor, Tensor],
    empty: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Squared distance of the student's velocity from its teacher's path, at random levels of the schedule."""
    clean, ids = (part.to(device()) for part in batch)
    levels = sigmas(STEPS, SHIFT)
    index = torch.randint(STEPS, (len(clean),), generator=generator)
    start, end = levels[index].to(clean.device), levels[index + 1].to(clean.device)
    noise = torch.randn(clean.shape, generator=generator).to(clean.device)
    latents = torch.lerp(clean, noise, start.view(-1, 1, 1, 1))
    with torch.no_grad():
        prompt, nothing = language.encode(ids), language.encode(empty.expand(len(clean), -1))
        captions = teacher.embed_caption(prompt), teacher.embed_caption(nothing)
    target = teacher_path(teacher, latents, captions, start, end)
    drawn = student(latents.to(working_dtype()), student.embed_caption(prompt), student.modulation(1 - start))
    return F.mse_loss(drawn.float(), target)


def distill(profile: Profile, folders: Folders, minutes: float) -> None:
    """Distil, and put the student in the trained transformer's place; the teacher is kept beside it."""
    state = restored(folders.transformer)
    if state is None or state.get("distilled"):
        return
    language, tokenizer = load_language(folders, profile)
    language.to(working_dtype())
    student, teacher = build(profile), build(profile)
    for model in (student, teacher):
        model.load_state_dict(state["average"])
    teacher.to(working_dtype()).requires_grad_(False)
    shadow, average = Shadow(student), Average(student, horizon=200)
    optimizers = Optimizers(student.named_parameters(), muon=("layers", "refiner"), lr=1e-3 * RATE, muon_lr=0.02 * RATE)
    stage, generator = profile.stages[-1], torch.Generator().manual_seed(profile.seed + 77)
    caches = [Cache.load(bucket_folder(folders, width, height)) for width, height, _ in stage.buckets]
    shares, empty = torch.tensor([share for *_, share in stage.buckets]), empty_prompt(tokenizer)
    run = Run("distill", profile.distill_steps, minutes)
    while not run.done:
        cache = caches[int(torch.multinomial(shares, 1, generator=generator))]
        clean, _, ids = cache.batch(max(1, stage.tokens_per_batch // cache.labels.shape[1] // 2), generator)
        shadow.refresh()
        loss = distillation_loss(shadow.model, teacher, language, (clean, ids), empty, generator)
        loss.backward()
        shadow.hand_back()
        optimizers.step(cosine(run.progress))
        average.update(student)
        run.tick(loss=loss.detach())
    save(folders.transformer.with_name("teacher.pt"), state)
    save(folders.transformer, {**state, "average": average.model.state_dict(), "distilled": True})
    save_sheet(profile, folders, average.model, "distilled")


def main() -> None:
    parsed = arguments("distil the transformer to eight steps").parse_args()
    profile, folders = opened(parsed)
    if profile.distill_steps:
        distill(profile, folders, parsed.minutes)
    else:
        print(f"distill: the profile {profile.name} does without")


if __name__ == "__main__":
    main()
