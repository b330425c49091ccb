"""The delays of `make chaos` are in its own build only."""

from shmem._base.debug import DELAYED_ONE_IN


def test_atomic_operations_are_not_delayed():
    assert DELAYED_ONE_IN == 0
