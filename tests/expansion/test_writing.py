"""Writing on the text encoder: the same text always, whatever holds the weights, and an end within one token."""

import copy
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nano.captions import FINISHES, LIGHTS, STAGES, STYLED
from tests import reference
from zturbo.engine.engine import Engine, LoadOptions, build_pipeline, complete
from zturbo.engine.pipeline import Pipeline
from zturbo.engine.plan import Placement
from zturbo.engine.writing import FOREIGN, NO_ROOM, Writer, open_writer, pick
from zturbo.errors import Cancelled, ConfigError
from zturbo.expansion.cache import LeastRecent
from zturbo.expansion.expansion import NOTHING_USABLE
from zturbo.expansion.recipes import Instructed, Trained
from zturbo.models.text_encoder import KVCache
from zturbo.params import GenerationParams
from zturbo.weights.checkpoint import open_checkpoint

PROMPTS = ("a red boat", "two cats in a city at night", 'a house with a sign "OPEN" on a beach at sunset')


@pytest.fixture(scope="module")
def nano() -> Engine:
    return Engine.load("nano", LoadOptions(device="cpu"))


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> Engine:
    return Engine.load(str(tiny_folder), LoadOptions(device="cpu", dtype="float32"))


def writer_of(engine: Engine) -> Writer:
    """A writer like the engine's that remembers nothing yet."""
    assert engine.writer is not None
    made = copy.copy(engine.writer)
    made._cache = LeastRecent()
    return made


def plain(engine: Engine) -> Writer:
    """A writer that writes by the eager text encoder."""
    assert engine.writer is not None
    return Writer(engine.pipeline, engine.writer.recipe, engine.model.version)


def texts(writer: Writer) -> list[str]:
    return [writer.expand(prompt).text for prompt in PROMPTS]


def test_the_text_is_the_same_again_in_another_engine_and_in_another_process(nano: Engine) -> None:
    expected = texts(writer_of(nano))
    assert all(text != prompt for text, prompt in zip(expected, PROMPTS, strict=True))
    assert texts(writer_of(nano)) == expected
    assert list(reversed([writer_of(nano).expand(prompt).text for prompt in reversed(PROMPTS)])) == expected
    code = (
        "import torch; torch.set_num_threads(1); from zturbo.engine.engine import Engine, LoadOptions; "
        "engine = Engine.load('nano', LoadOptions(device='cpu')); "
        f"print('|'.join(engine.writer.expand(prompt).text for prompt in {PROMPTS!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip("\n").split("|") == expected


def test_drawing_and_the_global_generator_do_not_change_it(nano: Engine) -> None:
    expected = texts(writer_of(nano))
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    assert texts(writer_of(nano)) == expected
    assert torch.equal(torch.random.get_rng_state(), before)


def test_another_version_of_the_model_may_write_another_text(nano: Engine) -> None:
    assert nano.writer is not None
    other = Writer(nano.pipeline, nano.writer.recipe, "another")
    assert texts(other) != texts(writer_of(nano))


def placed(placement: Placement) -> Writer:
    """nano with its text encoder held in that way, by the engine's own loading code."""
    engine = Engine.load("nano", LoadOptions(device="cpu", dtype="float32"))
    plan = replace(engine.plan, text_encoder_placement=placement)
    checkpoint = complete(open_checkpoint(engine.model.path))
    made = open_writer(build_pipeline(checkpoint, plan), engine.model.path, engine.model.version, False)
    assert made is not None
    return made


def test_a_streamed_encoder_writes_the_same() -> None:
    assert texts(placed("streamed")) == texts(placed("resident"))


def test_a_quantized_encoder_writes_as_well() -> None:
    for prompt, text in zip(PROMPTS, texts(placed("quantized")), strict=True):
        assert text.startswith(f"{prompt}. ")


def test_one_token_after_another_gives_the_logits_of_the_whole_text(tiny: Engine) -> None:
    encoder, ids = tiny.pipeline.text_encoder, tiny.pipeline.tokenizer.encode("a cat")
    cache = KVCache(encoder.config, 1, 40, torch.float32, torch.device("cpu"))
    with torch.inference_mode():
        first = encoder.next_logits(ids[:, :-3], cache)
        torch.testing.assert_close(first, encoder(ids)[:, -4])
        for index in (-3, -2):
            following = encoder.next_logits(ids[:, index : index + 1], cache)
            torch.testing.assert_close(following, encoder(ids)[:, index])


def test_the_chat_is_the_published_template_without_thinking(tiny: Engine) -> None:
    assert tiny.writer is not None
    system, user = tiny.writer.recipe.turns("a cat")
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    rendered = reference.tokenizer().apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert tiny.writer.chat("a cat") == f"{rendered}a cat."


def test_cancelled_between_two_tokens(tiny: Engine) -> None:
    """Asked before each token; after a yes no further token is written, and nothing half is remembered."""
    writer = writer_of(tiny)
    asked: list[int] = []

    def at(limit: int) -> Callable[[], bool]:
        return lambda: asked.append(1) or len(asked) > limit  # type: ignore[func-returns-value]

    with pytest.raises(Cancelled):
        writer.expand("a cat", at(3))
    assert len(asked) == 4
    assert not writer.expand("a cat").cached


def test_a_model_that_writes_nonsense_leaves_the_prompt(tiny: Engine) -> None:
    expansion = writer_of(tiny).expand("a cat")
    assert (expansion.text, expansion.reason) == ("a cat", NOTHING_USABLE)
    assert not any(char in expansion.text for char in "<|>")


def test_control_tokens_are_never_written(tiny: Engine) -> None:
    writer = writer_of(tiny)
    likeliest = writer._likeliest(torch.zeros(1, tiny.pipeline.text_encoder.config.vocab_size))
    tokenizer = tiny.pipeline.tokenizer
    allowed = set(range(tokenizer.size)) - {tokenizer.tokenizer.token_to_id("<|im_start|>")}
    assert set(likeliest[0, 1].tolist()) <= allowed


@pytest.mark.parametrize("native", [False, True])
def test_weights_that_are_not_finite_leave_the_prompt(native: bool) -> None:
    broken = Engine.load("nano", LoadOptions(device="cpu", dtype="float32"))
    with torch.no_grad():
        broken.pipeline.text_encoder.get_parameter("model.norm.weight").fill_(float("nan"))
    writer = plain(broken)
    if native:
        if broken.writer is None or broken.writer.decoder is None:
            pytest.skip("no native kernels here")
        writer.write_with(broken.pipeline.text_encoder, native=True)
    assert writer.expand("a cat").text == "a cat"


def test_a_device_that_fails_leaves_the_prompt_and_is_tried_again(
    nano: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("secret prompt")

    writer = plain(nano)
    with monkeypatch.context() as patch:
        patch.setattr(nano.pipeline.text_encoder, "next_logits", full)
        expansion = writer.expand(PROMPTS[0])
    assert (expansion.text, expansion.reason) == (PROMPTS[0], "the language model failed: OutOfMemoryError")
    assert writer.expand(PROMPTS[0]).applied


def test_kernels_without_memory_leave_the_prompt(nano: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> torch.Tensor:
        raise MemoryError("secret prompt")

    writer = writer_of(nano)
    if writer.decoder is None:
        pytest.skip("no native kernels here")
    monkeypatch.setattr(writer.decoder, "_read", full)
    assert writer.expand(PROMPTS[0]).reason == "the language model failed: MemoryError"


def test_known_prompts_are_not_written_again(nano: Engine) -> None:
    writer = writer_of(nano)
    first, again = writer.expand("a cat"), writer.expand("a cat")
    assert (first.cached, again.cached) == (False, True)
    assert again.text == first.text


def test_what_the_model_cannot_do_is_said(nano: Engine, tiny: Engine) -> None:
    assert writer_of(nano).expand("一只猫").reason == FOREIGN
    assert writer_of(tiny).expand("字" * 50 + "x" * 340).reason == NO_ROOM
    assert "detailed" in writer_of(nano).expand("word " * 40).reason


def test_the_recipe_follows_the_folder_and_the_placement(nano: Engine, tiny: Engine, tmp_path: Path) -> None:
    assert isinstance(writer_of(nano).recipe, Trained)
    assert writer_of(tiny).recipe == Instructed()
    streamed = open_writer(tiny.pipeline, tmp_path, "v", streamed=True)
    assert streamed is not None
    assert streamed.recipe == Instructed(words=35)
    (tmp_path / "expansion.json").write_text("{}")
    with pytest.raises(ConfigError):
        open_writer(tiny.pipeline, tmp_path, "v", streamed=False)


@pytest.mark.parametrize(("chance", "token"), [(0.0, 7), (0.72, 7), (0.73, 3), (0.999999, 3)])
def test_picking_among_the_likeliest(chance: float, token: int) -> None:
    """Weights 0.65 and 0.25 make up the nucleus of 0.8; what lies beyond is never picked."""
    values = [0.7 * math.log(weight) for weight in (0.05, 0.25, 0.65, 0.05)]
    assert pick(values, [9, 3, 7, 1], chance) == token


def test_equal_logits_are_ordered_by_token() -> None:
    assert pick([1.0, 1.0, 1.0], [5, 2, 9], 0.0) == 2
    assert pick([1.0, 1.0, 1.0], [9, 5, 2], 0.0) == 2


LEFT, RIGHT, SNOW = (
    "It is on the left of the picture.",
    "It is on the right of the picture.",
    "The scene is a snowy landscape with fir trees and falling snowflakes in the light of a sunny day.",
)


def test_the_seed_chooses_the_composition_where_most_answers_have_one(nano: Engine) -> None:
    writer = writer_of(nano)
    for answers, chosen in (([LEFT, RIGHT, ""], True), ([LEFT, "", ""], False), (["", "", ""], False)):
        made = writer._best("a cat", [(f"A cat. {one} {SNOW}", True) for one in answers])
        texts = [made.for_seed(seed).text for seed in range(len(writer.recipe.compositions))]
        assert texts == [f"a cat. {f'{one} ' if chosen else ''}{SNOW}" for one in writer.recipe.compositions]


def test_what_the_prompt_says_of_the_composition_stays(nano: Engine) -> None:
    writer = writer_of(nano)
    small, left = (writer._best(prompt, [(f"{LEFT} {SNOW}", True)] * 3) for prompt in ("a small cat", "a cat, left"))
    assert small.arrangements == writer.recipe.compositions
    assert left.text == f"a cat, left. {SNOW}", "one that says it again is of no use"
    folded = [small.for_seed(seed).text for seed in (7, 2**63 + 7)]
    assert folded[0] == folded[1], "seeds that draw the same noise read the same text"


def test_a_prompt_without_room_gets_no_composition(nano: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = writer_of(nano)
    monkeypatch.setattr(writer, "_fits", lambda text: "of the picture" not in text)
    assert writer._best("a cat", [(f"{LEFT} {SNOW}", True)] * 3).for_seed(1).text == f"a cat. {SNOW}"


def test_the_longest_answer_of_the_recipe_is_not_cut(nano: Engine) -> None:
    assert nano.writer is not None
    tokens = nano.pipeline.tokenizer.tokenizer.encode
    stages = [f"The scene is {stage} in {light}, while rain is falling." for stage in STAGES.values()
              for lights in LIGHTS.values() for light in lights]  # fmt: skip
    finishes = [f"{style} with {finish}." for styles in STYLED.values() for style in styles for finish in FINISHES]
    longest = sum(max(len(tokens(text).ids) for text in texts)
                  for texts in (nano.writer.recipe.compositions, stages, finishes))  # fmt: skip
    assert longest < nano.writer.recipe.longest


def request(**changes: object) -> GenerationParams:
    return GenerationParams.parse({"prompt": "a red boat", "size": "square", "steps": 1, "seed": 7} | changes)


def test_the_engine_draws_the_expansion_and_tells_it(nano: Engine) -> None:
    seen = list(nano.draw(request(num_images=2)))
    assert [progress.stage for progress in seen][:2] == ["expand", "encode"]
    told = {progress.stage: progress.expansion for progress in seen if progress.expansion}
    assert set(told) == {"encode", "drawn", "done"}
    expansion = told["done"]
    assert expansion is not None
    texts = [expansion.for_seed(seed).text for seed in (7, 8)]
    assert expansion.text == texts[0] != texts[1]
    assert all(text.startswith("a red boat. It is ") and ". The scene is " in text for text in texts)
    assert list(seen[-1].timings)[:2] == ["expand", "encode"]
    alone = request(prompt=texts[1], prompt_expansion=False, seed=8)
    *_, drawn = nano.draw(alone)
    assert drawn.expansion is None
    assert "expand" not in drawn.timings
    assert (drawn.pictures[0].pixels == seen[-1].pictures[1].pixels).all(), "picture 2 is its own seed's, drawn alone"
    *_, again = nano.draw(request(seed=8))
    assert (again.pictures[0].pixels == seen[-1].pictures[1].pixels).all()


@pytest.mark.parametrize("expand", [False, True])
def test_a_prompt_without_a_word_is_drawn(nano: Engine, expand: bool) -> None:
    *_, drawn = nano.draw(request(prompt="", prompt_expansion=expand))
    assert len(drawn.pictures) == 1


def test_pictures_of_one_text_are_encoded_once(nano: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    caption = type(nano.pipeline).caption

    def noted(pipeline: Pipeline, prompt: str) -> Any:
        asked.append(prompt)
        return caption(pipeline, prompt)

    monkeypatch.setattr(type(nano.pipeline), "caption", noted)
    list(nano.draw(request(prompt="a red boat", prompt_expansion=False, num_images=3)))
    assert asked == ["a red boat"]


def test_the_engine_expands_only_where_it_is_wanted(nano: Engine) -> None:
    quiet = Engine(nano.pipeline, nano.model, nano.machine, nano.plan)
    assert next(iter(quiet.draw(request()))).stage == "encode"
    assert next(iter(nano.draw(request(prompt_expansion=False)))).stage == "encode"
    assert Engine.load("nano", LoadOptions(expansion=False)).writer is None
