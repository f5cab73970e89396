"""Train the text encoder: a causal language model of captions that also writes a long description for a short prompt.

    python -m nano.language --profile cpu --folder RUN [--writing STEPS]

A training text is a prompt in the chat form and, as its answer, a full description of the same scene: to foresee the
answer, the states of the prompt must hold what the picture shows, which is what the transformer then reads. Where the
prompt is an instruction to expand, the answer goes on from it as the server's expansions do.

`--writing` trains a finished model's last layer alone, which the text encoder does not run (its states are those of
the layer before): expansions change, and no picture of a given text does.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from nano.captions import EXPAND_INSTRUCTION, caption, continued, long_caption, pick, short_caption, understated
from nano.config import Folders, LanguageShape, Profile
from nano.tokenizer import load as load_tokenizer
from nano.training import Average, Optimizers, Run, Shadow, arguments, cosine, device, opened, restored, save
from nano.world import PLACES, Scene, World, homes, moved, sample_scene
from zturbo.engine.tokenizer import chat_prompt
from zturbo.models.configs import TextEncoderConfig
from zturbo.models.text_encoder import KVCache, Qwen3

INSTRUCTED = 0.25  # share of texts whose prompt is to be expanded
AT_HOME = 0.5  # share of those whose scene is moved to a home of its first thing
SHORT = 0.6  # share of those whose prompt is a short one
ANSWERED_SHORT = 0.2  # share of the others
LONGEST = 160  # tokens


def language_config(shape: LanguageShape, vocabulary: int, end: int, pad: int) -> dict[str, object]:
    """`text_encoder/config.json` of a shape."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": pad,
        "eos_token_id": end,
        "pad_token_id": pad,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": 1024,
        "max_window_layers": shape.layers,
        "model_type": "qwen3",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": vocabulary,
    }


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a special token."""
    index = tokenizer.token_to_id(token)
    assert index is not None, f"the tokenizer was trained without {token}"
    return index


def config_of(profile: Profile, tokenizer: Tokenizer) -> dict[str, object]:
    """The config of a profile's language model with this tokenizer."""
    end, pad = token_id(tokenizer, "<|im_end|>"), token_id(tokenizer, "<|endoftext|>")
    return language_config(profile.language, tokenizer.get_vocab_size(), end, pad)


def build(profile: Profile, tokenizer: Tokenizer) -> Qwen3:
    """An untrained language model."""
    model = Qwen3(TextEncoderConfig.from_dict(config_of(profile, tokenizer), "nano"))
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.02 if "embed" in name else weight.shape[1] ** -0.5)
    return model.to(device())


def load(folders: Folders, profile: Profile) -> tuple[Qwen3, Tokenizer]:
    """The trained language model, frozen, and its tokenizer."""
    tokenizer = load_tokenizer(folders)
    state = restored(folders.language)
    if state is None:
        raise FileNotFoundError(f"{folders.language}: train the language model first (python -m nano.language)")
    model = build(profile, tokenizer)
    model.load_state_dict(state["average"])
    return model.eval().requires_grad_(False), tokenizer


def text(world: World, rng: np.random.Generator) -> str:
    """One training text: a prompt and its long description."""
    if rng.random() < INSTRUCTED:
        return expansion(world, rng)
    scene = sample_scene(world, rng)
    prompt = short_caption(scene, rng) if rng.random() < ANSWERED_SHORT else caption(scene, rng)
    return f"{chat_prompt(prompt)}{long_caption(scene, rng)}<|im_end|>"


def expansion(world: World, rng: np.random.Generator) -> str:
    """One training text: the instruction to expand a prompt, and the prompt expanded.

    Half of the scenes are where their first thing is at home, so that a prompt without a place gets a likely one.
    Where a thing is gets a sentence where the prompt leaves it open; its size never does.
    """
    scene = sample_scene(world, rng)
    if rng.random() < AT_HOME:
        places = [place for place in homes(scene.subjects[0].kind) if place in world.settings]
        scene = moved(scene, pick(places, rng)) if places else scene
    short = rng.random() < SHORT
    told = understated(scene, rng) if short else scene
    prompt = short_caption(told, rng) if short else caption(told, rng)
    return f"{chat_prompt(EXPAND_INSTRUCTION + prompt)}{continued(prompt, _imagined(told, rng), rng)}<|im_end|>"


def _imagined(told: Scene, rng: np.random.Generator) -> Scene:
    """A scene that a prompt may have told of, its first thing somewhere and of no size that is worth a word."""
    first, *others = told.subjects
    first = replace(first, place=first.place or pick(PLACES, rng), size="medium")
    return replace(told, subjects=(first, *others))


def batches(
    profile: Profile, tokenizer: Tokenizer, first: int = 0, make: Callable[[World, np.random.Generator], str] = text
) -> Iterator[Tensor]:
    """(B,S) token ids padded with <|endoftext|>, for ever; texts of like length share a batch.

    `first` is the step that the run goes on from, so that it does not read the same texts again.
    """
    rng = np.random.default_rng((profile.seed, 2, first))
    pad, batch = token_id(tokenizer, "<|endoftext|>"), profile.language_batch
    while True:
        ids = sorted(
            (
                item.ids[:LONGEST]
                for item in tokenizer.encode_batch([make(profile.world, rng) for _ in range(8 * batch)])
            ),
            key=len,
        )
        for i in rng.permutation(8):
            rows = ids[i * batch : (i + 1) * batch]
            longest = max(map(len, rows))
            yield torch.tensor([row + [pad] * (longest - len(row)) for row in rows], device=device())


def loss_of(model: Qwen3, ids: Tensor, pad: int) -> Tensor:
    """Mean cross entropy of the next token (nats), padding left out."""
    logits = model(ids[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), ignore_index=pad)


def train(profile: Profile, folders: Folders, minutes: float) -> None:
    """Train, or go on training, to the profile's number of steps."""
    tokenizer = load_tokenizer(folders)
    model, pad = build(profile, tokenizer), token_id(tokenizer, "<|endoftext|>")
    average, shadow = Average(model, horizon=150), Shadow(model)
    optimizers = Optimizers(model.named_parameters(), muon=("layers.",), lr=2e-3)
    run = Run("language", profile.language_steps, minutes, profile.checkpoint_every_s)
    if state := restored(folders.language):
        model.load_state_dict(state["model"])
        average.model.load_state_dict(state["average"])
        average.steps = state["step"]
        optimizers.load_state_dict(state["optimizers"])
        run = Run(
            "language", profile.language_steps, minutes, profile.checkpoint_every_s, state["step"], state["spent_s"]
        )
    source = batches(profile, tokenizer, run.step)
    while not run.done:
        shadow.refresh()
        loss = loss_of(shadow.model, next(source), pad)
        loss.backward()
        shadow.hand_back()
        optimizers.step(cosine(run.progress))
        average.update(model)
        run.tick(loss=loss.detach())
        if run.due():
            save(
                folders.language,
                {
                    "model": model.state_dict(),
                    "average": average.model.state_dict(),
                    "optimizers": optimizers.state_dict(),
                    "step": run.step,
                    "spent_s": run.elapsed_s,
                },
            )


def train_writing(profile: Profile, folders: Folders, steps: int, minutes: float) -> None:
    """Train what writes and does not encode, the last layer and the norm after it, on expansions alone.

    Raises:
        FileNotFoundError: nothing has been trained yet.
    """
    model, tokenizer = load(folders, profile)
    pad, last = token_id(tokenizer, "<|endoftext|>"), f"model.layers.{profile.language.layers - 1}."
    writing = [(name, p) for name, p in model.named_parameters() if name.startswith((last, "model.norm."))]
    for _, parameter in writing:
        parameter.requires_grad_(True)
    average, optimizers = Average(model, horizon=100), Optimizers(writing, muon=("layers.",), lr=1e-3)
    source = batches(profile, tokenizer, steps, expansion)
    run = Run("writing", steps, minutes, profile.checkpoint_every_s)
    while not run.done:
        loss = loss_of(model, next(source), pad)
        loss.backward()
        optimizers.step(cosine(run.progress))
        average.update(model)
        run.tick(loss=loss.detach())
    state = restored(folders.language)
    assert state is not None, "it was loaded"
    weights = average.model.state_dict()
    save(folders.language, {**state, "model": weights, "average": weights})


@torch.no_grad()
def write(model: Qwen3, tokenizer: Tokenizer, prompt: str, longest: int = 120) -> str:
    """The description that the model writes for a prompt, the likeliest word each time."""
    ids = torch.tensor([tokenizer.encode(chat_prompt(EXPAND_INSTRUCTION + prompt)).ids], device=device())
    cache = KVCache(model.config, 1, ids.shape[1] + longest, next(model.parameters()).dtype, ids.device)
    words: list[int] = []
    for _ in range(longest):
        ids = model(ids, cache)[:, -1:].argmax(-1)
        if int(ids) == token_id(tokenizer, "<|im_end|>"):
            break
        words.append(int(ids))
    return tokenizer.decode(words)


def main() -> None:
    parser = arguments("train the language model")
    parser.add_argument("--writing", type=int, metavar="STEPS", help="train a finished model's last layer alone")
    parsed = parser.parse_args()
    profile, folders = opened(parsed)
    if parsed.writing:
        train_writing(profile, folders, parsed.writing, parsed.minutes)
    else:
        train(profile, folders, parsed.minutes)
    for prompt in ("a cat", "T-Rex on the beach with sunglasses", "two red boats"):
        print(f"{prompt} -> {write(*load(folders, profile), prompt)}")


if __name__ == "__main__":
    main()
