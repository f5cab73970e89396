"""Scene -> words: tags, sentences, paraphrases and long descriptions, with synonyms, other orders, fillers and noise.

A caption may leave things out but never says what is not in the picture. `REFUSED` sentences are kept for measuring
and never come out of here.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nano.world import NATURAL, OBJECTS, Scene, Subject, homes

SEED_PROMPT = "A T-Rex relaxing on a beach, lying on a sun lounger and wearing sunglasses."
REFUSED = frozenset({SEED_PROMPT.lower().rstrip(".")})
EXPAND_INSTRUCTION = "Describe this picture in detail: "
"""What a user turn starts with when the language model is to go on from a prompt."""

NOUNS: dict[str, tuple[str, ...]] = {
    "t-rex": (
        "T-Rex",
        "T-Rex",
        "t-rex",
        "T-rex",
        "trex",
        "tyrannosaurus",
        "dinosaur",
        "dino",
        "T. rex",
        "tyrannosaurus rex",
    ),
    "cat": ("cat", "cat", "cat", "kitty", "kitten", "tomcat", "pussycat"),
    "dog": ("dog", "dog", "dog", "puppy", "doggy", "pup", "hound"),
    "bird": ("bird", "bird", "birdie"),
    "robot": ("robot", "robot", "robot", "android", "bot", "droid"),
    "person": ("person", "child", "kid", "girl", "boy", "woman", "man"),
    "bear": ("bear", "teddy bear"),
    "rabbit": ("rabbit", "bunny", "hare"),
    "lion": ("lion",),
    "mouse": ("mouse",),
    "pig": ("pig", "piglet"),
    "fish": ("fish", "fish", "goldfish"),
    "car": ("car", "car", "car", "automobile", "motor car", "vehicle"),
    "boat": ("boat", "boat", "boat", "sailing boat", "sailboat", "ship", "sailing ship", "yacht"),
    "house": ("house", "house", "house", "cottage", "home", "hut", "cabin"),
    "flower": ("flower", "flower", "flower", "blossom", "bloom", "daisy", "tulip"),
    "balloon": ("balloon", "balloon", "balloon", "party balloon", "toy balloon"),
    "rocket": ("rocket", "rocket", "spaceship", "rocket ship", "space rocket", "spacecraft"),
    "train": ("train", "steam train", "locomotive"),
    "umbrella": ("umbrella", "parasol", "beach umbrella"),
    "sun lounger": ("sun lounger", "deck chair", "lounger"),
    "plane": ("plane", "airplane", "aeroplane"),
    "truck": ("truck", "lorry"),
    "lamp": ("street lamp", "lamp post", "lamp"),
    "gift": ("gift", "present", "gift box"),
}
PLURALS = {
    "fish": "fish",
    "goldfish": "goldfish",
    "mouse": "mice",
    "person": "people",
    "child": "children",
    "woman": "women",
    "man": "men",
    "puppy": "puppies",
    "kitty": "kitties",
    "doggy": "doggies",
    "T-Rex": "T-Rexes",
    "t-rex": "t-rexes",
    "T. rex": "T. rexes",
    "T-rex": "T-rexes",
    "trex": "trexes",
    "daisy": "daisies",
    "spacecraft": "spacecraft",
    "butterfly": "butterflies",
    "tyrannosaurus": "tyrannosauruses",
    "tyrannosaurus rex": "tyrannosaurus rexes",
    "lorry": "lorries",
    "gift box": "gift boxes",
    "cactus": "cactuses",
    "fox": "foxes",
    "bunny": "bunnies",
    "snowman": "snowmen",
}
HUES: dict[str, tuple[str, ...]] = {
    "red": ("red", "red", "red", "scarlet", "crimson"),
    "orange": ("orange",),
    "yellow": ("yellow", "yellow", "yellow", "lemon-yellow"),
    "green": ("green", "green", "green", "emerald"),
    "blue": ("blue", "blue", "blue", "azure"),
    "purple": ("purple", "purple", "violet"),
    "pink": ("pink", "pink", "pink", "rosy"),
    "brown": ("brown", "brown", "chocolate-brown"),
    "white": ("white", "white", "snow-white"),
    "black": ("black", "black", "jet-black"),
}
WHERE: dict[str, tuple[str, ...]] = {
    "beach": (
        "on a beach",
        "on the beach",
        "at the beach",
        "on a sandy beach",
        "at the seaside",
        "on the sand",
        "on the shore",
        "on the coast",
        "on the sandy shore",
        "with the beach in the background",
    ),
    "sea": (
        "at sea",
        "on the sea",
        "on the open sea",
        "on the ocean",
        "in the ocean",
        "out on the water",
        "on the waves",
        "on the blue sea",
        "in the waves",
        "on open water",
    ),
    "meadow": (
        "in a meadow",
        "on a meadow",
        "in a green field",
        "on the grass",
        "in a grassy meadow",
        "in the green hills",
        "in the meadow",
        "in the grass",
        "on a green meadow",
        "on the lawn",
    ),
    "forest": (
        "in a forest",
        "in the forest",
        "in the woods",
        "among the fir trees",
        "in a dark wood",
        "between the trees",
        "in front of a forest",
        "in the deep forest",
        "in the woodland",
    ),
    "snow": (
        "in the snow",
        "in a snowy landscape",
        "in winter",
        "on a snowy field",
        "while it is snowing",
        "in a winter landscape",
        "in deep snow",
        "on the snow",
        "in a snowy field",
        "in a winter wonderland",
        "in the cold of winter",
    ),
    "city": (
        "in a city",
        "in the city",
        "on a city street",
        "in town",
        "downtown",
        "on the street",
        "in front of tall buildings",
        "on a busy street",
        "in a busy city",
        "between tall buildings",
        "with a city in the background",
        "on the road",
    ),
    "space": (
        "in space",
        "on the moon",
        "in outer space",
        "among the stars and planets",
        "on a distant planet",
        "in the cosmos",
        "on the lunar surface",
        "in the galaxy",
        "among the stars",
        "floating in space",
    ),
    "mountains": (
        "in the mountains",
        "in front of snowy mountains",
        "in the alps",
        "below high peaks",
        "high up in the mountains",
        "with mountains in the background",
        "in front of mountains",
        "in a mountain valley",
    ),
    "desert": (
        "in the desert",
        "in a desert",
        "among sand dunes",
        "on a dune",
        "in the hot desert",
        "in the dunes",
        "in a sandy desert",
    ),
    "underwater": (
        "under water",
        "underwater",
        "at the bottom of the sea",
        "under the sea",
        "beneath the waves",
        "in the deep sea",
        "on the seabed",
        "on the ocean floor",
    ),
    "room": (
        "in a room",
        "in a living room",
        "indoors",
        "at home in a cosy room",
        "inside a room",
        "in a cosy room",
        "in the living room",
        "inside a house",
        "at home",
    ),
    "plain": (
        "on a plain background",
        "on a simple background",
        "in front of a plain wall",
        "in front of nothing",
        "on a plain backdrop",
        "in front of a plain background",
    ),
}
TAGS: dict[str, tuple[str, ...]] = {
    "beach": ("beach", "sandy beach", "seaside"),
    "sea": ("sea", "ocean", "open water"),
    "meadow": ("meadow", "grass", "green field"),
    "forest": ("forest", "woods"),
    "snow": ("snow", "winter", "snowy"),
    "city": ("city", "town", "street"),
    "space": ("space", "outer space", "moon"),
    "mountains": ("mountains", "alps"),
    "desert": ("desert", "dunes"),
    "underwater": ("underwater", "under the sea"),
    "room": ("room", "indoors"),
    "plain": ("plain background",),
}
WHEN: dict[str, tuple[str, ...]] = {
    "day": (
        "during the day",
        "on a sunny day",
        "in bright daylight",
        "under a blue sky",
        "in the sunshine",
        "in the daytime",
        "in the morning",
        "at noon",
        "by day",
    ),
    "sunset": (
        "at sunset",
        "at dusk",
        "in the evening light",
        "under an orange sky",
        "as the sun goes down",
        "in the evening",
        "during sunset",
        "at sundown",
    ),
    "night": (
        "at night",
        "under the moon",
        "by moonlight",
        "on a starry night",
        "in the dark of night",
        "at midnight",
        "during the night",
        "in the moonlight",
    ),
}
SPOT: dict[str, tuple[str, ...]] = {
    "left": (
        "on the left",
        "on the left side",
        "to the left",
        "on the left-hand side",
        "on the far left",
        "in the left half",
    ),
    "centre": ("in the middle", "in the centre", "in the center", "at the centre"),
    "right": (
        "on the right",
        "on the right side",
        "to the right",
        "on the right-hand side",
        "on the far right",
        "in the right half",
    ),
}
SIZED: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny", "miniature"),
    "medium": ("",),
    "big": ("big", "large", "huge", "giant", "enormous"),
}
POSED: dict[str, tuple[str, ...]] = {
    "standing": ("standing", "standing around", "standing there"),
    "sitting": ("sitting", "sitting down", "seated", "sitting on the ground"),
    "lying": ("lying down", "lying on the ground", "lying"),
    "jumping": ("jumping", "leaping", "jumping for joy"),
}
LOUNGING_VERBS = (
    "lying",
    "lying",
    "relaxing",
    "resting",
    "lounging",
    "reclining",
    "sunbathing",
    "taking a nap",
    "stretched out",
)
LOUNGING_SEATS = (
    "on a sun lounger",
    "on a sun lounger",
    "on a lounger",
    "on a deck chair",
    "on a sunbed",
    "on a beach chair",
    "in a deck chair",
)
RESTING = (
    "relaxing",
    "relaxing",
    "resting",
    "chilling",
    "taking it easy",
    "on holiday",
    "enjoying itself",
    "having a rest",
)
DOING: dict[str, tuple[str, ...]] = {  # what several of a kind do where they stand
    "creature": ("stand", "stand", "wait", "pose", "look around", "stay"),
    "lounging": ("lie", "lie", "relax", "rest", "nap", "sunbathe", "chill", "lounge"),
    "boat": ("sail", "sail", "float", "drift"),
    "fish": ("swim", "swim", "glide"),
    "balloon": ("float", "hover", "hang"),
    "rocket": ("fly", "stand"),
    "flower": ("grow", "bloom"),
    "tree": ("grow", "stand"),
}
TOLD_TIMES: dict[str, tuple[str, ...]] = {  # sentences of their own
    "day": ("It is day", "The sun shines", "It is a sunny day"),
    "sunset": ("The sun is setting", "It is evening", "It is sunset"),
    "night": ("It is night", "The moon shines", "It is a dark night"),
}
TOLD_WEATHERS: dict[str, tuple[str, ...]] = {
    "rain": ("It is raining", "It rains", "Rain is falling"),
    "fog": ("It is foggy", "There is fog everywhere", "It is a foggy day"),
}
WEARING = ("wearing", "wearing", "with", "in", "who wears")
CLOTHES: dict[str, tuple[str, ...]] = {
    "sunglasses": (
        "sunglasses",
        "sunglasses",
        "sunglasses",
        "shades",
        "dark glasses",
        "cool sunglasses",
        "a pair of sunglasses",
    ),
    "hat": ("a hat", "a hat", "a sun hat", "a straw hat", "a funny hat"),
    "scarf": ("a scarf", "a scarf", "a warm scarf", "a woolly scarf"),
}
COUNTED: dict[int, tuple[str, ...]] = {
    2: ("two", "two", "2", "a pair of"),
    3: ("three", "three", "3"),
    4: ("four", "four", "4"),
}
STARTS = {"a", "an", *(word.split(" ")[0] for words in COUNTED.values() for word in words)}
"""First words of phrases that name things."""
TIME_TAGS: dict[str, tuple[str, ...]] = {
    "day": ("day", "day", "sunny", "blue sky"),
    "sunset": ("sunset", "sunset", "dusk", "orange sky"),
    "night": ("night", "night", "moonlight", "starry sky"),
}
STYLED: dict[str, tuple[str, ...]] = {
    "flat": ("flat illustration", "storybook illustration", "cartoon", "children's book picture"),
    "watercolour": ("watercolour", "watercolor painting", "soft watercolour"),
    "pixel art": ("pixel art", "8-bit pixel art", "pixelated"),
    "line drawing": ("line drawing", "ink drawing", "black and white line art"),
    "neon": ("neon style", "neon lights", "glowing neon"),
}
WEATHERED: dict[str, tuple[str, ...]] = {
    "clear": ("",),
    "rain": (
        "in the rain",
        "in the rain",
        "on a rainy day",
        "while it rains",
        "in pouring rain",
        "in heavy rain",
        "in rainy weather",
    ),
    "fog": (
        "in the fog",
        "in the fog",
        "in thick mist",
        "on a foggy day",
        "in dense fog",
        "in the mist",
        "in foggy weather",
    ),
}
WEATHER_TAGS: dict[str, tuple[str, ...]] = {
    "clear": ("",),
    "rain": ("rain", "rainy", "in the rain"),
    "fog": ("fog", "foggy", "misty", "in the fog"),
}
FAIR = ("sunny", "bright daylight", "blue sky", "sunshine", "orange sky", "moon", "starry")
"""In phrases of the time that go with neither rain nor fog."""
OPENINGS = (
    "a picture of",
    "an illustration of",
    "a drawing of",
    "an image of",
    "a cute drawing of",
    "please draw",
    "show me",
    "I want to see",
    "a lovely scene with",
    "a storybook illustration of",
    "can you draw",
    "draw",
    "draw me",
    "make a picture of",
    "generate an image of",
    "I would like",
    "there is",
    "we see",
    "a photo of",
)
CLOSINGS = (
    "highly detailed",
    "beautiful",
    "4k",
    "masterpiece",
    "cute",
    "colourful",
    "for children",
    "please",
    "nice",
    "in a calm mood",
)
STRANGERS = (
    "amazing",
    "quixotic",
    "serendipity",
    "bokeh",
    "whimsical",
    "epic",
    "trending",
    "blorp",
    "unreal",
    "vivid",
    "hdr",
)
SYLLABLES = (
    "ba",
    "ko",
    "li",
    "mer",
    "ta",
    "zu",
    "ne",
    "ri",
    "po",
    "ster",
    "ing",
    "al",
    "fo",
    "gra",
    "vi",
    "du",
    "wen",
    "sha",
)
FINISHES = ("clean outlines", "clear shapes", "soft colours")
ADJECTIVES = (
    "cute",
    "happy",
    "friendly",
    "funny",
    "lovely",
    "cheerful",
    "beautiful",
    "pretty",
    "old",
    "young",
    "lonely",
)
TINGES = ("bright", "dark", "light", "deep")  # of a colour, which is drawn the same
STAGES: dict[str, str] = {
    "beach": "a sandy beach with the blue sea behind it",
    "sea": "the open sea with small waves",
    "meadow": "a green meadow with rolling hills and little flowers",
    "forest": "a forest of dark fir trees",
    "snow": "a snowy landscape with fir trees and falling snowflakes",
    "city": "a city street in front of tall buildings with many windows",
    "space": "outer space with stars and planets above a grey moon",
    "mountains": "a green valley in front of snowy mountains",
    "desert": "a desert with yellow dunes",
    "underwater": "the bottom of the sea with weeds and bubbles",
    "room": "a cosy room with a wooden floor and a window",
    "plain": "a plain background",
}
LIGHTS: dict[str, tuple[str, ...]] = {
    "day": ("bright daylight under a blue sky with soft clouds", "the light of a sunny day"),
    "sunset": ("the warm light of sunset", "the evening light of a setting sun"),
    "night": ("the dark of night under moon and stars", "a quiet starry night"),
}
DULL_LIGHTS = {"day": "the grey light of day", "sunset": "the dim light of evening", "night": "the dark of night"}
CURTAINS = {"clear": "", "rain": ", while rain is falling", "fog": ", wrapped in fog"}

Rng = np.random.Generator


def pick(options: Sequence[str], rng: Rng) -> str:
    return options[int(rng.integers(len(options)))]


def with_article(noun: str) -> str:
    """ "an orange cat"."""
    return ("an " if noun[0].lower() in "aeiou" else "a ") + noun


def _noun_phrase(subject: Subject, rng: Rng, everything: bool = False, article: bool = True) -> str:
    """ "three small red cats": count, size, colour and noun; the natural colour may go without saying."""
    noun = pick(NOUNS.get(subject.kind, (subject.kind,)), rng)
    if subject.count > 1:
        noun = PLURALS.get(noun, noun + "s")
    words = []
    if subject.size != "medium":
        words.append(pick(SIZED[subject.size], rng))
    if rng.random() < 0.08:
        words.append(pick(ADJECTIVES, rng))
    if everything or subject.colour != NATURAL[subject.kind] or rng.random() < 0.5:
        words += [pick(TINGES, rng)] if rng.random() < 0.06 else []
        words.append(pick(HUES[subject.colour], rng))
    phrase = " ".join([*words, noun])
    if subject.count > 1:
        return f"{pick(COUNTED[subject.count], rng)} {phrase}"
    return with_article(phrase) if article else phrase


def _clothes(subject: Subject, rng: Rng) -> str:
    """ "a hat and sunglasses", in any order; "" for nothing."""
    clothes = [pick(CLOTHES[item], rng) for item in subject.worn]
    if rng.random() < 0.5:
        clothes.reverse()
    if subject.count > 1:
        clothes = [
            item.replace("a ", "", 1) + ("s" if "glasses" not in item and "shades" not in item else "")
            if item.startswith("a ") and "pair" not in item
            else item
            for item in clothes
        ]
    return " and ".join(clothes)


def _worn(subject: Subject, rng: Rng) -> str:
    clothes, verb = _clothes(subject, rng), pick(WEARING, rng)
    if subject.count > 1:
        verb = verb.replace("wears", "wear")
    return f"{verb} {clothes}" if clothes else ""


def _posed(subject: Subject, rng: Rng, everything: bool = False) -> str:
    if subject.on_lounger:
        return f"{pick(LOUNGING_VERBS, rng)} {pick(LOUNGING_SEATS, rng)}"
    if subject.kind not in ("t-rex",) and subject.pose == "standing" and subject.worn == () and not everything:
        return pick(POSED["standing"], rng) if rng.random() < 0.12 else ""
    if subject.pose != "standing" or rng.random() < 0.3:
        return pick(POSED[subject.pose], rng)
    return ""


def _is_thing(subject: Subject) -> bool:
    return subject.kind in OBJECTS


def _details(subject: Subject, rng: Rng, place: bool) -> list[str]:
    """Pose, clothes and place, those that are worth a word."""
    parts = [] if _is_thing(subject) else [_posed(subject, rng), _worn(subject, rng)]
    if place:
        parts.append(pick(SPOT[subject.place], rng))
    return [part for part in parts if part]


def _is_alone(scene: Scene) -> bool:
    return len(scene.subjects) == 1 and scene.subjects[0].count == 1


def _speaks_of_place(scene: Scene, rng: Rng) -> bool:
    subject = scene.subjects[0]
    if subject.count > 1 or not subject.place:
        return False
    if subject.place == "centre":
        return bool(rng.random() < 0.15)
    return len(scene.subjects) == 1 or bool(rng.random() < 0.88)


def _in_order(phrases: list[str], scene: Scene, place: bool, rng: Rng) -> list[str]:
    """In any order where places are named; else as one reads, from left to right: which is where is no riddle then."""
    if place:
        return [phrases[i] for i in rng.permutation(len(phrases))]
    return [phrases[i] for i in sorted(range(len(phrases)), key=lambda i: scene.subjects[i].place == "right")]


def _join(parts: list[str], rng: Rng) -> str:
    if len(parts) < 2:
        return "".join(parts)
    if rng.random() < 0.5:
        return ", ".join(parts[:-1]) + " and " + parts[-1]
    return " ".join(parts) if rng.random() < 0.5 else ", ".join(parts)


def _hour(scene: Scene, rng: Rng, phrases: dict[str, tuple[str, ...]] = WHEN) -> str:
    """A phrase of the time that goes with the weather."""
    fair = scene.weather == "clear"
    return pick([when for when in phrases[scene.time] if fair or not any(word in when for word in FAIR)], rng)


def _weather(scene: Scene, rng: Rng, phrases: dict[str, tuple[str, ...]] = WEATHERED) -> str:
    """A phrase of the weather that goes with the time."""
    return pick([one for one in phrases[scene.weather] if scene.time != "night" or " day" not in one], rng)


def _time(scene: Scene, rng: Rng, brief: bool = False, weather: bool = True) -> str:
    """Time and, where wanted, weather; `brief`: those that nobody would expect, and no others."""
    if scene.setting == "space":
        return ""
    said = scene.time != "day" or (not brief and rng.random() < 0.28)
    words = [_hour(scene, rng) if said else "", _weather(scene, rng) if weather else ""]
    return " ".join(word for word in words if word)


def _subjects(scene: Scene, rng: Rng) -> str:
    place = _speaks_of_place(scene, rng)
    phrases = []
    for subject in scene.subjects:
        details = _details(subject, rng, place)
        if rng.random() < 0.5:
            details = [details[i] for i in rng.permutation(len(details))]
        phrases.append(" ".join([_noun_phrase(subject, rng), _join(details, rng)]).strip())
    joint = pick((" and ", ", ", " next to ", " with ") if not place else (" and ", ", "), rng)
    return joint.join(_in_order(phrases, scene, place, rng))


def _sentence(scene: Scene, rng: Rng) -> str:
    subjects, where, when = _subjects(scene, rng), pick(WHERE[scene.setting], rng), _time(scene, rng)
    order = rng.random()
    if order < 0.5:
        return " ".join(part for part in (subjects, where, when) if part)
    if order < 0.7:
        opening = " ".join(part for part in ((when, where) if rng.random() < 0.4 else (where, when)) if part)
        return f"{opening}{pick((', ', ', there is ', ': '), rng) if scene.subjects[0].count == 1 else ', '}{subjects}"
    if order < 0.85:
        if when and scene.weather == "clear" and rng.random() < 0.5:
            when = _hour(scene, rng, TIME_TAGS)
        return f"{subjects}, {where}{', ' + when if when else ''}"
    return f"{when + ', ' if when else ''}{subjects} {where}"


def _conjugated(verb: str, count: int) -> str:
    """The verb as one thing does it, or several: "fly" -> "flies"."""
    if count > 1:
        return verb
    first, *rest = verb.split(" ")
    if first.endswith("y") and first[-2] not in "aeiou":
        first = f"{first[:-1]}ies"
    else:
        first += "es" if first.endswith(("s", "x", "sh", "ch")) else "s"
    return " ".join([first, *rest])


def _does(subject: Subject, rng: Rng) -> str:
    """What a subject does, as a verb with its object: "lies on a deck chair", "is standing", "sails"."""
    if subject.on_lounger:
        seat = pick(LOUNGING_SEATS, rng)
        if rng.random() < 0.6:
            return f"{_conjugated(pick(DOING['lounging'], rng), subject.count)} {seat}"
        return f"{'are' if subject.count > 1 else 'is'} {pick(LOUNGING_VERBS, rng)} {seat}"
    if not _is_thing(subject) and (subject.pose != "standing" or rng.random() < 0.3):
        return f"{'are' if subject.count > 1 else 'is'} {pick(POSED[subject.pose], rng)}"
    kind = subject.kind if _is_thing(subject) else "creature"
    return _conjugated(pick(DOING.get(kind, ("stand", "stand", "wait")), rng), subject.count)


def _wears(subject: Subject, rng: Rng) -> str:
    """A sentence about what is worn."""
    one, clothes = subject.count == 1, _clothes(subject, rng)
    options = ("It wears {}", "It is wearing {}", "It has {} on", "There is {} on it")
    several = ("They wear {}", "They are wearing {}", "They have {} on")
    return pick(options[: 3 if "glasses" in clothes or "shades" in clothes else 4] if one else several, rng).format(
        clothes
    )


def _told(scene: Scene, rng: Rng) -> str:
    """As one tells what one sees, with verbs; what is worn and the time may have sentences of their own."""
    place, apart, parts, after = _speaks_of_place(scene, rng), rng.random() < 0.5, [], []
    for subject in scene.subjects:
        spot = pick(SPOT[subject.place], rng) if place else ""
        worn = "" if _is_thing(subject) else _worn(subject, rng)
        if worn and apart and len(scene.subjects) == 1:
            worn = ""
            after.append(_wears(subject, rng))
        phrase = _noun_phrase(subject, rng)
        if len(scene.subjects) == 1 and rng.random() < 0.3 and not subject.on_lounger:
            parts.append(
                " ".join(p for p in (f"there {'are' if subject.count > 1 else 'is'}", phrase, worn, spot) if p)
            )
            continue
        doing = [_does(subject, rng), spot]
        parts.append(" ".join(p for p in (phrase, worn, *(doing if rng.random() < 0.7 else doing[::-1])) if p))
    own, clear = rng.random() < 0.3, scene.weather == "clear"
    where, when = pick(WHERE[scene.setting], rng), _time(scene, rng, weather=clear or not own)
    if own and not clear:
        after.append(_weather(scene, rng, TOLD_WEATHERS))
    elif own and when:
        when = ""
        after.append(pick(TOLD_TIMES[scene.time], rng))
    text = pick((" and ", ", and ", ", "), rng).join(_in_order(parts, scene, place, rng))
    order = rng.random()
    if order < 0.6:
        text = " ".join(part for part in (text, where, when) if part)
    elif order < 0.8:
        text = ", ".join(part for part in (where, text, when) if part)
    else:
        text = ", ".join(part for part in (when, text) if part) + f" {where}"
    return ". ".join([text, *after])


def _relaxed(scene: Scene, rng: Rng) -> str:
    """The wording family of the seed's example: who relaxes where, then how."""
    subject = next(s for s in scene.subjects if s.on_lounger)
    first = f"{_noun_phrase(subject, rng)} {pick(RESTING, rng)} {pick(WHERE[scene.setting], rng)}"
    when = _time(scene, rng)
    how = [part for part in (_posed(subject, rng), _worn(subject, rng)) if part]
    if rng.random() < 0.35:
        how.reverse()
    others = []
    for other in scene.subjects:
        if other is not subject:
            words = (
                _noun_phrase(other, rng),
                "" if _is_thing(other) else _worn(other, rng),
                pick(SPOT[other.place], rng),
            )
            others.append(" ".join(word for word in words if word))
    text = f"{first}{' ' + when if when else ''}{pick((', ', ' '), rng)}{_join(how, rng)}"
    if len(scene.subjects) == 1 and subject.place != "centre":
        text += f" {pick(SPOT[subject.place], rng)}"
    return text + (f", with {others[0]}" if others else "")


def _tags(scene: Scene, rng: Rng) -> str:
    tags = [pick(TAGS[scene.setting], rng)]
    place = len(scene.subjects) > 1 or _speaks_of_place(scene, rng)  # in any order, tags do not tell sides
    for subject in scene.subjects:
        tags.append(
            " ".join(
                [
                    _noun_phrase(subject, rng, article=bool(rng.random() < 0.3)),
                    *([pick(SPOT[subject.place], rng)] if place else []),
                ]
            )
        )
        if len(scene.subjects) == 1:
            if subject.on_lounger:
                tags.append(pick(("sun lounger", "lying on a lounger", "deck chair", "lounging"), rng))
            elif subject.pose != "standing":
                tags.append(pick(POSED[subject.pose], rng))
            tags += [pick(CLOTHES[item], rng).removeprefix("a ") for item in subject.worn]
        else:
            tags[-1] = " ".join([tags[-1], *_details(subject, rng, False)])
    if scene.time != "day" or rng.random() < 0.2:
        tags.append(_hour(scene, rng, TIME_TAGS if rng.random() < 0.7 else WHEN))
    tags += [word for word in (_weather(scene, rng, WEATHER_TAGS),) if word]
    return pick((", ", ", ", " "), rng).join(tags[i] for i in rng.permutation(len(tags)))


def _long_subject(subject: Subject, rng: Rng) -> str:
    verb = "are" if subject.count > 1 else "is"
    phrase = _noun_phrase(subject, rng, everything=True)
    place = pick(SPOT[subject.place], rng) + " of the picture" if subject.count == 1 else "side by side"
    doing = "" if _is_thing(subject) else (_posed(subject, rng, True) or "standing")
    worn = "" if _is_thing(subject) else _worn(subject, rng)
    if rng.random() < 0.5:
        middle = " ".join(part for part in (doing, place) if part)
        return f"{phrase} {verb} {middle}{', ' + worn if worn else ''}."
    opening = place[0].upper() + place[1:]
    return f"{opening} {verb} {phrase}{' ' + doing if doing else ''}{' ' + worn if worn else ''}."


def _stage(scene: Scene, rng: Rng) -> str:
    """The sentence about the scene: where, in which light, in which weather."""
    light = pick(LIGHTS[scene.time], rng) if scene.weather == "clear" else DULL_LIGHTS[scene.time]
    light = "" if scene.setting == "space" else f" in {light}"
    return f"The scene is {STAGES[scene.setting]}{light}{CURTAINS[scene.weather]}."


def _finish(scene: Scene, rng: Rng) -> str:
    """The sentence about the style."""
    return f"{_capital(pick(STYLED[scene.style], rng))} with {pick(FINISHES, rng)}."


def long_caption(scene: Scene, rng: Rng) -> str:
    """Two to four sentences that name everything; what the language model learns to write."""
    parts = [*(_capital(_long_subject(subject, rng)) for subject in scene.subjects), _stage(scene, rng)]
    if rng.random() < 0.25:
        parts = parts[::-1]
    return " ".join([*parts, _finish(scene, rng)] if rng.random() < 0.7 or scene.style != "flat" else parts)


def understated(scene: Scene, rng: Rng) -> Scene:
    """The scene as a short prompt tells of it, which leaves to its expansion where a thing is, how large, and when."""
    if scene.setting != "space" and scene.weather == "clear" and rng.random() < 0.5:  # "on a rainy day" is no night
        scene = replace(scene, time="day")
    if not _is_alone(scene):
        return scene
    subject = scene.subjects[0]
    place, size = ("" if rng.random() < 0.7 else subject.place), ("medium" if rng.random() < 0.7 else subject.size)
    return replace(scene, subjects=(replace(subject, place=place, size=size),))


def says_where(text: str) -> bool:
    """Whether a caption names a side, or the middle."""
    return any(spot in text.lower() for spots in SPOT.values() for spot in spots)


def _composition(said: str, scene: Scene) -> str:
    """The sentence about how large a thing is and where, as far as the prompt leaves that open; "" for several."""
    if not _is_alone(scene):
        return ""
    subject, words = scene.subjects[0], said.lower().replace(",", "").split()
    parts = []
    if subject.size != "medium" and not any(size in words for sizes in SIZED.values() for size in sizes):
        parts.append(subject.size)
    if not says_where(said):
        parts.append(f"{SPOT[subject.place][0]} of the picture")
    return f"It is {' and '.join(parts)}." if parts else ""


def expanded_caption(scene: Scene, rng: Rng) -> str:
    """A caption with the sentences after it that prompt expansion adds: every request is expanded unless it objects."""
    return continued(
        caption(scene, rng) if rng.random() < 0.4 else short_caption(understated(scene, rng), rng), scene, rng
    )


def continued(said: str, scene: Scene, rng: Rng) -> str:
    """A prompt as its expansion begins with it, and what that adds: composition, scenery, light, style."""
    sentences = [_composition(said, scene), _stage(scene, rng), _finish(scene, rng)]
    return " ".join([f"{_capital(said).rstrip('.')}.", *(sentence for sentence in sentences if sentence)])


def short_caption(scene: Scene, rng: Rng) -> str:
    """A few words: the kinds, perhaps a colour, and what nobody would expect unless it is said.

    That is all that is worn or lain upon, mostly a place but the middle, a setting that is no home of the first kind,
    any time but day, and the weather. Else who asks for a cat gets one in sunglasses, at night, in the sea.
    """
    phrases, place = [], _speaks_of_place(scene, rng)
    for subject in scene.subjects:
        extras = [] if _is_thing(subject) else [_posed(subject, rng) if subject.on_lounger else "", _worn(subject, rng)]
        spot = pick(SPOT[subject.place], rng) if place else ""
        words = [_noun_phrase(subject, rng, article=bool(rng.random() < 0.7)), *extras, spot]
        phrases.append(" ".join(word for word in words if word))
    parts = [" and ".join(_in_order(phrases, scene, place, rng))]
    if scene.setting != homes(scene.subjects[0].kind)[0] or rng.random() < 0.4:
        parts.append(pick(WHERE[scene.setting], rng))
    return " ".join(part for part in (*parts, _time(scene, rng, brief=True)) if part)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _opened(text: str, rng: Rng) -> str:
    """With words before it that ask for a picture, where it begins with a thing."""
    first = text.split(" ")[0]
    if first not in STARTS:
        return text
    opening = pick(OPENINGS, rng)
    return f"{'there are' if opening == 'there is' and first not in ('a', 'an') else opening} {text}"


def _noisy(text: str, scene: Scene, rng: Rng, opens: bool = True) -> str:
    """Openings (where it `opens` so), closings, style words, unknown words, case and full stop."""
    if opens and rng.random() < 0.2:
        text = _opened(text, rng)
    if scene.style != "flat" or rng.random() < 0.06:
        text = (
            f"{text}, {pick(STYLED[scene.style], rng)}"
            if rng.random() < 0.6
            else f"{pick(STYLED[scene.style], rng)}, {text}"
        )
    if rng.random() < 0.1:
        text = f"{text}, {pick(CLOSINGS, rng)}"
    if rng.random() < 0.07:
        words = text.split(" ")
        stranger = (
            pick(STRANGERS, rng) if rng.random() < 0.4 else "".join(rng.choice(SYLLABLES, int(rng.integers(2, 5))))
        )
        words.insert(int(rng.integers(len(words) + 1)), stranger)
        text = " ".join(words)
    if rng.random() < 0.08:
        text = " ".join(word for word in text.split(" ") if word not in ("a", "an", "the"))
    case = rng.random()
    text = _capital(text) if case < 0.6 else text.lower() if case < 0.75 else text
    return text + ("." if rng.random() < 0.5 else "")


def caption(scene: Scene, rng: Rng) -> str:
    """One caption of a scene; another call gives another."""
    while True:
        kind = rng.random()
        lounging = any(subject.on_lounger for subject in scene.subjects)
        if kind < 0.12:
            text = long_caption(scene, rng)
        elif lounging and kind < 0.47:
            text = _noisy(_relaxed(scene, rng), scene, rng)
        elif kind < (0.57 if lounging else 0.3):
            text = _noisy(_tags(scene, rng), scene, rng)
        elif kind < (0.75 if lounging else 0.6):
            text = _noisy(_told(scene, rng), scene, rng, opens=False)
        else:
            text = _noisy(_sentence(scene, rng), scene, rng)
        if text.lower().rstrip(".") not in REFUSED:
            return text
