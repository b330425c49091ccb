"""Tests of the heap that you can run yourself: a hypothesis state machine, and ``python -m shmem fuzz`` around it.

`HeapMachine`, `NextFitHeapMachine` and `fuzz` need hypothesis, which is imported when one of them is first used.
"""

__all__ = ["HeapMachine", "NextFitHeapMachine", "fuzz"]


def __getattr__(name):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from shmem.testing import heap_machine

    return getattr(heap_machine, name)


def __dir__():
    return sorted({*globals(), *__all__})
