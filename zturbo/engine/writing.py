"""Details for a prompt from the language model that is in memory anyway: the text encoder, writing.

    writer = Writer(pipeline, Instructed(), version)
    expansion = writer.expand("a cat")     # the same for the same model, today and tomorrow
    text = expansion.for_seed(7).text      # what seed 7 draws

The answer is opened with the prompt itself, so the model can only go on from it. Sampling is seeded by the model's
version, the recipe's and the prompt. The request's seed is left out on purpose: picture i of a request must be what its
own seed draws alone, and a random seed must not miss the cache. A picture's own seed only chooses among the
compositions that a recipe has.
"""

import hashlib
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from zturbo.acceleration.decoding import Decoder, Follow
from zturbo.acceleration.graphs import Recorder
from zturbo.acceleration.native_writer import Scribe
from zturbo.engine.pipeline import Pipeline
from zturbo.engine.tokenizer import MAX_TOKENS, chat_prompt
from zturbo.errors import Cancelled
from zturbo.expansion.cache import LeastRecent
from zturbo.expansion.expansion import Expansion
from zturbo.expansion.recipes import TRAINED_FILE, Instructed, Recipe, Trained
from zturbo.expansion.rules import additions, closed, joined, left_alone
from zturbo.models.text_encoder import KVCache, Qwen3

TEMPERATURE, TOP_P, TOP_K = 0.7, 0.8, 20
"""Qwen3's own advice for answers without thinking (its model card)."""
STOPS = ("<|im_end|>", "<|endoftext|>")
LEAST_ROOM = 24
"""Tokens that must be left beside the prompt for a sentence to fit."""
NO_ROOM = "the prompt leaves no room in the encoder's tokens"
FOREIGN = "the prompt is not in a language that this model writes"


STREAMED_WORDS = 35
"""A streamed encoder costs a copy of its layers per token: it is asked for a third of the words."""


def open_writer(pipeline: Pipeline, folder: Path, version: str, streamed: bool) -> "Writer | None":
    """The writer of a loaded model, or None where its tokenizer knows no chat and nothing says where answers end.

    Args:
        pipeline: loaded.
        folder: of the language model; an `expansion.json` there says how it was trained to expand.
        version: of the model.
        streamed: whether its layers come from the host for every token.

    Raises:
        ConfigError: that file is broken.
    """
    tokenizer, trained = pipeline.tokenizer.tokenizer, folder / TRAINED_FILE
    if None in [tokenizer.token_to_id(token) for token in ("<|im_start|>", "<|im_end|>")]:
        return None
    if trained.is_file():
        return Writer(pipeline, Trained.open(trained), version)
    return Writer(pipeline, Instructed(STREAMED_WORDS) if streamed else Instructed(), version)


class Writer:
    """Expands prompts on a pipeline's text encoder; one thread at a time.

    Args:
        pipeline: loaded; its encoder may be resident, quantized or streamed.
        recipe: how this model is asked.
        version: of the model; together with the recipe's it decides the sampling.
    """

    name = "local"
    words = "by the text encoder"
    """For the start-up block."""
    decoder: Decoder | Scribe | None = None
    """What makes a token in one launch or call; without it each costs the operations of all layers."""

    def __init__(self, pipeline: Pipeline, recipe: Recipe, version: str) -> None:
        self.pipeline, self.recipe, self.version = pipeline, recipe, version
        self._encoder = pipeline.text_encoder
        self._cache: LeastRecent[Expansion] = LeastRecent()
        tokenizer = pipeline.tokenizer.tokenizer
        self.stops = [index for token in STOPS if (index := tokenizer.token_to_id(token)) is not None]
        control = set(tokenizer.get_added_tokens_decoder()) - set(self.stops)
        unused = range(pipeline.tokenizer.size, pipeline.text_encoder.config.vocab_size)
        device = pipeline.text_encoder.model.embed_tokens.weight.device
        self._banned = torch.tensor(sorted({*control, *unused}), dtype=torch.int64, device=device)

    def record(self, recorder: Recorder) -> None:
        """Have the step that makes a token recorded, and replayed from then on; the encoder is resident.

        Args:
            recorder: of the encoder's device.
        """
        self.decoder = Decoder(self.pipeline.text_encoder, self._likeliest, recorder, self.recipe.candidates)

    def write_with(self, encoder: Qwen3, *, native: bool) -> None:
        """Write with these weights from now on, which are the pipeline's in another dtype, perhaps by the C kernels."""
        if native:
            self.decoder = Scribe(encoder, self._likeliest)
        else:
            self._encoder = encoder

    def expand(self, prompt: str, cancelled: Callable[[], bool] = lambda: False) -> Expansion:
        """The expansion of a prompt; a device that fails leaves the prompt as it is.

        Args:
            prompt: as the user wrote it.
            cancelled: asked before each token.

        Raises:
            Cancelled: `cancelled` said so.
        """
        start = time.perf_counter()
        if reason := left_alone(prompt) or self._unfit(prompt):
            return Expansion.left(prompt, reason, self.name).took(time.perf_counter() - start)
        if known := self._cache.get(prompt):
            return known.took(time.perf_counter() - start, cached=True)
        try:
            expansion = self._best(prompt, self._answers(prompt, cancelled))
        except (RuntimeError, ArithmeticError, MemoryError) as error:  # torch's, for want of memory; infinite logits
            reason = f"the language model failed: {type(error).__name__}"
            return Expansion.left(prompt, reason, self.name).took(time.perf_counter() - start)
        self._cache.put(prompt, expansion)
        return expansion.took(time.perf_counter() - start)

    def _unfit(self, prompt: str) -> str:
        if not self.recipe.speaks(prompt):
            return FOREIGN
        return "" if self._fits(prompt, LEAST_ROOM) else NO_ROOM

    def _fits(self, prompt: str, room: int = 0) -> bool:
        limit = min(MAX_TOKENS, self.pipeline.transformer.config.max_caption_tokens)
        return self.pipeline.tokenizer.encode(prompt, limit + 1).shape[1] + room <= limit

    def _best(self, prompt: str, answers: list[tuple[str, bool]]) -> Expansion:
        """The answer of which most may be added, the first of equals; its composition is left to the seed."""
        answered = [
            additions(prompt, answer, whole, lambda sentence: self.recipe.allows(prompt, sentence))
            for answer, whole in answers
        ]
        arrangements = self._arrangements(prompt, answered)
        start, longest = closed(prompt) if arrangements else prompt, max(arrangements, key=len, default="")
        texts = [
            joined(
                start,
                [sentence for sentence in sentences if sentence not in self.recipe.compositions],
                lambda text: self._fits(f"{text} {longest}"),
            )
            for sentences in answered
        ]
        expansion = Expansion.of(prompt, max(texts, key=len), self.name)
        return expansion.arranged(arrangements, len(start)) if arrangements else expansion

    def _arrangements(self, prompt: str, answered: list[list[str]]) -> tuple[str, ...]:
        """What a seed may choose from: where most answers tell of a composition, and the prompt leaves open which."""
        composed = [any(sentence in self.recipe.compositions for sentence in sentences) for sentences in answered]
        if 2 * sum(composed) <= len(answered):
            return ()
        fitting = tuple(
            one
            for one in self.recipe.compositions
            if self.recipe.allows(prompt, one) and self._fits(f"{closed(prompt)} {one}")
        )
        return fitting if len(fitting) > 1 else ()

    def _answers(self, prompt: str, cancelled: Callable[[], bool]) -> list[tuple[str, bool]]:
        """What the model writes: per candidate its text, and whether it ended by itself."""
        tokenizer = self.pipeline.tokenizer.tokenizer
        read = tokenizer.encode(self.chat(prompt), add_special_tokens=False).ids
        rows = self.write(read, self._chances(prompt), cancelled)
        return [(tokenizer.decode(row), len(row) < self.recipe.longest) for row in rows]

    @torch.inference_mode()
    def write(self, read: list[int], chances: list[list[float]], cancelled: Callable[[], bool]) -> list[list[int]]:
        """Continue a text, once per candidate, each up to its stop or for as many tokens as there are chances.

        One wait per token, for what the device ranked. Picking several on the device and cutting at the stop would
        save some 0.1 ms each, and would need an `exp` that rounds as the host's does.

        Raises:
            Cancelled: `cancelled`, asked before each token, said so.
        """
        rows: list[list[int]] = [[] for _ in chances[0]]
        follow = self._follow(len(rows), len(read) + len(chances))
        tokens = [read] * len(rows)
        going = set(range(len(rows)))
        for chances_now in chances:
            if cancelled():
                raise Cancelled("the request was cancelled")
            likeliest = follow(tokens).tolist()
            chosen = [pick(values, ids, chance) for (values, ids), chance in zip(likeliest, chances_now, strict=True)]
            going -= {row for row in going if chosen[row] in self.stops}
            if not going:
                break
            for row in going:
                rows[row].append(chosen[row])
            tokens = [[token] for token in chosen]
        return rows

    def _follow(self, rows: int, length: int) -> Follow:
        """What reads tokens of a new text and ranks the next ones."""
        if self.decoder is not None and (follow := self.decoder.begin(length)) is not None:
            return follow
        encoder, home = self._encoder, self._encoder.model.embed_tokens.weight
        cache = KVCache(encoder.config, rows, length, home.dtype, self.pipeline.device)
        return lambda tokens: self._likeliest(encoder.next_logits(torch.tensor(tokens, device=home.device), cache))

    def chat(self, prompt: str) -> str:
        """Qwen3's chat template with thinking off, the answer opened as the recipe says."""
        system, user = self.recipe.turns(prompt)
        before = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
        thought = "<think>\n\n</think>\n\n" if system else ""
        return f"{before}{chat_prompt(user)}{thought}{self.recipe.opening(prompt)}"

    def _chances(self, prompt: str) -> list[list[float]]:
        """One number in [0, 1) per position and candidate, drawn beforehand: no candidate depends on another's end."""
        text = "\0".join((self.version, self.recipe.version, prompt))
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1
        generator = torch.Generator().manual_seed(seed)
        shape = (self.recipe.longest, self.recipe.candidates)
        return torch.rand(shape, generator=generator, dtype=torch.float64).tolist()

    def _likeliest(self, logits: Tensor) -> Tensor:
        """(B, vocab) -> (B, 2, `TOP_K`) fp32: the largest logits and their tokens, of which none is a control token."""
        logits = logits.float().index_fill(1, self._banned, -math.inf)
        values, tokens = logits.topk(min(TOP_K, logits.shape[1] - len(self._banned)))
        return torch.stack((values, tokens.float()), dim=1)  # exact below 2**24, and one copy for the host to wait for


def pick(values: list[float], tokens: list[float], chance: float) -> int:
    """The token that a number in [0, 1) falls on, among the likeliest that make up `TOP_P`.

    Computed in float64 on the host, equal logits ordered by token, so that only the logits decide.
    """
    ranked = sorted(zip(values, tokens, strict=True), key=lambda pair: (-pair[0], pair[1]))
    weights = [math.exp((value - ranked[0][0]) / TEMPERATURE) for value, _ in ranked]
    nucleus, total = 0.0, sum(weights)
    count = 0
    while nucleus < TOP_P * total:
        nucleus += weights[count]
        count += 1
    target = chance * nucleus
    for weight, (_, token) in zip(weights[:count], ranked, strict=False):
        target -= weight
        if target < 0:
            return int(token)
    return int(ranked[count - 1][1])
