"""The host runs one step ahead of its device, and no further."""

import torch

from zturbo.engine.pace import Pace


def test_each_step_waits_for_the_one_before() -> None:
    launched, waited = list[int](), list[int]()

    class Step:
        def __init__(self) -> None:
            self.number = len(launched)
            launched.append(self.number)

        def synchronize(self) -> None:
            waited.append(self.number)

    pace = Pace(Step)
    for number in range(4):
        pace.keep()
        assert launched == list(range(number + 1))
        assert waited == list(range(number))


def test_a_processor_that_computes_itself_waits_for_nothing() -> None:
    Pace.on(torch.device("cpu")).keep()
