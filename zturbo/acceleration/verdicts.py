"""Why a pipeline does without a pass: a verdict in words, given once."""

from collections.abc import Callable
from weakref import WeakKeyDictionary

from zturbo.engine.pipeline import Pipeline

Verdict = Callable[[Pipeline], str | None]
"""A pipeline -> why it does without a pass, or None."""


def judged_once(judge: Verdict) -> Verdict:
    """A verdict is given once per pipeline: a measurement made twice could contradict itself."""
    given: WeakKeyDictionary[Pipeline, str | None] = WeakKeyDictionary()

    def verdict(pipeline: Pipeline) -> str | None:
        if pipeline not in given:
            given[pipeline] = judge(pipeline)
        return given[pipeline]

    verdict.__doc__ = judge.__doc__
    return verdict
