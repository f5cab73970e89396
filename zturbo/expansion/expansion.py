"""What became of a prompt, whoever expanded it."""

from dataclasses import dataclass, replace
from typing import Self

from zturbo.params import SEED_LIMIT, GenerationParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Expansion:
    """The text that is drawn in place of a prompt, or the prompt itself and why it was left as it is.

    text: what is drawn; where there are `arrangements`, ask `for_seed`. It begins with the prompt, word for word.
    applied: whether it is more than the prompt.
    reason: why not, in words without the prompt; "" when applied.
    seconds: what finding it cost this time.
    cached: whether the text was known already.
    provider: which model was to write it.
    arrangements: sentences that say where a thing is and how large, of which each seed has one; none where the prompt
        speaks of that itself.
    arrangement, at: the one in the text, with the space before it, and the character that it begins at.
    """

    text: str
    applied: bool
    reason: str = ""
    seconds: float = 0.0
    cached: bool = False
    provider: str = ""
    arrangements: tuple[str, ...] = ()
    arrangement: str = ""
    at: int = 0

    @classmethod
    def of(cls, prompt: str, text: str, provider: str) -> Self:
        """The expansion of a prompt by a text that `rules.joined` made of it."""
        applied = text != prompt
        return cls(text=text, applied=applied, reason="" if applied else NOTHING_USABLE, provider=provider)

    def arranged(self, arrangements: tuple[str, ...], at: int) -> Self:
        """The same, where a seed has one of these sentences before the character `at`; see `for_seed`."""
        return replace(self, applied=True, reason="", arrangements=arrangements, at=at)

    def for_seed(self, seed: int) -> Self:
        """What is drawn with a seed: pictures of one prompt differ in composition, and each can be had alone again."""
        if not self.arrangements:
            return self
        chosen = " " + self.arrangements[seed % SEED_LIMIT % len(self.arrangements)]
        text = self.text[: self.at] + chosen + self.text[self.at + len(self.arrangement) :]
        return replace(self, text=text, arrangement=chosen)

    @classmethod
    def left(cls, prompt: str, reason: str, provider: str) -> Self:
        """The prompt, left as it is."""
        return cls(text=prompt, applied=False, reason=reason, provider=provider)

    def applied_to(self, params: GenerationParams) -> GenerationParams:
        """Parameters that draw this text and expand nothing further."""
        return replace(params, prompt=self.text, prompt_expansion=False)

    def as_dict(self) -> dict[str, object]:
        """What callers are told beside the drawn text."""
        return {"applied": self.applied, "cached": self.cached, "reason": self.reason}

    def took(self, seconds: float, cached: bool = False) -> Self:
        """The same with its cost."""
        return replace(self, seconds=seconds, cached=cached)


NOTHING_USABLE = "no detail was written that keeps the prompt as it is"
"""The reason when every sentence of an answer was refused by the rules."""
NOT_HERE = "this server expands no prompts"
