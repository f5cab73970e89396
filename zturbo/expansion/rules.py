"""Which prompts are expanded, and which sentences of an answer may follow them. Read `additions` first.

A prompt is never rewritten. It is drawn word for word, with sentences after it, so that its subjects, numbers, colours,
names and quotations survive whatever a language model does; the rules refuse the sentences that would speak against
them. They refuse too much rather than too little: a refused sentence costs a detail, a wrong one the picture.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping

from zturbo.expansion.words import (
    ASIDE,
    CHATTER,
    COLOURS,
    COUNTS,
    DENIED,
    FUNCTION_WORDS,
    MORE,
    NO_COLOUR,
    QUALITY,
    SIDES,
    THOUGHT,
    content,
    is_hangul,
    is_unspaced,
    language,
    quotations,
    spoken,
    stem,
    tokens,
    unquoted,
)

DETAILED = 40
"""Words from which on a prompt says enough by itself; three characters of an unspaced script count as two words."""
MAX_PROMPT_CHARACTERS = 400
"""Longer prompts are left alone however few words they have."""
MAX_ADDED = 900
"""Bytes of UTF-8 that may be added: some 200 tokens of English, 300 of Chinese, of the 512 that the encoder reads."""
MAX_ANSWER = 3000
"""Characters of an answer that are read; honest ones are a third of it."""
_REACH = 5
"""Words between a number or a colour and the thing that it is said of."""
_VERBS = ("is", "are", "是")
_JOINTS = (*_VERBS, "and", "while", "but")
_REPEATED = 0.5
"""Share of a sentence's three-token sequences that may have been said before."""
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"”’)]*\s+(?=[^\Wa-z\d_]|[\"“(\d])|(?<=[。！？])[”’」』）]*|\s*\n\s*")
_ENDS = (".", "!", "?", "。", "！", "？", "…")
_AFTER_PROMPT = ".!?。！？…,;:，；：、\n"
_THINKING = re.compile(r"^.*(?:</think>|\[/THINK\]|</seed:think>)|(?:<think>|\[THINK\]|<seed:think>).*$", re.DOTALL)
"""Thoughts, ended or not; of some models only the end is marked, as their template has the beginning."""
_LIST_MARK = re.compile(r"^(?:[-*•]|\d{1,2}[.)])\s+", re.MULTILINE)
_PAIRS = (("“", "”"), ("「", "」"), ("『", "』"), ("《", "》"))
_FOREIGN = re.compile(r"[<>{}\[\]|`\\\ufffd]|https?:|www\.")
"""Marks of control tokens, markup, code and links; no description of a picture has them."""
_CONTROL = {"Cc", "Cf", "Co", "Cs", "Cn"}
_JOINERS = "\u200c\u200d"
"""Of category Cf, and part of how Persian and the scripts of India are spelled."""
_NIGHT = (
    r"\b(?:nights?|nighttime|nightfall|midnight|moonlit|moonlight|starry|starlit|after dark)\b|夜|晚上|深宵|月光|星空"
)
_DAY = r"\b(?:daylight|daytime|sunlight|sunlit|sunny|midday|noon|morning)\b|阳光|陽光|正午|白天|早晨|清晨"
_SUN = (
    r"\b(?:daylight|daytime|sunlight|sunlit|sunny|sunshine|midday|noon|blue sky|(?:bright|clear) day"
    r"|(?:bright|morning|midday|afternoon) sun)\b|阳光|陽光|太阳(?!镜)|太陽(?!鏡)|日光|正午|白天|晴朗|晴空"
)
_STARS = _NIGHT
_TIMES = tuple(
    (re.compile(named, re.IGNORECASE), re.compile(wrong, re.IGNORECASE))
    for named, wrong in ((_NIGHT, _SUN), (_DAY, _STARS))
)
"""Times of the day that a prompt may name, and the words that then speak against it."""


def left_alone(prompt: str) -> str:
    """Why a prompt is not to be expanded, or "" when it is."""
    if not tokens(prompt):
        return "the prompt has no words"
    if len(prompt) > MAX_PROMPT_CHARACTERS or _thirds(prompt) >= 3 * DETAILED:
        return "the prompt is detailed already"
    return ""


def additions(prompt: str, answer: str, whole: bool, allowed: Callable[[str], bool] = lambda _one: True) -> list[str]:
    """The sentences of a model's answer that may follow a prompt, in order.

    Args:
        prompt: as the user wrote it.
        answer: what the model wrote; it may begin with the prompt.
        whole: the model ended it; else its last sentence may be half of one.
        allowed: a further rule for single sentences.
    """
    kept: list[str] = []
    sentences = list(_sentences(prompt, answer[:MAX_ANSWER], whole and len(answer) <= MAX_ANSWER))
    if any(THOUGHT.match(sentence) for sentence in sentences):
        return []
    for sentence in sentences:
        said = " ".join([prompt, *kept])
        if _is_description(prompt, sentence) and not _repeats(said, sentence) and not _contradicts(prompt, sentence):
            kept += [sentence] * allowed(sentence)
    return kept


def joined(prompt: str, sentences: list[str], fits: Callable[[str], bool] = lambda _text: True) -> str:
    """The prompt word for word, with as many of the sentences after it as may be added and fit."""
    text = prompt
    for sentence in sentences:
        gap = "" if is_unspaced(sentence[0]) and not is_hangul(sentence[0]) else " "
        longer = f"{closed(text)}{gap}{sentence}"
        if len(longer.encode()) - len(prompt.encode()) > MAX_ADDED or not fits(longer):
            break
        text = longer
    return text


def closed(prompt: str) -> str:
    """A prompt with a full stop after it, where it has no end of its own."""
    text = prompt.rstrip()
    if text.endswith((*_ENDS, ",", ";", ":", "，", "；", "：", "、")):
        return text
    return text + ("。" if language(text) in ("zh", "ja") else ".")


def harmless(prompt: str) -> str:
    """A prompt as a language model may read it: what a tokenizer would take for a control token is plain text."""
    return re.sub(r"<(?=[|/\w])", "< ", prompt)


def unthought(answer: str) -> str:
    """An answer without what its model thought, ended or not."""
    return _THINKING.sub("", answer).strip()


def _thirds(text: str) -> int:
    """Thirds of a word; three characters of an unspaced script count as two words."""
    return sum(2 if is_unspaced(token) else 3 for token in tokens(text))


def _sentences(prompt: str, answer: str, whole: bool) -> Iterator[str]:
    """What an answer says beside the prompt, sentence by sentence, without markup around it."""
    text = _LIST_MARK.sub("", unthought(answer).replace("**", "").strip().strip("`").strip())
    start = prompt.strip().rstrip("".join(_ENDS))
    if text.lower().startswith(start.lower()) and text[len(start) : len(start) + 1] in _AFTER_PROMPT:
        text = text[len(start) :].lstrip(f" {_AFTER_PROMPT}")
    elif text[:1] == text[-1:] == '"':
        text = text.strip('"')
    parts = [part.strip() for part in _SENTENCE_END.split(text) if part.strip()]
    for part in parts:
        if part.endswith(_ENDS):
            yield part[0].upper() + part[1:]
        elif whole and part is parts[-1]:
            yield closed(part[0].upper() + part[1:])


def _is_description(prompt: str, sentence: str) -> bool:
    """A sentence of plain text in the prompt's language that talks of the picture and writes no new text into it."""
    said = {mark.lower() for mark in QUALITY.findall(prompt)}
    return (
        len(tokens(sentence)) >= 3
        and not _FOREIGN.search(sentence)
        and not any(unicodedata.category(char) in _CONTROL and char not in _JOINERS for char in sentence)
        and not CHATTER.match(sentence)
        and all(mark.lower() in said for mark in QUALITY.findall(sentence))
        and all(quotation in prompt for quotation in quotations(sentence))
        and sentence.count('"') % 2 == 0
        and all(sentence.count(opening) == sentence.count(closing) for opening, closing in _PAIRS)
        and not _languages(prompt).isdisjoint(spoken(sentence)[0] or ("",))
    )


def _languages(prompt: str) -> set[str]:
    """What a sentence may be in; a few words without grammar, such as "red car", go with English."""
    found, sure = spoken(prompt)
    return {*found} if sure else {*found, "", "en"}


def _repeats(said: str, sentence: str) -> bool:
    """Whether a sentence says again what was said, or the same words over and over."""
    words = tokens(sentence)
    seen = set(_triples(tokens(said)))
    again = 0
    for triple in _triples(words):
        again += triple in seen
        seen.add(triple)
    return sentence in said or again > _REPEATED * max(1, len(words) - 2)


def _triples(words: list[str]) -> list[tuple[str, ...]]:
    return list(zip(words, words[1:], words[2:], strict=False))


def _contradicts(prompt: str, sentence: str) -> bool:
    """Whether a sentence gives a thing of the prompt another number, colour or side, the day another time, or the
    picture what the prompt keeps out of it."""
    prompt, denied = asserted(prompt)
    if denied and _is_denied(denied, sentence):
        return True
    things = content(prompt)
    numbers, colours, sides = (_values(prompt, table) for table in (COUNTS, COLOURS, SIDES))
    counts = {value for value in _claims(sentence, COUNTS, things | MORE) if value not in (0, 1)}
    if not any(isinstance(number, int) and number > 1 for number in numbers):
        counts.discard("alone")
    painted = _claims(sentence, COLOURS, things) if colours else set()
    placed = _values(sentence, SIDES) if sides and content(sentence) & (things - ASIDE) else set()
    against = any(
        named.search(prompt) and wrong.search(sentence) and not wrong.search(prompt) for named, wrong in _TIMES
    )
    return bool(counts - numbers or painted - colours or placed - sides or against)


def asserted(prompt: str) -> tuple[str, str]:
    """What a prompt says that is in the picture, and what it says that is not; in English and Chinese."""
    if language(prompt) in FUNCTION_WORDS.keys() - {"en"}:
        return prompt, ""  # "um gato no jardim"
    bare = unquoted(prompt)  # a sign that says "No parking" keeps nothing out
    denied = " ".join(match.group() for match in DENIED.finditer(bare))
    return (DENIED.sub(" ", bare), denied) if denied else (prompt, "")


def _is_denied(denied: str, sentence: str) -> bool:
    """Whether a sentence has a thing, a colour or the time of what is not to be in the picture."""
    times = any(named.search(denied) and named.search(sentence) for named, _ in _TIMES)
    again = content(denied) & content(sentence) or _values(denied, COLOURS) & _values(sentence, COLOURS)
    return times or bool(again)


def _values(text: str, table: Mapping[str, object]) -> set[object]:
    if table is COLOURS:
        text = NO_COLOUR.sub(" ", text)
    return {
        table.get(token, token) for token in tokens(text) if token in table or (table is COUNTS and token.isdigit())
    }


def _claims(sentence: str, table: Mapping[str, object], things: frozenset[str]) -> set[object]:
    """Values of the table that a sentence says of the prompt's things: "two cats", "the cat is black"."""
    words = tokens(NO_COLOUR.sub(" ", sentence) if table is COLOURS else sentence)
    found = set()
    for index, word in enumerate(words):
        if word not in table and not (table is COUNTS and word.isdigit()):
            continue
        after = words[index + 1 : index + 1 + _REACH]
        if any(stem(near) in things for near in (*after, *_subject(words, index))):
            found.add(table.get(word, word))
    return found


def _subject(words: list[str], index: int) -> list[str]:
    """Of what a word near a verb is said: in "the car is parked and its old roof is red" the roof."""
    before = words[max(0, index - _REACH) : index]
    verbs = [place for place, word in enumerate(before) if word in _VERBS]
    if not verbs:
        return []
    end = max(0, index - _REACH) + verbs[-1]
    start = max((place + 1 for place in range(end) if words[place] in _JOINTS), default=0)
    return words[start:end]
