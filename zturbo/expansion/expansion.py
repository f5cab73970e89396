"""What became of a prompt, whoever expanded it."""

from dataclasses import dataclass, replace
from typing import Self

from zturbo.params import GenerationParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Expansion:
    """The text that is drawn in place of a prompt, or the prompt itself and why it was left as it is.

    text: what is drawn. It begins with the prompt, word for word.
    applied: whether it is more than the prompt.
    reason: why not, in words without the prompt; "" when applied.
    seconds: what finding it cost this time.
    cached: whether the text was known already.
    provider: which model was to write it.
    """

    text: str
    applied: bool
    reason: str = ""
    seconds: float = 0.0
    cached: bool = False
    provider: str = ""

    @classmethod
    def of(cls, prompt: str, text: str, provider: str) -> Self:
        """The expansion of a prompt by a text that `rules.joined` made of it."""
        applied = text != prompt
        return cls(text=text, applied=applied, reason="" if applied else NOTHING_USABLE, provider=provider)

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
