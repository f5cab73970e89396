"""Train the transformer: flow matching on cached latents, captions read by the frozen language model.

    python -m nano.transformer --profile cpu --folder RUN [--minutes M]

Flow matching (Lipman et al. 2023), Muon on the blocks' matrices, an average of the weights, and four uses of what the
drawing knows anyway or the sampler fixes:

- an auxiliary head after the third block names what lies under each token (it binds words to places early, and is not
  shipped), and tokens under a thing weigh more than those under the backdrop, most of a picture and learnt first; those
  under a head, which tells creatures apart, and under what it wears still more: few, and named by a prompt as plainly;
- noise is paired with the nearest of its scene's drawings (`latents.nearest_drawing`), so that it says from the first
  step on what no prompt says;
- most steps are at the noise levels that eight steps visit;
- where noise hides the neighbours anyway, a picture is judged by a random part of its tokens (after MaskDiT, Zheng et
  al. 2023, without its decoder): two pictures for the price of one.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from nano import parallel
from nano.config import Folders, Profile, Stage, TransformerShape
from nano.language import load as load_language
from nano.latents import FIRST_THING, Batch, Cache, caches, chosen_drawing
from nano.sheet import SHIFT, save_sheet
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
from nano.world import COLOURS, HEADS, LABEL, LABELS, WORN
from zturbo.engine.sampling import sigmas
from zturbo.engine.tokenizer import chat_prompt
from zturbo.models.attention import round_up
from zturbo.models.configs import TransformerConfig
from zturbo.models.text_encoder import Qwen3
from zturbo.models.transformer import Block, ZImageTransformer, patchify

LAYOUT_WEIGHT = 0.2
LAYOUT_BLOCK = 2  # index of the block whose output the auxiliary head reads
EMPTY_SHARE = 0.1  # of the steps have the empty prompt, where guidance will be distilled
THING_WEIGHT = 3.0  # of tokens under a thing, beside 1 for the backdrop
HEAD_WEIGHT = 6.0  # of tokens under a creature's head
WORN_WEIGHT = 8.0  # of tokens under sunglasses, a hat or a scarf
OPEN_WEIGHT = 4.0  # of tokens in which the drawings of a scene differ more than they do in the mean
VISITED = 8  # steps whose noise levels are trained most
COARSE = 0.7  # noise levels from here on decide the composition
MOST_KEPT = 1024  # tokens of a large picture at most that coarse steps look at: several pictures teach more than one
ANYWHERE = 0.25  # share of noise levels beside the visited ones, for other numbers of steps
VARIANTS = 32  # of a block's code: with a picture's own positions or all one's, last block or not, caption or picture
SMALLEST = 512  # side of the pictures of a sheet, unless a stage has no such size
GATE = 0.25  # where the residual gates start: blocks take part from the first step


def transformer_config(shape: TransformerShape, latents: int, caption_width: int) -> dict[str, object]:
    """`transformer/config.json` of a shape."""
    return {
        "_class_name": "ZImageTransformer2DModel",
        "all_f_patch_size": [1],
        "all_patch_size": [2],
        "axes_dims": list(shape.axes),
        "axes_lens": [1024, 512, 512],
        "cap_feat_dim": caption_width,
        "dim": shape.dim,
        "in_channels": latents,
        "n_heads": shape.heads,
        "n_kv_heads": shape.heads,
        "n_layers": shape.layers,
        "n_refiner_layers": shape.refiners,
        "norm_eps": 1e-5,
        "qk_norm": True,
        "rope_theta": 256.0,
        "t_scale": 1000.0,
    }


def build(profile: Profile) -> ZImageTransformer:
    """An untrained transformer."""
    members = transformer_config(profile.transformer, profile.vae.latents, profile.language.hidden)
    model = ZImageTransformer(TransformerConfig.from_dict(members, "nano"))
    for name, weight in model.named_parameters():
        if "adaLN_modulation" in name or "all_final_layer" in name:
            torch.nn.init.zeros_(weight)
        elif name.endswith("pad_token"):
            torch.nn.init.normal_(weight, std=0.02)
        elif weight.ndim == 2:
            torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    dim = profile.transformer.dim
    for block in (*model.noise_refiner, *model.layers):
        bias = block.adaLN_modulation[0].bias.data  # scale, gate, scale, gate
        bias[dim : 2 * dim] = bias[3 * dim :] = GATE
    return model.to(device())


class Trainee(nn.Module):
    """The transformer and its auxiliary head, which names what and which colour lies under each token."""

    def __init__(self, model: ZImageTransformer) -> None:
        super().__init__()
        self.model = model
        self.layout = nn.Linear(model.config.dim, len(LABELS) + len(COLOURS))

    def forward(
        self, latents: Tensor, prompt_embeds: Tensor, timesteps: Tensor, kept: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Velocity (B,N,patch_dim) and layout logits (B,N,LABELS+COLOURS) of all tokens, or of those kept (B,N)."""
        model, seen = self.model, list[Tensor]()
        caption, patches = model.embed_caption(prompt_embeds), patchify(latents, model.config.patch_size)
        rows, columns = (side // model.config.patch_size for side in latents.shape[2:])
        rope = model.rope(rows, columns, caption.shape[1], latents.device)
        if kept is not None:
            words = rope[-caption.shape[1] :].expand(len(kept), -1, -1, -1)
            rope, patches = torch.cat((rope[kept], words), dim=1), chosen(patches, kept)
        hook = model.layers[LAYOUT_BLOCK].register_forward_hook(lambda _block, _inputs, output: seen.append(output))
        velocity = model.predict(patches, caption, model.modulation(timesteps), rope)
        hook.remove()
        return velocity, self.layout(F.rms_norm(seen[0][:, : patches.shape[1]], (seen[0].shape[-1],)))


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention as two products and a softmax, which a compiler fuses: PyTorch's own takes twice as long on a CPU.

    (B,heads,Sq,D), (B,heads,S,D), (B,heads,S,D) -> (B,heads,Sq,D).
    """
    queries, keys, values = (part.flatten(0, 1) for part in (query, key, value))
    scores = torch.bmm(queries * query.shape[-1] ** -0.5, keys.mT)
    return torch.bmm(scores.float().softmax(-1).to(values.dtype), values).unflatten(0, query.shape[:2])


def compiled(model: ZImageTransformer) -> None:
    """Have the blocks compiled at their first use: all share the code, for any number of tokens and pictures."""
    import torch._dynamo.config as compiler  # takes a second, which others need not wait

    compiler.recompile_limit = VARIANTS
    forward = torch.compile(Block.forward, dynamic=True)
    for block in cast(Iterable[Block], (*model.noise_refiner, *model.context_refiner, *model.layers)):
        if device().type == "cpu":
            block.attention.attend = attend
        block.forward = forward.__get__(block)  # type: ignore[method-assign]


def chosen(tokens: Tensor, kept: Tensor) -> Tensor:
    """Rows `kept` (B,K) of (B,N,C) -> (B,K,C)."""
    return tokens.gather(1, kept.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def stage_file(folders: Folders, stage: int) -> Path:
    """Where the averaged weights at the end of a stage, counted from 0, are kept."""
    return folders.transformer.with_name(f"transformer-stage{stage + 1}.pt")


def empty_prompt(tokenizer: Tokenizer) -> Tensor:
    """Token ids (1,L) of the prompt that says nothing."""
    return torch.tensor([tokenizer.encode(chat_prompt("")).ids], device=device())


def noise_levels(count: int, coarse: bool, generator: torch.Generator) -> Tensor:
    """(count,) sigmas: three of four are levels that eight steps visit, the others lie anywhere beside them.

    coarse: those where noise outweighs the picture and its composition is decided; else those where it gets its edges.
    """
    visited = sigmas(VISITED, SHIFT)[:-1]
    visited = visited[visited >= COARSE] if coarse else visited[visited < COARSE]
    place = generator.device
    fixed = visited.to(place)[torch.randint(len(visited), (count,), generator=generator, device=place)]
    low, high = (COARSE, 1.0) if coarse else (0.02, COARSE)
    anywhere = low + (high - low) * torch.rand(count, generator=generator, device=place)
    return torch.where(torch.rand(count, generator=generator, device=place) < ANYWHERE, anywhere, fixed)


def kept_tokens(count: int, tokens: int, share: float, generator: torch.Generator) -> Tensor | None:
    """(count, K) indices of a random part of each picture's tokens, a multiple of 32 of them; None keeps all.

    Which are kept must not depend on the picture: the gaps would tell where its things are.
    """
    number = round_up(round(share * tokens))
    if number >= tokens:
        return None
    chances = torch.rand(count, tokens, generator=generator, device=generator.device)
    return chances.topk(number, dim=1).indices


def token_weights(what: Tensor) -> Tensor:
    """How much each token counts, by what lies under it: (B,N) indices into LABELS -> (B,N) fp32."""
    weights = torch.ones(len(LABELS), device=what.device)
    weights[FIRST_THING:] = THING_WEIGHT
    weights[[LABEL[head] for head in HEADS.values()]] = HEAD_WEIGHT
    weights[[LABEL[item] for item in WORN]] = WORN_WEIGHT
    return weights[what]


def open_weights(drawings: Tensor, kept: Tensor | None, patch: int) -> Tensor:
    """How much tokens count for what no prompt decides, such as where the sun is: (B,D,C,h,w) -> (B,N) fp32.

    Few tokens of a picture tell its drawings apart; at the weight of others they are learnt last, as halves of several.
    """
    spread = patchify(drawings.var(1, correction=0), patch).mean(-1)
    weights = torch.where(spread > spread.mean(1, keepdim=True), OPEN_WEIGHT, 1.0)
    return weights if kept is None else weights.gather(1, kept)


def losses(
    trainee: Trainee,
    language: Qwen3,
    batch: Batch,
    coarse: bool,
    share: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Velocity and layout error of one batch at random noise levels, over this share of its tokens, weighted.

    generator: on the device of the batch.
    """
    drawings, all_labels, ids = batch
    count, tokens = len(drawings), all_labels.shape[2]
    sigma = noise_levels(count, coarse, generator)
    noise = torch.randn(drawings[:, 0].shape, generator=generator, device=generator.device)
    kept = kept_tokens(count, tokens, share, generator)
    clean, labels = chosen_drawing(drawings, all_labels, noise, kept)
    level = sigma.view(-1, 1, 1, 1)
    dtype = next(trainee.parameters()).dtype
    with torch.no_grad():
        prompt_embeds = language.encode(ids).to(dtype)
    target = patchify(clean - noise, trainee.model.config.patch_size)
    if kept is not None:
        labels, target = chosen(labels, kept), chosen(target, kept)
    velocity, layout = trainee(((1 - level) * clean + level * noise).to(dtype), prompt_embeds, 1 - sigma, kept)
    what, colour = layout.float().mT.split((len(LABELS), len(COLOURS)), dim=1)
    named = F.cross_entropy(what, labels[..., 0], reduction="none")
    named = named + 0.5 * F.cross_entropy(colour, labels[..., 1], reduction="none")
    weight = token_weights(labels[..., 0]).maximum(open_weights(drawings, kept, trainee.model.config.patch_size))
    part = weight / weight.sum()
    flow = (velocity.float() - target).square().mean(-1)
    return (flow * part).sum(), (named * part).sum()


class Trainer:
    """All the state of a transformer training, and how it is saved and restored."""

    def __init__(self, profile: Profile, folders: Folders, minutes: float, compile_blocks: bool = False) -> None:
        self.profile, self.folders = profile, folders
        self.language, self.tokenizer = load_language(folders, profile)
        self.language.to(working_dtype())
        self.trainee = Trainee(build(profile)).to(device())
        self.average = Average(self.trainee.model, horizon=400)
        self.optimizers = Optimizers(self.trainee.named_parameters(), muon=("layers", "refiner"), lr=1e-3)
        self.generator = torch.Generator(device()).manual_seed(profile.seed + parallel.rank())
        self.picks = torch.Generator().manual_seed(profile.seed + 50 + parallel.rank())  # of pictures and captions
        self.choice = torch.Generator().manual_seed(profile.seed + 25)  # of sizes: the same in all processes
        self.stage, step, spent = 0, 0, 0.0
        if state := restored(folders.transformer):
            self.trainee.load_state_dict(state["trainee"])
            self.average.model.load_state_dict(state["average"])
            self.average.steps = state["averaged"]
            self.optimizers.load_state_dict(state["optimizers"])
            self.choice.set_state(state["choice"])
            self.generator.manual_seed(1000 * (profile.seed + state["averaged"]) + parallel.rank())
            self.picks.manual_seed(1000 * (profile.seed + state["averaged"]) + 50 + parallel.rank())
            self.stage, step, spent = state["stage"], state["step"], state["spent_s"]
        self.shadow = Shadow(self.trainee)
        if compile_blocks:
            compiled(self.shadow.model.model)
        self.minutes = minutes
        self.learns_empty = profile.distillation is not None and not profile.distillation.weaker_self
        self.run = self._run(step, spent)
        self.progress = parallel.agreed(self.run.progress)

    def _run(self, step: int = 0, spent_s: float = 0.0) -> Run:
        stage = self.profile.stages[self.stage]
        return Run(
            f"transformer stage {self.stage + 1}",
            stage.steps,
            self.minutes * stage.steps / sum(one.steps for one in self.profile.stages),
            self.profile.checkpoint_every_s,
            step,
            spent_s,
        )

    def next_stage(self) -> bool:
        """Go on to the next stage; False after the last."""
        self.stage += 1
        if self.stage < len(self.profile.stages):
            self.run, self.progress = self._run(), 0.0
            return True
        return False

    def step(self, cache: Cache, stage: Stage) -> tuple[bool, Tensor, Tensor]:
        """One step on one batch of one bucket: whether it was a coarse one, and its errors."""
        self.shadow.refresh()
        coarse = float(torch.rand(1, generator=self.choice)) < stage.coarse
        share = min(stage.kept, MOST_KEPT / cache.tokens) if coarse else 1.0
        batch = cache.batch(max(1, int(stage.tokens_per_batch / (share * cache.tokens))), self.picks)
        if self.learns_empty and float(torch.rand(1, generator=self.picks)) < EMPTY_SHARE:
            batch = batch._replace(ids=empty_prompt(self.tokenizer).expand(len(batch.ids), -1))
        flow, named = losses(self.shadow.model, self.language, batch, coarse, share, self.generator)
        (flow + LAYOUT_WEIGHT * named).backward()
        self.shadow.hand_back()
        parallel.average_gradients(self.trainee)
        warmup = 0.02 if self.stage == 0 else 0.0
        self.optimizers.step(stage.peak * cosine(self.progress, stage.floor, warmup))
        self.average.update(self.trainee.model)
        return coarse, flow.detach(), named.detach()

    def save(self) -> None:
        save(
            self.folders.transformer,
            {
                "trainee": self.trainee.state_dict(),
                "average": self.average.model.state_dict(),
                "averaged": self.average.steps,
                "optimizers": self.optimizers.state_dict(),
                "choice": self.choice.get_state(),
                "stage": self.stage,
                "step": self.run.step,
                "spent_s": self.run.elapsed_s,
            },
        )

    def save_sheet(self, moment: str) -> None:
        """What the averaged weights draw now, at sizes of this stage."""
        small = all(max(width, height) < SMALLEST for width, height, _ in self.profile.stages[self.stage].buckets)
        save_sheet(self.profile, self.folders, self.average.model, f"stage{self.stage + 1}-{moment}", small)


def train(profile: Profile, folders: Folders, minutes: float, last_stage: int, compile_blocks: bool = False) -> None:
    """Train, or go on training, through the profile's stages; each has its share of `minutes`, by its steps.

    A distilled run is left as it is: its weights are the student's. To train on, put `teacher.pt` in their place.

    compile_blocks: whether the blocks are `compiled` first.
    """
    parallel.start()
    if (state := restored(folders.transformer)) and state.get("distilled"):
        print(f"transformer: distilled already; to train on, copy teacher.pt over {folders.transformer.name}")
        return
    trainer, first = Trainer(profile, folders, minutes, compile_blocks), parallel.rank() == 0
    sheet_at = profile.sheet_every_s
    held: tuple[tuple[int, int, float], ...] = ()
    sizes, shares = list[Cache](), torch.empty(0)
    while trainer.stage <= last_stage:
        stage = profile.stages[trainer.stage]
        if stage.buckets != held:  # else the pictures are in memory already
            sizes.clear()
            sizes, shares = caches(folders, stage.buckets)
            held = stage.buckets
        while trainer.progress < 1.0:
            cache = sizes[int(torch.multinomial(shares, 1, generator=trainer.choice))]
            coarse, flow, named = trainer.step(cache, stage)
            errors: dict[str, Any] = {"coarse" if coarse else "fine": flow, "layout": named}
            trainer.run.tick(**errors)
            trainer.progress = parallel.agreed(trainer.run.progress)
            if first and trainer.run.due():
                trainer.save()
            if first and trainer.run.elapsed_s > sheet_at:
                sheet_at = trainer.run.elapsed_s + profile.sheet_every_s
                trainer.save_sheet(f"{trainer.run.step:06d}")
        if first:
            trainer.save()
            trainer.save_sheet("end")
            save(stage_file(folders, trainer.stage), {"average": trainer.average.model.state_dict()})
        if not trainer.next_stage():
            break
        sheet_at = profile.sheet_every_s


def compile_flag(parser: argparse.ArgumentParser) -> None:
    """Let the command line decide what the profile says about compiling."""
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="compile the blocks: minutes at first, and a compiler; where neither is given, as the profile says",
    )


def asked_to_compile(parsed: argparse.Namespace, profile: Profile) -> bool:
    """What the command line says, else the profile."""
    return profile.compiled if parsed.compile is None else bool(parsed.compile)


def main() -> None:
    parser: argparse.ArgumentParser = arguments("train the transformer")
    parser.add_argument("--last-stage", type=int, default=99, help="stop after this stage, counted from 0")
    compile_flag(parser)
    parsed = parser.parse_args()
    profile, folders = opened(parsed)
    train(profile, folders, parsed.minutes, parsed.last_stage, asked_to_compile(parsed, profile))


if __name__ == "__main__":
    main()
