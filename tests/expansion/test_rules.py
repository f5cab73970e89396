"""Which prompts are left alone, and which sentences are refused, one by one."""

import pytest

from zturbo.expansion.rules import MAX_ADDED, additions, closed, harmless, joined, left_alone
from zturbo.expansion.words import language, quotations, stem, tokens

GOOD = "Soft light falls on it from the left."


def kept(prompt: str, sentence: str) -> bool:
    return additions(prompt, sentence, whole=True) == [sentence]


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("a cat", ""),
        ("", "no words"),
        (" \n\t", "no words"),
        ("?!…", "no words"),
        ("word " * 39, ""),
        ("word " * 40, "detailed"),
        ("字" * 59, ""),
        ("字" * 60, "detailed"),
        ("x" * 401, "detailed"),
    ],
)
def test_what_is_left_alone(prompt: str, reason: str) -> None:
    assert (reason in left_alone(prompt)) if reason else left_alone(prompt) == ""


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("three dogs", "The two dogs run through the grass."),
        ("three dogs", "There are 4 dogs in the picture."),
        ("a dog", "Two dogs run through the grass."),
        ("a dog", "In the background are five more."),
        ("a red car", "The blue car stands in the shade."),
        ("a red car", "The car is green and shines in the sun."),
        ("a crimson coat on a chair", "The coat is pale blue in the light."),
        ("a cat on the left and a dog on the right of a house", "<b>The cat is on the left.</b>"),
        ("a cat on the left", "The cat sits on the right side of the picture."),
        ("a city at night", "Bright sunlight falls on the houses of the town."),
        ("a beach at noon", "The moonlight shines on the sea."),
        ("两只猫", "三只猫坐在窗台上。"),
        ("红色的汽车", "蓝色的汽车停在路边。"),
        ("城市的夜空", "阳光照在屋顶上。"),
        ("左边的猫", "猫坐在右边的椅子上。"),
        ("one man on a bench", "Two men stand behind him in the park."),
        ("a child with a kite", "Three children run in the meadow."),
        ("one mouse on a table", "Five mice sit in the background."),
        ("one cat on a sofa", "A second cat lies in the shade of the lamp."),
        ("a cat on a sofa", "Several cats lie in the shade of the lamp."),
        ("a cat on a sofa", "Another cat sleeps on the floor."),
        ("a cat on a sofa", "A few more cats sleep on the floor."),
        ("a cat on a sofa", "Hundreds of cats fill the room."),
        ("a cat on a sofa", "A group of cats is on the floor."),
        ("a horse in a field", "Three horses graze behind the fence."),
        ("a red house", "Blue houses stand on the hill."),
        ("three dogs", "Four big brown fluffy dogs run in the grass."),
        ("two cats", "A single cat sits on the windowsill."),
        ("a green apple", "The apple is a deep, glossy red."),
        ("a green apple", "The apple on the old table is shiny and red."),
        ("a car that is not red", "The car is a bright red in the sun."),
        ("一只不是黑色的猫", "黑色的猫坐在窗台上。"),
        ("a city, not at night", "The moonlight falls on the roofs of the city."),
        ("a cat without a hat on the beach", "The cat wears a straw hat in the sun."),
        ("一个没有雪的山谷", "山谷里覆盖着白雪。"),
        ("a street with no people", "People walk along the street in the soft light."),
        ("晚上的城市", "阳光照在屋顶上。"),
        ("夜晚的城市", "太阳照在屋顶上，天空湛蓝。"),
        ("一座城市的夜空", "陽光照在屋頂上。"),
        ("a city at nighttime", "Bright daylight falls on the roofs."),
        ("a city at night", "The morning sun lights the roofs of the city."),
        ("a city at night", "It is a bright day with a clear sky."),
        ("牌子", "牌子上写着「营业。」"),
        ("a red boat", "The user wants a boat on a lake. It lies in the soft light."),
        ("Ein Hund in Berlin", "The light is soft and it falls from the left."),
        ('Schild "the end of the world"', "Le chat est dans une pièce avec une lumière douce."),
    ],
)
def test_contradictions_are_refused(prompt: str, sentence: str) -> None:
    assert additions(prompt, sentence, whole=True) == []


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("three dogs", "The three dogs run through the tall grass."),
        ("three dogs", "One of the dogs has a stick in its mouth."),
        ("2 dogs", "The two dogs run through the tall grass."),
        ("a red car", "The red car stands in front of a grey wall."),
        ("a red car", "The scarlet car stands in the shade of a tree."),
        ("a car", "The car is green and shines in the sun."),
        ("a green apple", "The apple is on a plate and the wall is red."),
        ("a cat", "A single cat sits on the windowsill."),
        ("a cat without a hat on the beach", "The cat on the beach looks at the sea."),
        ("um gato no jardim", "O gato está no jardim com uma luz suave."),
        ("夜晚戴墨镜的猫", "猫戴着太阳镜坐在屋顶上。"),
        ("红色的汽车", "背景是灰色的墙。"),
        ("红色的汽车", "金色的阳光照在路面上。"),
        ("一辆红车", "金属车身闪着光。"),
        ("两张桌子", "三张椅子在窗边。"),
        ("a cat", "A cat sits on a windowsill in the soft light."),
        ('a sign "No parking" at a wall', 'The sign "No parking" hangs at a wall of red bricks.'),
        ("a phone with an app", "The user interface shows a map with round buttons."),
        ("a city at night", "The windows of the houses are lit from the inside."),
        ("a cat on the left side", "Soft light falls in from the right side."),
        ("两只猫", "两只猫坐在窗台上，背景是蓝天。"),
        ("红色的汽车", "红色的汽车停在绿树下。"),
        ("a cat on the left", "The cat on the left looks into the distance."),
        ('a sign that says "OPEN"', 'The sign with "OPEN" hangs over the door.'),
        ("red car", "Cinematic composition, shallow depth of field."),
        ("ein Hund im Schnee", "Das weiche Licht fällt von links auf den Schnee."),
        ("two men on a bench", "The two men look at the sea in the soft light."),
        ("several cats on a sofa", "The several cats lie in the shade of the lamp."),
        ("Los Angeles skyline", "The towers stand in the soft light of the evening."),
        ("cat, Van Gogh style", "The cat sits in front of a yellow wall."),
        ("un gato negro", "El gato está en el jardín con la luz de la tarde."),
        ("Ein Hund in Berlin", "Das weiche Licht fällt von links auf den Platz."),
        ("Vue de Paris", "La lumière douce est sur les toits de la ville."),
        ("یک گربه در باغ", "نور نرم از پنجره\u200cای به باغ می\u200cتابد."),
        ("un gatto rosso", "Il gatto è nella neve con una luce fredda."),
        ('bakery shop, sign "Le Pain de la Rue"', "The bakery is on the corner of the street."),
    ],
)
def test_what_agrees_is_kept(prompt: str, sentence: str) -> None:
    assert kept(prompt, sentence)


@pytest.mark.parametrize(
    "sentence",
    [
        "I cannot help with that, as it is against my rules.",
        "Here is the expanded prompt in full.",
        "We cannot help with this request of yours.",
        "My apologies, but this is against the rules.",
        "This request asks for a picture of a cat.",
        "Maybe the cat could be on a windowsill.",
        "First, the cat should be on a windowsill.",
        "Note that the light is soft in it.",
        "It is a highly detailed picture of the scene.",
        "The light is soft\u0000 and it falls from the left.",
        "The light is soft\u202e and it falls from the left.",
        "The light is soft \ufffd and it falls from the left.",
        "The light\ud83d is soft and it falls from the left.",
        "The scene is lit from the left </think>.",
        "The scene is in {curly} and [square] brackets.",
        "Le chat est dans une pièce avec une lumière douce.",
        "Кот сидит на окне в мягком свете.",
        "猫坐在窗台上。",
        "A sign with “SALE” is in the window of the house.",
        'A sign with "SALE.',
        "cat cat cat cat cat cat cat cat the cat cat cat cat.",
        "A cat.",
    ],
)
def test_what_is_no_description_is_refused(sentence: str) -> None:
    assert additions("a cat", sentence, whole=True) == []
    assert additions("a cat", f"{sentence} {GOOD}", whole=True)[-1:] == [GOOD]


def test_a_tag_that_the_prompt_asks_for_may_be_said_again() -> None:
    assert kept("a cat, 4k", "The 4k picture of the cat is sharp to the edges.")


def test_half_a_sentence_at_the_end_is_dropped_unless_the_model_ended_there() -> None:
    assert additions("a cat", f"{GOOD} In the background is a", whole=False) == [GOOD]
    assert additions("a cat", "In the background is a wall", whole=True) == ["In the background is a wall."]


@pytest.mark.parametrize(
    "answer",
    [
        f"A cat. {GOOD}",
        f"a cat, {GOOD}",
        f"<think>\nWhat to do?\n</think>\n\nA cat. {GOOD}",
        f"**A cat.** {GOOD}",
        f"What is wanted is a cat in the light.\n</think>\n\nA cat. {GOOD}",
        f"[THINK]What to do?[/THINK]A cat. {GOOD}",
        f"- {GOOD}",
        f'"{GOOD}"',
        f"```\nA cat.\n{GOOD}\n```",
    ],
)
def test_what_models_put_around_their_text_is_taken_off(answer: str) -> None:
    assert additions("a cat", answer, whole=True) == [GOOD]


@pytest.mark.parametrize(
    "sentence",
    ["很抱歉，我无法满足这个请求。", "我无法提供这样的描述。", "请注意，画面光线柔和。", "根据您的描述，画面很安静。",
     "这是扩展后的画面描述。"],
)  # fmt: skip
def test_chinese_that_talks_to_the_user_is_refused(sentence: str) -> None:
    assert additions("一只红色的船", f"{sentence}光线柔和地照在船上。", whole=True) == ["光线柔和地照在船上。"]


def test_unended_thoughts_are_no_text() -> None:
    assert additions("a cat", f"[THINK] {GOOD}", whole=False) == []
    assert additions("a cat", f"<think> {GOOD} {GOOD}", whole=False) == []


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("a cat", "a cat."),
        ("a cat. ", "a cat."),
        ("a cat,", "a cat,"),
        ('a sign "OPEN"', 'a sign "OPEN".'),
        ("一只猫", "一只猫。"),
        ("一只猫！", "一只猫！"),
    ],
)
def test_a_prompt_is_ended_but_not_changed(prompt: str, text: str) -> None:
    assert closed(prompt) == text


def test_korean_sentences_have_spaces_between_them() -> None:
    assert (
        joined("배 한 척", ["배는 바다 위에 있다.", "하늘은 푸르다."])
        == "배 한 척. 배는 바다 위에 있다. 하늘은 푸르다."
    )


def test_sentences_are_added_while_there_is_room() -> None:
    many = [f"Sentence {number} of the text is here." for number in range(100)]
    text = joined("a cat", many)
    assert len("a cat") < len(text) <= len("a cat") + MAX_ADDED
    assert joined("a cat", many, fits=lambda longer: len(longer) < 50) == f"a cat. {many[0]}"
    assert joined("a cat", []) == "a cat"
    assert joined("一只猫", ["光线柔和。", "背景虚化。"]) == "一只猫。光线柔和。背景虚化。"


@pytest.mark.parametrize("prompt", ["<|im_end|>", "<<|im_start|>system", "</think>", "<tool_call>"])
def test_control_tokens_of_a_prompt_become_plain_text(prompt: str) -> None:
    assert not any(mark in harmless(prompt) for mark in ("<|", "</", "<t"))
    assert harmless("a < b, I <3 you") == "a < b, I < 3 you"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a cat on the roof", "en"), ("red car", ""), ("eine Katze auf dem Dach", "de"), ("un chat sur la plage", "fr"),
        ("屋顶上的猫", "zh"), ("屋根の上の猫", "ja"), ("지붕 위의 고양이", "ko"), ("кот на крыше", "cyrillic"),
        ("123", ""), ("Un gatto in giardino", "it"), ("dog in Berlin", "en"), ("Torre de Belém", ""),
        ("Кот рисует иероглиф 猫 на стене", "cyrillic"), ("고양이 猫 한 마리가 벽에 그린다", "ko"),
        ("写着「OPEN ALL DAY LONG」的牌", "zh"), ('a sign with "开门"', "en"),
    ],
)  # fmt: skip
def test_languages(text: str, name: str) -> None:
    assert language(text) == name


def test_words() -> None:
    assert tokens("T-Rex's 12 cats，红色的猫") == ["t", "rex's", "12", "cats", "红", "色", "的", "猫"]
    assert [stem(word) for word in ("cats", "boxes", "puppies", "glass", "rex's", "bus")] == [
        "cat", "box", "puppy", "glass", "rex", "bus",
    ]  # fmt: skip
    one = "horse house rose zombie cookie potato hero niche tree shoe vase mosquito dish movie box church"
    many = "horses houses roses zombies cookies potatoes heroes niches trees shoes vases mosquitoes dishes movies boxes"
    assert [stem(word) for word in one.split()] == [stem(word) for word in [*many.split(), "churches"]]
    assert len(tokens("किताब पढ़ती हुई लड़की")) == 4, "vowel signs end no word"
    assert quotations("a \"b c\" and 'd e' and the cat's “f”") == ['"b c"', "'d e'", "“f”"]
