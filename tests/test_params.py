"""What a request may ask for, and how it is told what is wrong."""

import json
from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zturbo import params
from zturbo.errors import InvalidInput, Problem
from zturbo.params import SIZES, GenerationParams, closest, nearest_side, parse_size, shown

SIDES = range(512, 2049, 32)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4000)
loose = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.lists(st.integers()),
    st.integers(10**4400, 10**4401), st.dictionaries(st.sampled_from(["width", "height"]), st.integers() | st.floats()),
)  # fmt: skip


def problems_of(**values: object) -> list[Problem]:
    with pytest.raises(InvalidInput) as caught:
        GenerationParams.parse({"prompt": "a fox", **values})
    return list(caught.value.problems)


def problem_of(**values: object) -> Problem:
    (problem,) = problems_of(**values)
    return problem


def test_defaults() -> None:
    made = GenerationParams.parse({"prompt": "a fox"})
    assert (made.width, made.height, made.steps, made.num_images) == (1024, 768, 8, 1)
    assert (made.output_format, made.acceleration, made.prompt_expansion, made.safety_checker) == (
        "png", "regular", True, True,
    )  # fmt: skip
    assert 1 <= made.seed < 2**53


def test_none_means_absent() -> None:
    names = [member.name for member in params.MEMBERS if member.name not in ("prompt", "seed")]
    made = GenerationParams.parse({"prompt": "a fox", "seed": 5, **dict.fromkeys(names)})
    assert made == GenerationParams.parse({"prompt": "a fox", "seed": 5})


def test_random_seeds_differ() -> None:
    assert len({GenerationParams.parse({"prompt": ""}).seed for _ in range(50)}) == 50


@given(
    prompt=texts,
    width=st.sampled_from(SIDES),
    height=st.sampled_from(SIDES),
    steps=st.integers(1, 8),
    seed=st.integers(1, 2**70) | st.just(10**4000 - 1),
    num_images=st.sampled_from([1, 2, 3, 4, 1.0, 2.0]),
)
def test_everything_allowed_is_taken_as_it_is(
    prompt: str, width: int, height: int, steps: int, seed: int, num_images: float
) -> None:
    size = {"width": width, "height": height}
    made = GenerationParams.parse(
        {"prompt": prompt, "size": size, "steps": steps, "seed": seed, "num_images": num_images}
    )
    assert (made.prompt, made.width, made.height, made.steps, made.seed) == (prompt, width, height, steps, seed)
    assert made.num_images == num_images
    assert type(made.num_images) is int
    assert parse_size(f"{width}x{height}") == (width, height)


@given(values=st.fixed_dictionaries({}, optional={member.name: loose for member in params.MEMBERS}))
def test_whatever_comes_is_either_right_or_refused(values: dict[str, Any]) -> None:
    try:
        made = GenerationParams.parse(values)
    except InvalidInput as error:
        refused = error
    else:
        assert made.width in SIDES
        assert made.height in SIDES
        assert 1 <= made.steps <= 8
        assert made.seed >= 1
        json.dumps(made.seed + 3)
        made.prompt.encode()
        return
    assert {problem.path[0] for problem in refused.problems} <= {member.name for member in params.MEMBERS}
    assert len(str(refused)) < 400 * len(refused.problems)
    str(refused).encode()


def test_all_problems_are_told_at_once() -> None:
    values = {
        "prompt": 3, "size": {"width": 500, "height": 2049}, "steps": 9, "seed": 0, "num_images": 2.5,
        "output_format": "jpg", "acceleration": "fast", "prompt_expansion": 1, "safety_checker": "yes",
    }  # fmt: skip
    told = {problem.path: problem.hint.rpartition(" ")[2] for problem in problems_of(**values)}
    assert told == {
        ("prompt",): "", ("size", "width"): "512", ("size", "height"): "2048", ("steps",): "8", ("seed",): "1",
        ("num_images",): "2", ("output_format",): "jpeg", ("acceleration",): "", ("prompt_expansion",): "",
        ("safety_checker",): "",
    }  # fmt: skip


def test_a_problem_says_what_came_and_what_is_allowed() -> None:
    problem = problem_of(steps=9)
    assert problem.received == 9
    assert str(problem) == "steps: must be an integer from 1 to 8; got 9 (nearest valid value: 8)"


def test_members_are_named_as_the_caller_names_them() -> None:
    with pytest.raises(InvalidInput) as caught:
        GenerationParams.parse({"prompt": "", "size": {"width": 1}, "steps": 0}, {"size": "image_size", "steps": "n"})
    assert [problem.path for problem in caught.value.problems] == [("image_size", "width"), ("n",)]


def test_an_unknown_member_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="unknown members"):
        GenerationParams.parse({"prompt": "", "width": 512})


@pytest.mark.parametrize("name", ["steps", "seed", "num_images"])
@pytest.mark.parametrize("value", [True, False, "2", [2], float("nan"), float("inf")])
def test_only_numbers_are_numbers(name: str, value: object) -> None:
    assert problem_of(**{name: value}).path == (name,)


@pytest.mark.parametrize("name", ["steps", "seed"])
def test_only_the_number_of_images_may_be_a_whole_float(name: str) -> None:
    assert problem_of(**{name: 2.0}).path == (name,)
    assert GenerationParams.parse({"prompt": "", "num_images": 2.0}).num_images == 2


@pytest.mark.parametrize("name", ["prompt_expansion", "safety_checker"])
@pytest.mark.parametrize("value", [0, 1, "true"])
def test_only_booleans_are_flags(name: str, value: object) -> None:
    assert problem_of(**{name: value}).path == (name,)


def test_a_prompt_is_required_and_may_be_empty() -> None:
    with pytest.raises(InvalidInput, match="prompt: is required"):
        GenerationParams.parse({})
    assert GenerationParams.parse({"prompt": ""}).prompt == ""


def test_a_prompt_is_counted_in_code_points() -> None:
    assert GenerationParams.parse({"prompt": "😀" * 4000}).prompt == "😀" * 4000
    assert problem_of(prompt="é" * 4001).hint == "leave out at least 1 characters"


@pytest.mark.parametrize(("char", "name"), [("\0", "U+0000"), ("\ud800", "U+D800"), ("\udfff", "U+DFFF")])
def test_text_that_utf8_or_c_cannot_hold_is_refused(char: str, name: str) -> None:
    assert f"{name} at position 2" in problem_of(prompt=f"ab{char}c").message


def test_a_seed_has_no_upper_bound_short_of_what_python_prints() -> None:
    assert GenerationParams.parse({"prompt": "", "seed": 2**64}).seed == 2**64
    assert "4000 digits" in problem_of(seed=10**4000).message


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_presets(name: str, size: tuple[int, int]) -> None:
    assert parse_size(name) == size
    assert parse_size({"width": size[0], "height": size[1]}) == size


def test_the_published_presets() -> None:
    assert dict(SIZES) == {
        "square_hd": (1024, 1024), "square": (512, 512), "portrait_4_3": (768, 1024), "portrait_16_9": (576, 1024),
        "landscape_4_3": (1024, 768), "landscape_16_9": (1024, 576),
    }  # fmt: skip


def test_an_absent_side_takes_its_default() -> None:
    assert parse_size({"width": 512}) == (512, 768)
    assert parse_size({"height": 512}) == (1024, 512)
    assert parse_size({}) == (1024, 768)


@given(st.integers(), st.integers())
def test_a_wrong_size_names_the_nearest_right_one(width: int, height: int) -> None:
    text = f"{width}x{height}"
    nearest = (nearest_side(width), nearest_side(height))
    if (width, height) == nearest:
        assert parse_size(text) == nearest
        return
    with pytest.raises(InvalidInput) as caught:
        parse_size(text)
    hint = caught.value.problems[0].hint.rpartition(" ")[2]
    assert parse_size(hint) in (nearest, (1024, 768))


@pytest.mark.parametrize(
    ("side", "near"),
    [(513.5, 512), (1000.0, 992), (-3.2, 512), (inf, 2048), (-inf, 512), (nan, 1024), ("512", 1024), (True, 1024)],
)
def test_a_side_that_is_no_integer_names_the_nearest_right_one(side: object, near: int) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_size({"width": side, "height": 512})
    assert caught.value.problems[0].hint == f"nearest valid value: {near}"


@pytest.mark.parametrize(("text", "near"), [("landscape", "landscape_"), ("Square", "square"), ("??", "1024x768")])
def test_a_wrong_size_name_gets_a_suggestion(text: str, near: str) -> None:
    assert near in problem_of(size=text).hint


@pytest.mark.parametrize("text", ["1024x768 ", "1024x", "x768", "1024*768", "-512x512", "\u0665x512", "1e3x512", ""])
def test_other_spellings_of_sizes_are_refused(text: str) -> None:
    assert problem_of(size=text).path == ("size",)


@given(st.integers(-(10**30), 10**30))
def test_the_nearest_side_is_allowed_and_none_is_nearer(side: int) -> None:
    assert abs(nearest_side(side) - side) == min(abs(allowed - side) for allowed in SIDES)


@given(loose)
def test_what_came_is_shown_short_and_printable(value: object) -> None:
    text = shown(value)
    assert len(text) < 800
    assert "\n" not in text
    assert "\x1b" not in text
    text.encode()


def test_suggestions_need_some_likeness() -> None:
    assert closest("jpg", params.OUTPUT_FORMATS) == "jpeg"
    assert closest("tiff", params.OUTPUT_FORMATS) == ""
    assert closest(7, params.OUTPUT_FORMATS) == ""
