from typing import ClassVar, Literal

from hypothesis.stateful import RuleBasedStateMachine

__all__ = ["HeapMachine", "NextFitHeapMachine", "fuzz"]

class HeapMachine(RuleBasedStateMachine):
    index: ClassVar[Literal["tlsf", "next_fit"]]
    max_size: ClassVar[int]

class NextFitHeapMachine(HeapMachine): ...

def fuzz(steps: int, first_seed: int | None = None, index: Literal["tlsf", "next_fit"] = "tlsf") -> None: ...
