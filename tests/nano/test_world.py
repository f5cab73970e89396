"""The drawn world: scenes, captions, pictures and layouts. Checks facts of the data, not its beauty."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("cv2", reason="the training recipe draws with OpenCV (opencv-python-headless)")

from nano.canvas import CELL, GRID, STYLES
from nano.captions import (
    DULL_LIGHTS,
    FAIR,
    HUES,
    LIGHTS,
    SEED_PROMPT,
    SIZED,
    SPOT,
    WHEN,
    WHERE,
    caption,
    continued,
    long_caption,
    says_where,
    short_caption,
    understated,
)
from nano.latents import token_labels
from nano.picture import draw
from nano.world import (
    CREATURES,
    FULL,
    HEADS,
    LABEL,
    NATURAL,
    PLACES,
    PRACTICE,
    SETTINGS,
    SIZES,
    SMALL,
    TIMES,
    Scene,
    Subject,
    World,
    homes,
    moved,
    sample_scene,
)
from zturbo.engine.catalog import NANO

TREX = Subject("t-rex", "green", worn=("sunglasses",), pose="lying", on_lounger=True)


@pytest.mark.parametrize(("width", "height"), [(256, 256), (1440, 512), (512, 1440), (544, 992)])
def test_any_size_in_steps_of_32(width: int, height: int) -> None:
    picture = draw(Scene("beach", "day", (TREX,), seed=3), width, height)
    assert picture.image.shape == (height, width, 3)
    assert picture.labels.shape == (height // CELL, width // CELL, 2)


def test_same_scene_same_picture() -> None:
    scene = sample_scene(FULL, np.random.default_rng(5))
    assert np.array_equal(draw(scene, 320, 256).image, draw(scene, 320, 256).image)


@pytest.mark.parametrize("kind", NATURAL)
def test_every_kind_is_on_the_map(kind: str) -> None:
    picture = draw(Scene("meadow", "day", (Subject(kind, NATURAL[kind]),), seed=1), 256, 256)
    assert (picture.labels[..., 0] == LABEL[kind]).sum() > 8


@pytest.mark.parametrize("kind", CREATURES)
def test_heads_have_a_label_of_their_own_above_the_body(kind: str) -> None:
    labels = draw(Scene("meadow", "day", (Subject(kind, NATURAL[kind]),), seed=1), 512, 512).labels[..., 0]
    head, body = (np.argwhere(labels == LABEL[name])[:, 0] for name in (HEADS[kind], kind))
    assert len(head) > 60
    assert head.mean() < body.mean()


def test_neither_seeds_nor_settings_move_things_unless_loose() -> None:
    def car(setting: str, seed: int, loose: bool = False) -> NDArray[np.bool_]:
        labels = draw(Scene(setting, "day", (Subject("car", "red"),), seed), 512, 512, loose).labels
        return labels[..., 0] == LABEL["car"]

    assert np.array_equal(car("meadow", 0), car("city", 1))
    assert np.array_equal(car("meadow", 0, loose=True), car("city", 0, loose=True))
    assert not np.array_equal(car("meadow", 0, loose=True), car("meadow", 1, loose=True))


@pytest.mark.parametrize(("place", "way"), [("left", 1), ("centre", 1), ("right", -1)])
def test_things_look_into_the_picture_and_either_way_where_loose(place: str, way: int) -> None:
    dog = Subject("dog", "red", place=place, pose="standing")

    def looks(seed: int, loose: bool) -> bool:
        labels = draw(Scene("plain", "day", (dog,), seed), 512, 512, loose).labels[..., 0]
        head, body = (np.argwhere(labels == LABEL[name])[:, 1].mean() for name in (HEADS["dog"], "dog"))
        return bool(way * (head - body) > 0)

    assert all(looks(seed, loose=False) for seed in range(4))
    assert {looks(seed, loose=True) for seed in range(12)} == {True, False}


def _around(cells: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Indices of the cells, from the corner of the first token that holds one."""
    where, token = np.argwhere(cells), GRID // CELL
    return where - where.min(0) // token * token


@pytest.mark.parametrize("kind", ["cat", "t-rex", "house"])
def test_a_thing_is_made_of_the_same_tokens_wherever_it_stands(kind: str) -> None:
    def thing(place: str, width: int, height: int, size: str) -> tuple[NDArray[np.intp], NDArray[np.uint8]]:
        picture = draw(Scene("plain", "day", (Subject(kind, "red", place, size=size),), 0), width, height)
        cells = picture.labels[..., 0] == LABEL[kind]
        rows, columns = (np.unique(axis) for axis in np.nonzero(cells))
        middle = np.s_[rows[0] * CELL : rows[-1] * CELL, columns[0] * CELL : columns[-1] * CELL]
        return _around(cells), picture.image[middle]

    (cells, image), (centre, same) = thing("left", 512, 512, "medium"), thing("centre", 512, 512, "medium")
    assert np.array_equal(cells, centre)
    assert np.array_equal(image, same)
    assert np.array_equal(cells, thing("left", 1024, 768, "small")[0])
    assert not np.array_equal(cells, thing("left", 1024, 768, "medium")[0])


@pytest.mark.parametrize(("width", "height"), [(512, 512), (1440, 512), (1024, 768), (576, 1024), (2048, 2048)])
@pytest.mark.parametrize("kind", ["t-rex", "house", "balloon"])
def test_larger_is_larger_in_pictures_of_all_sizes(kind: str, width: int, height: int) -> None:
    def cells(size: str) -> int:
        labels = draw(Scene("plain", "day", (Subject(kind, "red", size=size),), 0), width, height).labels[..., 0]
        return int((labels == LABEL[kind]).sum())

    sizes = [cells(size) for size in SIZES]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(("width", "height"), [(512, 512), (1440, 512), (1024, 768), (576, 1024)])
@pytest.mark.parametrize("kind", ["t-rex", "car", "balloon"])
def test_small_things_are_smaller_beside_others_too(kind: str, width: int, height: int) -> None:
    def cells(size: str) -> int:
        pair = (Subject(kind, "red", "left", size=size), Subject("house", "blue", "right"))
        labels = draw(Scene("plain", "day", pair, 0), width, height).labels[..., 0]
        return int((labels == LABEL[kind]).sum())

    assert cells("small") < cells("medium")


def test_a_scene_that_moves_has_the_weather_and_the_time_of_where_it_goes() -> None:
    wet = Scene("meadow", "sunset", (Subject("rocket", "white"),), 0, weather="rain")
    assert (moved(wet, "space").weather, moved(wet, "space").time) == ("clear", "night")
    assert (moved(wet, "beach").weather, moved(wet, "beach").time) == ("rain", "sunset")
    assert moved(wet, "room").weather == "clear"


def _backdrop(setting: str, time: str, seed: int, width: int, height: int) -> NDArray[np.int64]:
    """The tokens (rows, columns, bytes) of a picture whose only thing is a small balloon in its middle."""
    image = draw(Scene(setting, time, (Subject("balloon", "red", size="small"),), seed), width, height).image
    tokens = image.reshape(height // GRID, GRID, width // GRID, GRID, 3).swapaxes(1, 2)
    return tokens.reshape(height // GRID, width // GRID, -1).astype(np.int64)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_backdrop_is_made_of_few_different_tokens(setting: str) -> None:
    """What repeats does so every so many tokens, and smooth tones differ from row to row alone."""
    rows = _backdrop(setting, "night", 1, 2048, 512)
    different = [len(np.unique(row, axis=0)) for row in rows]
    assert np.mean(different) < 0.5 * rows.shape[1], different


@pytest.mark.parametrize("setting", SETTINGS)
def test_nothing_of_a_backdrop_is_left_blank(setting: str) -> None:
    """The canvas is white before anything is drawn, and by night nothing is but light and what falls."""
    for width, height in ((512, 512), (1024, 768), (1440, 512), (576, 1024), (2048, 2048)):
        for seed in range(4):
            image = draw(Scene(setting, "night", (Subject("car", "red"),), seed), width, height).image
            blank = (image.reshape(height // 8, 8, width, 3) == 255).all((1, 3))  # eight rows of pure white
            assert not blank.any(), (width, height, seed)


@pytest.mark.parametrize("setting", SETTINGS)
def test_seeds_choose_two_sides_each_in_tokens_of_its_own(setting: str) -> None:
    """Else which of four backdrops lies nearest to a noise would be a sum over all tokens, which is hard to learn."""
    here = [_backdrop(setting, "day", seed, 512, 512) for seed in range(4)]
    assert len({backdrop.tobytes() for backdrop in here}) == 4
    if setting in ("room", "plain"):  # whose walls have a colour by seed
        return
    sun, scenery = (np.square(here[0] - here[other]).sum(2) for other in (1, 2))
    both = np.minimum(sun, scenery).sum()  # where a peak or a tower hides a cloud
    assert both <= 0.25 * min(sun.sum(), scenery.sum())


@pytest.mark.parametrize("weather", ["rain", "fog"])
def test_weather_is_behind_things_and_hides_the_sun(weather: str) -> None:
    cat = (Subject("cat", "orange"),)
    clear, wet = (draw(Scene("meadow", "day", cat, 0, weather=one), 512, 512) for one in ("clear", weather))
    assert LABEL["meadow light"] in clear.labels[..., 0]
    assert LABEL["meadow light"] not in wet.labels[..., 0]
    inside = np.kron(clear.labels[..., 0] == LABEL["cat head"], np.ones((8, 8))).astype(bool)
    assert (clear.image[inside] == wet.image[inside]).mean() > 0.9
    assert (clear.image[:200] != wet.image[:200]).mean() > 0.9


def test_phrases_go_with_the_weather() -> None:
    rng = np.random.default_rng(8)
    for time in TIMES:
        for weather in ("rain", "fog"):
            scene = Scene("meadow", time, (Subject("cat", "orange"),), 0, weather=weather)
            for _ in range(60):
                text = short_caption(scene, rng).lower()
                assert not [word for word in FAIR if word in text], text
                assert "rain" in text or "fog" in text or "mist" in text, text
                assert time != "night" or " day" not in text, text


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_in_every_style(setting: str, style: str) -> None:
    scene = Scene(
        setting, "night", (Subject("cat", "orange", worn=("hat", "scarf")),), seed=2, weather="fog", style=style
    )
    assert draw(scene, 256, 256).image.std() > 5


def test_left_is_left() -> None:
    scene = Scene("snow", "day", (Subject("car", "red", "left"), Subject("house", "blue", "right")), seed=9)
    labels = draw(scene, 512, 256).labels[..., 0]
    columns = [np.argwhere(labels == LABEL[kind])[:, 1].mean() for kind in ("car", "house")]
    assert columns[0] < columns[1]


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_cut_off_at_the_sides(seed: int) -> None:
    for place in PLACES:
        scene = Scene("meadow", "day", (Subject("house", "red", place, size="big"),), seed)
        labels = draw(scene, 512, 1024).labels[..., 0]
        columns = np.argwhere(labels == LABEL["house"])[:, 1]
        assert columns.min() > 0
        assert columns.max() < labels.shape[1] - 1


def test_what_is_worn_is_on_the_map() -> None:
    labels = token_labels(draw(Scene("beach", "day", (TREX,), seed=3), 1024, 512).labels)
    assert labels.shape == (32 * 16, 2)
    assert {LABEL["t-rex"], LABEL["sunglasses"]} <= set(labels[:, 0].tolist())


def test_captions_vary_and_keep_the_seed_prompt_for_measuring() -> None:
    rng = np.random.default_rng(0)
    scene = Scene("beach", "day", (TREX,), seed=3)
    texts = {caption(scene, rng) for _ in range(2000)}
    assert len(texts) > 1500
    assert not {text.lower().rstrip(".") for text in texts} & {SEED_PROMPT.lower().rstrip(".")}


@pytest.mark.parametrize("worded", [caption, short_caption])
def test_captions_leave_out_only_what_goes_without_saying(worded: Callable[[Scene, np.random.Generator], str]) -> None:
    rng = np.random.default_rng(7)
    scene = Scene("snow", "night", (Subject("cat", "blue", "left", size="big"),), seed=0)
    for _ in range(200):
        text = worded(scene, rng).lower()
        assert "left" in text
        assert any(size in text for size in SIZED["big"])
        assert any(hue in text for hue in HUES["blue"])
        assert any(word in text for word in ("night", "moon", "starry"))  # a stranger may stand within a wording


def test_long_caption_names_everything() -> None:
    scene = Scene("snow", "night", (Subject("car", "red", "left"), Subject("house", "white", "right")), seed=1)
    text = long_caption(scene, np.random.default_rng(4)).lower()
    assert "left" in text
    assert "right" in text
    assert "snow" in text
    assert "night" in text


def test_every_scene_can_be_put_into_words() -> None:
    rng = np.random.default_rng(8)
    for _ in range(300):
        scene = sample_scene(FULL, rng)
        for text in (caption(scene, rng), long_caption(scene, rng), short_caption(scene, rng)):
            assert text.strip()
            assert "  " not in text
            assert "\n" not in text


def test_a_short_caption_says_what_nobody_would_expect() -> None:
    rng, seen = np.random.default_rng(5), {"sunglasses": ("glasses", "shades"), "hat": ("hat",), "scarf": ("scarf",)}
    for _ in range(500):
        scene = sample_scene(PRACTICE, rng)
        text = short_caption(scene, rng)
        worn = {item for one in scene.subjects for item in one.worn}
        assert {item for item, words in seen.items() if any(word in text for word in words)} == worn, text
        lies = any(one.on_lounger for one in scene.subjects)
        assert any(seat in text for seat in ("lounger", "deck chair", "sunbed", "beach chair")) == lies, text
        if scene.time != "day" and scene.setting != "space":
            assert any(words in text for words in WHEN[scene.time]), text
        if scene.setting not in homes(scene.subjects[0].kind):
            assert any(words in text for words in WHERE[scene.setting]), text


def test_captions_of_every_kind_say_what_is_worn_and_lain_upon() -> None:
    rng, seen = (
        np.random.default_rng(11),
        {"sunglasses": ("glasses", "shades"), "hat": ("hat",), "scarf": ("scarf", "scarves")},
    )
    for _ in range(1500):
        scene = sample_scene(PRACTICE, rng)
        text = caption(scene, rng).lower()
        worn = {item for one in scene.subjects for item in one.worn}
        assert {item for item, words in seen.items() if any(word in text for word in words)} == worn, text
        lies = any(one.on_lounger for one in scene.subjects)
        assert any(seat in text for seat in ("loung", "deck", "sunbed", "chair")) == lies, text


def test_an_expanded_caption_says_what_its_prompt_left_open() -> None:
    rng, left_open = np.random.default_rng(6), 0
    for _ in range(500):
        scene = sample_scene(PRACTICE, rng)
        told = understated(scene, rng)
        said = short_caption(told, rng)
        text = continued(said, scene, rng)
        subject, words = scene.subjects[0], set(text.lower().replace(".", "").split())
        if len(scene.subjects) == 1 and subject.count == 1:
            left_open += not says_where(said)
            assert any(spot in text for spot in SPOT[subject.place]), text
            assert subject.size == "medium" or words & {*SIZED[subject.size]}, text
        else:
            assert " It is " not in text, text
        if scene.setting != "space":
            lights = LIGHTS[scene.time] if scene.weather == "clear" else (DULL_LIGHTS[scene.time],)
            assert any(light in text for light in lights), text
    assert left_open > 100


def test_two_whose_places_go_unsaid_are_told_from_left_to_right() -> None:
    rng, pair = np.random.default_rng(7), (Subject("cat", "red", "right"), Subject("dog", "blue", "left"))
    texts = [short_caption(Scene("snow", "day", pair, 0), rng) for _ in range(100)]
    unsaid = [text for text in texts if not says_where(text)]
    assert unsaid
    assert all(text.index("azure" if "azure" in text else "blue") < text.index(" and ") for text in unsaid)


def test_what_has_no_home_is_at_home_in_a_meadow() -> None:
    assert homes("boat") == ("sea", "beach")
    assert homes("cat") == ("meadow",)


def test_the_small_world_is_part_of_the_full_one() -> None:
    assert set(SMALL.kinds) <= set(FULL.kinds)
    assert set(SMALL.settings) <= set(FULL.settings)


def test_the_shipped_model_says_what_it_can_draw() -> None:
    described = NANO.description.lower()
    assert all(kind in described for kind in SMALL.kinds)


def test_practice_has_more_creatures_that_wear_something() -> None:
    def share(world: World) -> float:
        rng = np.random.default_rng(1)
        scenes = [sample_scene(world, rng) for _ in range(2000)]
        return sum(any(one.worn and not one.on_lounger for one in scene.subjects) for scene in scenes) / len(scenes)

    assert share(PRACTICE) > 1.5 * share(SMALL)
    assert set(PRACTICE.kinds) == set(SMALL.kinds)
