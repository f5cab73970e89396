"""A bounded memory: what was not asked for the longest time is forgotten first."""

from collections import OrderedDict
from typing import Generic, TypeVar

Value = TypeVar("Value")
EXPANSIONS_KEPT = 4096


class LeastRecent(Generic[Value]):
    """Prompts and what is known of them; not safe for several threads at once.

    Args:
        limit: how many are kept.
    """

    def __init__(self, limit: int = EXPANSIONS_KEPT) -> None:
        self.limit = limit
        self._values: OrderedDict[str, Value] = OrderedDict()

    def get(self, key: str) -> Value | None:
        """What is known, or None."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def put(self, key: str, value: Value) -> None:
        """Remember; the least recent one goes where there is no room."""
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self.limit:
            self._values.popitem(last=False)

    def __len__(self) -> int:
        return len(self._values)
