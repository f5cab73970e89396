"""The words that the rules know by name: numbers, colours, function words, and phrases that are not descriptions.

Tokens are words of alphabets, numbers, and single characters of Chinese, Japanese and Korean, which write no spaces.
"""

import re
import unicodedata
from collections import Counter

_UP_TO_TWENTY = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
_TENS = "ten twenty thirty forty fifty sixty seventy eighty ninety"
_CHINESE_DIGITS = "零一二三四五六七八九十"
NUMBERS = {
    **{str(value): value for value in range(101)},
    **{word: 10 * value for value, word in enumerate(_TENS.split(), 1)},
    **{word: value for value, word in enumerate(_UP_TO_TWENTY.split())},
    **{char: value for value, char in enumerate(_CHINESE_DIGITS)},
    **dict.fromkeys(("pair", "couple", "twin", "both", "两", "兩", "双"), 2),
    **{"trio": 3, "dozen": 12, "hundred": 100},
}
"""Word or character -> its value. Digits beyond 100 are read as they stand."""
COUNTS: dict[str, int | str] = {
    **NUMBERS,
    **{word: value for value, word in enumerate(["second", "third", "fourth", "fifth"], 2)},
    **{word: word for word in ("several", "many", "multiple", "numerous", "dozens", "countless", "few", "another")},
    **{word: word for word in ("hundreds", "thousands", "group", "herd", "flock", "crowd", "pack")},
    **dict.fromkeys(("single", "lone", "solitary"), "alone"),
}
"""The numbers, and what else tells how many there are: "a second cat", "several cats"."""
_PLURALS = {
    "people": "person", "children": "child", "mice": "mouse", "geese": "goose", "feet": "foot", "teeth": "tooth",
    "wolves": "wolf", "leaves": "leaf", "knives": "knife", "wives": "wife", "elves": "elf", "calves": "calf",
    "shelves": "shelf", "loaves": "loaf", "thieves": "thief", "scarves": "scarf", "oxen": "ox",
}  # fmt: skip
_SHADES = {
    "red": "red scarlet crimson ruby 红 紅",
    "orange": "orange 橙",
    "yellow": "yellow 黄 黃",
    "green": "green emerald olive 绿 綠",
    "blue": "blue azure navy cobalt 蓝 藍",
    "purple": "purple violet lavender lilac 紫",
    "pink": "pink rosy 粉",
    "brown": "brown 棕 褐",
    "white": "white ivory 白",
    "black": "black ebony 黑",
    "grey": "grey gray 灰",
    "gold": "gold golden 金",
    "silver": "silver 银 銀",
    "turquoise": "turquoise teal cyan 青",
}
COLOURS = {word: colour for colour, words in _SHADES.items() for word in words.split()}
"""Word or character -> its colour."""
NO_COLOUR = re.compile("金属|金屬|金鱼|金魚|白天|黄昏|黃昏|黑夜|黑暗")
"""Words of Chinese in which a character of a colour names none: metal, goldfish, day, dusk, night, darkness."""
MORE = frozenset({"more", "other", "further", "additional", "extra", "another"})
"""Words after a number that stand for things of the prompt."""
SIDES = {"left": "left", "right": "right", "左": "left", "右": "right"}
ASIDE = frozenset({*SIDES, "side", "half", "hand"})
"""Those, and words that stand beside them and name no thing: "on the left side"."""

_FUNCTION_WORDS = {
    "en": (
        "the a an of and with in on at is are to from by its it over under behind through into while as for no near "
        "without between above below"
    ),
    "de": "der die das ein eine einen einem und mit auf in ist sind dem den im am vor hinter unter von zu",
    "fr": "le la les un une de des et avec sur dans est sont du au aux par sous derrière devant",
    "es": "el la los las un una y con en es son de del al por bajo sobre detrás",
    "it": "il lo la gli un una e con su in nel nella è sono del della sotto dietro di",
    "pt": "o a os as um uma e com em no na é são de do da sob atrás",
    "nl": "de het een en met op is zijn in van voor achter onder naast",
}
FUNCTION_WORDS = {language: frozenset(words.split()) for language, words in _FUNCTION_WORDS.items()}
_GRAMMAR = frozenset().union(*FUNCTION_WORDS.values()) | frozenset(
    "的了在和与着是有一个只条位里中上下之其把被也色张辆艘匹座朵头名棵片间幅子"
)

QUALITY = re.compile(
    r"\b(?:\d{1,2}k|hdr|uhd|masterpiece|(?:best|high|highest|top|premium)[ -](?:quality|resolution)"
    r"|(?:highly|ultra|extremely|insanely)[ -]?(?:detailed|realistic|sharp)|award[ -]winning|trending on|artstation)\b"
    r"|杰作|大师作品|高清|高画质|高质量|最佳质量|超精细|超细节",
    re.IGNORECASE,
)
"""Tags that ask for quality instead of describing anything."""
CHATTER = re.compile(
    r"(?:sure|certainly|of course|okay|ok|here(?:'s| is| are)|i|i'm|i'll|i've|sorry|unfortunately|note|please|as an ai"
    r"|let me|let's|we|you|your|my apologies|maybe|wait|hmm|based on"
    r"|(?:this|the|your) (?:prompt|description|request|rules?)|expanded prompt|prompt|description)\b"
    r"|first,|so[,:]|好的|当然|(?:很|非常|十分)?抱歉|对不起|以下|请?注意|作为|我(?:无法|不能|会|将)|根据|您|你|这是(?:扩展|一段|您|你)"
    r"|这(?:个|段)描述|提示词",
    re.IGNORECASE,
)
"""How a sentence begins that talks to the user instead of describing the picture."""
THOUGHT = re.compile(
    r"the user(?:'s (?:prompt|request|description|message)| (?:wants?|asks?|asked|gave|provided|said|says|needs?|is))\b"
    r"|用户(?!界面)",
    re.IGNORECASE,
)
"""How a sentence begins that talks of the user: an answer with one is what a model thought, not what it said."""
_LINKS = (
    r"(?:in|at|on|by|of|to|under|near|above|over|behind|through|beside|with|and|but|while|wearing|holding|where|which"
    r"|that|is|are)"
)
DENIED = re.compile(
    rf"\b(?:no|not|without|never|except|\w+n['’]t)\b(?:\s+{_LINKS}\b)?(?:\s+(?!{_LINKS}\b)[^\s,.;:!?]+)*"
    r"|(?:不是|不要|不带|不戴|不穿|没有|沒有|無|无(?!人机|数|限))[^的，。；：、！？,.;!?]*",
    re.IGNORECASE,
)
"""What a prompt says that is not in the picture: "without a hat", "not at night", 没有雪."""

_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
_TOKEN = re.compile(rf"[{_UNSPACED}]|\d+|(?:(?![{_UNSPACED}])[^\W\d_])+(?:['’][^\W\d_]+)?")
_IDEOGRAPHIC = ("cjk", "hiragana", "katakana")
_UNSPACED_CHAR = re.compile(f"[{_UNSPACED}]")
_QUOTED = re.compile(
    r"“[^“”]+”|\"[^\"]+\"|「[^「」]+」|『[^『』]+』|«[^«»]+»|‘[^‘’]+’|《[^《》]+》|(?<!\w)'[^']+'(?!\w)"
)


def tokens(text: str) -> list[str]:
    """Words in lower case, numbers, and single characters where no spaces are written."""
    written = "".join(char for char in text if unicodedata.category(char)[0] != "M")  # vowel signs end no word
    return [token.lower() for token in _TOKEN.findall(written)]


def stem(token: str) -> str:
    """A word without the ending of its plural or genitive: "horse" and "horses" are "hors"; short words stay whole."""
    token = re.sub("['’]s$", "", token)
    token = _PLURALS.get(token, token)
    if token.endswith("men"):
        return token[:-2] + "an"
    if len(token) < 4 or not token.isascii() or token.endswith("ss"):
        return token
    if token.endswith(("ies", "ie")):
        return re.sub("ies?$", "y", token)
    return re.sub("(?<=[sxzo])es?$|(?<=[cs]h)es?$|s$", "", token)


def is_unspaced(token: str) -> bool:
    """Whether it is a character that stands for a word or a syllable, and is counted by itself."""
    return bool(_UNSPACED_CHAR.match(token))


def is_hangul(char: str) -> bool:
    """Whether it is a syllable of Korean, which writes spaces between words and sentences."""
    return "\uac00" <= char <= "\ud7af"


def content(text: str) -> frozenset[str]:
    """Stems of the words that carry meaning: all but numbers, colours and grammar."""
    skipped = _GRAMMAR | NUMBERS.keys() | COLOURS.keys()
    return frozenset(stem(token) for token in tokens(text) if token not in skipped and not token.isdigit())


def unquoted(text: str) -> str:
    """A text without its quoted strings."""
    return _QUOTED.sub(" ", text)


def quotations(text: str) -> list[str]:
    """The quoted strings of a text, with their marks."""
    return _QUOTED.findall(text)


def language(text: str) -> str:
    """The language of a text: zh, ja, ko, en, de, fr, es, it, pt, nl, the name of another script, or "" if unclear."""
    languages, sure = spoken(text)
    return languages[0] if sure else ""


def spoken(text: str) -> tuple[tuple[str, ...], bool]:
    """The languages that a text may be in, and whether its words leave no doubt; `language` names them.

    One word that is not English decides nothing: "Los Angeles", "Van Gogh". What stands in quotation marks does not
    count: it is shown in the picture, not said about it.
    """
    bare = unquoted(text)
    scripts = Counter(_script(char) for char in bare if char.isalpha())
    if not scripts:
        return (), False
    spelled = max((count for script, count in scripts.items() if script not in _IDEOGRAPHIC), default=0)
    if scripts["cjk"] * 2 >= spelled and scripts["cjk"]:  # a character is a word or half of one
        return ("ja" if scripts["hiragana"] + scripts["katakana"] else "zh",), True
    script = max(scripts, key=lambda name: scripts[name])
    known = {"hiragana": "ja", "katakana": "ja", "hangul": "ko"}
    return _in_latin_script(bare) if script == "latin" else ((known.get(script, script),), True)


def _script(char: str) -> str:
    return unicodedata.name(char, "unknown").split()[0].lower()


def _in_latin_script(text: str) -> tuple[tuple[str, ...], bool]:
    """The languages of which most different function words are in the text; English wins a draw."""
    found = set(tokens(text))
    scores = {name: len(found & words) for name, words in FUNCTION_WORDS.items()}
    most = max(scores.values())
    best = tuple(name for name, score in scores.items() if score == most)
    if not most:
        return (), False
    return (("en",), True) if "en" in best else (best, most > 1)
