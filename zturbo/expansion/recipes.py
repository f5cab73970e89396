"""How a language model is asked for details: by a system instruction, or in the words that it was trained with.

`Instructed` is for models that follow instructions, such as Qwen3-4B and what answers at a chat endpoint. `Trained` is
for a small model that learnt one way to describe pictures; its folder says which, in `expansion.json`.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from zturbo.errors import ConfigError
from zturbo.expansion.rules import asserted, closed, harmless
from zturbo.expansion.words import language

_INSTRUCTIONS = Path(__file__).parent / "instructions"
TRAINED_FILE = "expansion.json"
VERSION_DIGITS = 8
_PLACED = re.compile(
    r"\b(?:in|at|inside|on|under|near|above|over|behind|through|by|beside|beneath|within|among|between|against|along"
    r"|around|atop|below|outside)\b"
)


class Recipe(Protocol):
    """One way to ask."""

    @property
    def version(self) -> str:
        """Changes whenever the same model could answer otherwise."""

    @property
    def candidates(self) -> int:
        """Answers to choose from."""

    @property
    def longest(self) -> int:
        """Tokens of an answer, at most."""

    def turns(self, prompt: str) -> tuple[str, str]:
        """What the system says ("" for nothing) and what the user says."""

    def opening(self, prompt: str) -> str:
        """The prompt as the answer begins with it; the model goes on from there."""

    def speaks(self, prompt: str, /) -> bool:
        """Whether the model knows the prompt's language."""

    def allows(self, prompt: str, sentence: str, /) -> bool:
        """Whether a sentence, beside what the rules say, may follow the prompt."""

    @property
    def compositions(self) -> tuple[str, ...]:
        """Sentences on where a single thing is; where the model writes one, the picture's seed decides which."""


@dataclass(frozen=True)
class Instructed:
    """A system instruction of our own, in English or Chinese.

    words: what the instruction asks for at most; a streamed encoder, which is slow per token, is asked for fewer.
    """

    words: int = 110
    candidates: int = 1
    compositions: tuple[str, ...] = ()

    @property
    def longest(self) -> int:
        """A token and a half for each word: English takes 1.3, Chinese less."""
        return self.words * 3 // 2

    @cached_property
    def version(self) -> str:
        texts = [instruction(name, self.words) for name in ("en", "zh")]
        return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:VERSION_DIGITS]

    def turns(self, prompt: str) -> tuple[str, str]:
        name = "zh" if language(prompt) == "zh" else "en"
        return instruction(name, self.words), harmless(prompt.strip())

    def opening(self, prompt: str) -> str:
        """The prompt itself: the answer can only go on from it."""
        return harmless(closed(prompt))

    def speaks(self, _prompt: str, /) -> bool:
        return True

    def allows(self, _prompt: str, _sentence: str, /) -> bool:
        return True


def instruction(name: str, words: int) -> str:
    """The system instruction `en` or `zh` for answers of so many words."""
    return (_INSTRUCTIONS / f"{name}.txt").read_text(encoding="utf-8").strip().replace("{words}", str(words))


Topic = Mapping[str, Mapping[str, list[str]]]


@dataclass(frozen=True)
class Trained:
    """The one form that a small model was trained to answer in, and the facts it can state.

    instruction: what the user's turn begins with.
    language: the only one it knows.
    topics: topic -> fact -> the phrases that a prompt says it with ("said"), and those the model writes ("written").
        A topic named in `unsaid` keeps to those facts where the prompt says nothing of it.
    strangers: topic -> words of prompts that say something of it for which the model has no word ("photo"): nothing of
        that topic is written then.
    understood: phrases of prompts that say nothing of the place ("on the left").
    joints: what stands between those phrases in its sentences ("the scene is", "in"); a sentence of anything else is
        a slip.
    compositions: sentences that say where a single thing is and how large. The model writes one where it takes the
        prompt for one of a single thing; which one, the picture's seed decides.
    """

    instruction: str
    language: str
    topics: Mapping[str, Topic]
    unsaid: Mapping[str, list[str]]
    strangers: Mapping[str, list[str]]
    understood: tuple[str, ...]
    joints: tuple[str, ...]
    compositions: tuple[str, ...]
    version: str
    candidates: int = 3
    longest: int = 72

    @classmethod
    def open(cls, path: Path) -> "Trained":
        """Read an `expansion.json`.

        Raises:
            ConfigError: it is not such a file.
        """
        try:
            data = path.read_bytes()
            members = json.loads(data)
            return cls(
                instruction=str(members["instruction"]),
                language=str(members["language"]),
                topics={
                    str(topic): {str(fact): {"said": list(one["said"]), "written": list(one["written"])}
                                 for fact, one in facts.items()}
                    for topic, facts in members["topics"].items()
                },
                unsaid={str(topic): list(facts) for topic, facts in members["unsaid"].items()},
                strangers={str(topic): list(words) for topic, words in members["strangers"].items()},
                understood=tuple(map(str, members["understood"])),
                joints=tuple(map(str, members["joints"])),
                compositions=tuple(map(str, members["compositions"])),
                version=hashlib.sha256(data).hexdigest()[:VERSION_DIGITS],
            )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} does not say how its model expands prompts: {error!r}") from error

    def turns(self, prompt: str) -> tuple[str, str]:
        return "", self.instruction + harmless(prompt.strip())

    def opening(self, prompt: str) -> str:
        start = closed(prompt)
        return harmless(start[0].upper() + start[1:])

    def speaks(self, prompt: str, /) -> bool:
        return language(prompt) in ("", self.language)

    def allows(self, prompt: str, sentence: str, /) -> bool:
        """It states facts and says nothing else, and none that the prompt states otherwise; the rest is guessed."""
        stated = [(topic, fact) for topic, facts in self.topics.items() for fact, phrases in facts.items()
                  if _has_any(sentence, phrases["written"])]  # fmt: skip
        known = bool(stated) and not re.search(r"\w", self._phrase.sub(" ", sentence))
        return known and all(self._agrees(prompt, topic, fact) for topic, fact in stated)

    @cached_property
    def _phrase(self) -> re.Pattern[str]:
        """Any phrase that the model writes, the longest first."""
        written = {one for facts in self.topics.values() for phrases in facts.values() for one in phrases["written"]}
        phrases = sorted({*written, *self.joints}, key=len, reverse=True)
        return re.compile("|".join(rf"\b{re.escape(phrase)}\b" for phrase in phrases), re.IGNORECASE)

    @cached_property
    def _placeless(self) -> re.Pattern[str]:
        """Any phrase of `understood`, the longest first; "in the middle of Paris" does speak of a place."""
        phrases = "|".join(map(re.escape, sorted(self.understood, key=len, reverse=True)))
        return re.compile(rf"\b(?>{phrases})\b(?!\s+of\b(?!\s+the\s+(?:picture|image)\b))")

    def _agrees(self, prompt: str, topic: str, fact: str) -> bool:
        prompt, denied = asserted(prompt)
        text = prompt if topic in self.unsaid else self._about_the_place(prompt)
        said = [name for name, phrases in self.topics[topic].items() if _has_any(text, phrases["said"])]
        if fact not in said and _has_any(denied, self.topics[topic][fact]["said"]):
            return False  # "not at night"
        if said:
            return fact in said
        if _has_any(prompt, self.strangers.get(topic, [])):
            return False
        if topic in self.unsaid:
            return fact in self.unsaid[topic]
        return not _PLACED.search(text)  # "in a cafe" places it where the model has no word for

    def _about_the_place(self, prompt: str) -> str:
        """What is left of a prompt without the phrases that say nothing of the place ("under the moon")."""
        return self._placeless.sub(" ", prompt.lower())


def _has_any(text: str, phrases: list[str]) -> bool:
    return any(re.search(rf"\b{re.escape(phrase)}\b", text, re.IGNORECASE) for phrase in phrases)
