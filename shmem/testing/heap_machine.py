"""Tests of the heap that users can run: a hypothesis state machine, and `python -m shmem fuzz` around it.

Random operations, including invalid ones, are performed on a section in a file and on a plain Python model.  After every
step each live block and array must have the bytes of the model, and `check_heap` must succeed with the model's counts.  After a
failure the shortest failing sequence of operations is printed.
"""

import argparse
import itertools
import math
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, configuration, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

import shmem

__all__ = ["HeapMachine", "NextFitHeapMachine", "fuzz"]

NAMES = ["a", "b", "temperature", "°C", "n" * 300]
DTYPES = ["u1", "<i4", "<f8", "<c16", "S5", [("x", "<f4"), ("n", "<i8")]]
EDGES = [0, 1, 15, 16, 17, 24, 25, 40, 41, 1024, 1025, 1040, 1056, 1057, 4072, 4096, 65536, 65537]
SIZES = st.one_of(st.integers(0, 200), st.integers(0, 2000), st.sampled_from(EDGES), st.integers(0, 400_000))
ALIGNS = st.sampled_from([16, 16, 16, 1, 8, 64, 256, 4096])
GONE = object()  # stands for an object that was freed while it had a name
PICKS = st.integers(0, 1000)  # selects one of several, modulo their number

has_blocks = precondition(lambda machine: machine.live)


class _Block:
    """A block of the model."""

    def __init__(self, handle, content):
        self.handle = handle
        self.offset = handle.offset
        self.content = content


class _Array:
    """An array of the model; it exists as long as it has a name or a view.

    A temporary array without a name is freed with its last view.  Another one the machine frees then.
    """

    def __init__(self, content, name, view, temporary):
        self.content = content
        self.name = name
        self.views = [view]
        self.temporary = temporary


class HeapMachine(RuleBasedStateMachine):
    """Compare a section's heap with a dict: allocate, write, reallocate, free, name, close and reopen; also calls that must raise.

    Attributes
    ----------
    index : str
        The section's index of free blocks.  A class attribute.
    max_size : int
        Maximum size of the section; small, so that it is sometimes full.  A class attribute.

    Examples
    --------
    As a test that pytest or unittest collects:

    >>> from shmem.testing.heap_machine import HeapMachine
    >>> TestHeap = HeapMachine.TestCase

    With a smaller section:

    >>> class SmallHeapMachine(HeapMachine):
    ...     max_size = 1 << 18
    >>> TestSmallHeap = SmallHeapMachine.TestCase
    """

    index = "tlsf"
    max_size = 1 << 20

    def __init__(self):
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(prefix="shmem-fuzz-")
        self.path = Path(self.directory.name) / "section.shm"
        self.shm = shmem.SharedMemory(self.path, max_size=self.max_size, index=self.index)
        self.room = self._room()
        self.numbers = itertools.count()
        self.live = {}  # number -> _Block
        self.arrays = []  # every existing _Array
        self.names = {}  # name -> number of a block, _Array or GONE; in the order of naming
        self.root = None  # number of the root object
        self.freed = []  # handles of freed blocks

    def teardown(self):
        """Close and remove the section."""
        self._drop_views()
        self.shm.close()
        self.directory.cleanup()

    # -- invariants after every step

    @invariant()
    def check(self):
        """Compare everything with the model."""
        self._check_heap()
        self._check_bytes()
        self._check_names()

    def _check_heap(self):
        """Verify that `check_heap` succeeds with the model's counts."""
        report = self.shm.check_heap()
        assert report.blocks == len(self.live) + len(self.arrays)
        assert report.pending_blocks == 0
        assert report.used_bytes >= sum(len(block.content) for block in self.live.values())
        assert self._room() == self.room

    def _check_bytes(self):
        """Verify that every block and every view of an array has the bytes that were written."""
        for block in self.live.values():
            assert block.handle.nbytes == len(block.content)
            assert memoryview(block.handle) == block.content
        for array in self.arrays:
            for view in array.views:
                assert view.tobytes() == array.content.tobytes()

    def _check_names(self):
        """Verify that the directory has the model's names in order, and that each name and the root lead to the right object."""
        assert list(self.shm) == list(self.names)
        for name, what in self.names.items():
            if what is GONE:
                self._refused(shmem.InvalidBlock, self.shm.__getitem__, name)
                continue
            found = self.shm[name]
            if isinstance(what, _Array):
                assert (found.shape, found.dtype) == (what.content.shape, what.content.dtype)
                assert found.tobytes() == what.content.tobytes()
            else:
                assert found == self.live[what].handle
        assert self.shm.root == (None if self.root is None else self.live[self.root].handle)

    # -- blocks

    @rule(sizes=st.lists(SIZES, min_size=1, max_size=12))
    def allocate_many(self, sizes):
        """Allocate and fill several blocks."""
        for size in sizes:
            self._allocate(size, 16, False)

    @rule(size=SIZES, align=ALIGNS, zero=st.booleans())
    def allocate(self, size, align, zero):
        """Allocate and fill a block."""
        self._allocate(size, align, zero)

    @rule(size=st.sampled_from([30_000, 100_000, 300_000]))
    def fill_up(self, size):
        """Allocate until the section is full."""
        while self._allocate(size, 16, False):
            pass

    def _allocate(self, size, align, zero):
        """Allocate and fill a block; return whether there was room."""
        handle = self._try(lambda: self.shm.allocate(size, zero=zero, align=align), size + align)
        if handle is None:
            return False
        assert handle.nbytes == size
        assert handle.offset % align == handle.address % align == 0
        if zero:
            assert memoryview(handle) == bytes(size)
        number = next(self.numbers)
        self.live[number] = _Block(handle, b"")
        self._fill(self.live[number], 0)
        return True

    @has_blocks
    @rule(pick=PICKS)
    def write(self, pick):
        """Overwrite a block with other bytes."""
        self._fill(self.live[self._pick(pick)], 0)

    @has_blocks
    @rule(pick=PICKS, size=SIZES, zero=st.booleans())
    def reallocate(self, pick, size, zero):
        """Change a block's size; the contents are kept up to the smaller size."""
        number = self._pick(pick)
        block = self.live[number]
        handle = self._try(lambda: self.shm.reallocate(block.handle, size, zero=zero), size)
        if handle is None:
            return
        if handle.offset != block.offset:  # it has moved: the root follows it, names do not
            self.freed.append(block.handle)
            self._forget_names(number)
        kept = min(size, len(block.content))
        assert handle.nbytes == size
        assert memoryview(handle)[:kept] == block.content[:kept]
        if zero:
            assert memoryview(handle)[kept:] == bytes(size - kept)
        block.handle, block.offset, block.content = handle, handle.offset, block.content[:kept]
        self._fill(block, kept)

    @has_blocks
    @rule(pick=PICKS, by_offset=st.booleans())
    def free(self, pick, by_offset):
        """Free a block, by handle or by offset."""
        self._free(self._pick(pick), by_offset)

    @precondition(lambda self: len(self.live) >= 8)
    @rule(every=st.integers(2, 4), start=st.integers(0, 3))
    def free_many(self, every, start):
        """Free every n-th block, so that there are holes between blocks."""
        for number in list(self.live)[start::every]:
            self._free(number, False)

    def _free(self, number, by_offset):
        block = self.live.pop(number)
        self.shm.free(block.offset if by_offset else block.handle)
        self.freed.append(block.handle)
        self._forget_names(number)
        if self.root == number:  # freeing the root unsets it
            self.root = None

    @has_blocks
    @rule(pick=PICKS)
    def set_root(self, pick):
        """Make a block the root object."""
        self.root = self._pick(pick)
        self.shm.root = self.live[self.root].handle

    # -- arrays and names

    @rule(shape=st.lists(st.integers(0, 40), max_size=3), dtype=st.sampled_from(DTYPES), order=st.sampled_from("CF"),
          name=st.sampled_from([None, None, *NAMES]), temporary=st.booleans())  # fmt: skip
    def make_array(self, shape, dtype, order, name, temporary):
        """Make an array, named or not."""
        dtype = np.dtype(dtype)
        n_bytes = math.prod(shape) * dtype.itemsize
        content = np.ndarray(tuple(shape), dtype, random.Random(next(self.numbers)).randbytes(n_bytes), order=order)
        if name in self.names:
            self._refused((shmem.NameExists, shmem.SectionFull), self.shm.empty, shape, dtype, order, name=name)
            return
        temporary = temporary and name is None
        view = self._try(lambda: self.shm.empty(shape, dtype, order, name=name, temporary=temporary), n_bytes + 1000)
        if view is None:
            return
        view[...] = content
        array = _Array(view.view(np.ndarray).copy(order="K"), name, view, temporary)  # as numpy copies it, padding included
        assert view.ctypes.data % 64 == 0
        self.arrays.append(array)
        if name is not None:
            self.names[name] = array

    @has_blocks
    @rule(pick=PICKS, name=st.sampled_from(NAMES))
    def name_block(self, pick, name):
        """Name a block."""
        number = self._pick(pick)
        if name in self.names:
            if self.names[name] != number:
                self._refused((shmem.NameExists, shmem.SectionFull), self.shm.__setitem__, name, self.live[number].handle)
        elif self._try(lambda: self._name(name, self.live[number].handle), 1000):
            self.names[name] = number

    @rule(pick=PICKS, name=st.sampled_from(NAMES))
    def name_array(self, pick, name):
        """Name an array that has no name."""
        found = [array for array in self.arrays if array.name is None and array.views]
        if found and name not in self.names:
            array = found[pick % len(found)]
            if self._try(lambda: self._name(name, array.views[0]), 1000):
                array.name, array.temporary = name, False
                self.names[name] = array

    @rule(name=st.sampled_from(NAMES), n_elements=st.integers(0, 200))
    def replace(self, name, n_elements):
        """Replace the value of a name by a new array; the old value goes as with a name that is deleted."""
        content = np.full(n_elements, next(self.numbers))
        if self._try(lambda: [self.shm.replace(name, content)], content.nbytes + 1000):
            if name in self.names:
                self._forget_name(name)
            self.names[name] = _Array(content, name, self.shm[name], False)
            self.arrays.append(self.names[name])

    @has_blocks
    @rule(pick=PICKS, name=st.sampled_from(NAMES))
    def replace_by_block(self, pick, name):
        """Replace the value of a name by a block; if it was that already, the name keeps its place."""
        number = self._pick(pick)
        if self._try(lambda: [self.shm.replace(name, self.live[number].handle)], 1000) and self.names.get(name) != number:
            if name in self.names:
                self._forget_name(name)
            self.names[name] = number

    @rule(source=st.sampled_from(NAMES), dest=st.sampled_from(NAMES))
    def rename(self, source, dest):
        """Give an object another name."""
        if source not in self.names:
            self._refused((KeyError, shmem.SectionFull), self.shm.move, source, dest)
        elif source != dest and dest in self.names:
            self._refused((shmem.NameExists, shmem.SectionFull), self.shm.move, source, dest)
        elif self._try(lambda: [self.shm.move(source, dest)], 1000) and source != dest:
            what = self.names[dest] = self.names.pop(source)
            if isinstance(what, _Array):
                what.name = dest

    @rule(name=st.sampled_from(NAMES))
    def look(self, name):
        """Make another view of a named array."""
        if isinstance(self.names.get(name), _Array):
            self.names[name].views.append(self.shm[name])

    @rule(name=st.sampled_from(NAMES))
    def delete_name(self, name):
        """Remove a name: a block is freed with its last name, unless it is the root; an array stays while there is a view."""
        if name not in self.names:
            self._refused(KeyError, self.shm.__delitem__, name)
            return
        del self.shm[name]
        self._forget_name(name)

    def _forget_name(self, name):
        """Note that a name does not lead to its object any more."""
        what = self.names.pop(name)
        if isinstance(what, _Array):
            what.name, what.temporary = None, True
            self._forget_unseen()
        elif what is not GONE and what != self.root and what not in self.names.values():
            self.freed.append(self.live.pop(what).handle)

    @precondition(lambda self: self.arrays)
    @rule(pick=PICKS)
    def drop_view(self, pick):
        """Drop a view: with the last one, a temporary array, or one whose name was removed, is freed."""
        array = self.arrays[pick % len(self.arrays)]
        if array.views:
            if len(array.views) == 1 and array.name is None and not array.temporary:
                self.shm.free(array.views[0])  # without a view it could no longer be freed
            array.views.pop()
            self._forget_unseen()

    @precondition(lambda self: self.arrays)
    @rule(pick=PICKS)
    def free_array(self, pick):
        """Free an array under its views and its name."""
        array = self.arrays[pick % len(self.arrays)]
        if array.views:
            self.shm.free(array.views[0])
            self._refused(shmem.InvalidBlock, self.shm.free, array.views[0])
            array.views.clear()
            self.arrays.remove(array)
            self._forget_names(array)

    # -- the section

    @rule(larger=st.sampled_from([0, 0, 0, 1 << 16]))
    def reopen(self, larger):
        """Close the section as its last process, and open it again."""
        self._drop_views()
        for block in self.live.values():
            block.handle = None
        self.freed.clear()
        self.shm.close()
        size = self.path.stat().st_size
        assert size <= self.max_size
        self.max_size += larger
        self.shm = shmem.SharedMemory(self.path, max_size=self.max_size if larger else None)
        assert self.shm.index == self.index
        self.room = self._room()
        for block in self.live.values():
            block.handle = self.shm.block(block.offset)

    @rule()
    def trim(self):
        """Trim the section: return the memory above the last block."""
        self.shm.trim()

    # -- calls that must raise, and change nothing

    @precondition(lambda self: self.freed)
    @rule(pick=PICKS)
    def use_freed(self, pick):
        """Free, reallocate or access a freed block, even if its memory is used again."""
        handle = self.freed[pick % len(self.freed)]
        self._refused(shmem.InvalidBlock, self.shm.free, handle)
        self._refused(shmem.InvalidBlock, self.shm.reallocate, handle, 10)
        self._refused(shmem.InvalidBlock, memoryview, handle)

    @has_blocks
    @rule(pick=PICKS, inside=st.integers(1, 1000))
    def use_inner_offset(self, pick, inside):
        """Free an offset inside a block, or one that is not a multiple of 16."""
        block = self.live[self._pick(pick)]
        if inside < len(block.content):
            self._refused(shmem.InvalidBlock, self.shm.free, block.offset + inside)
            self._refused(shmem.InvalidBlock, self.shm.block, block.offset + inside)

    @rule(offset=st.sampled_from([-16, 0, 8, 16, 4096, 1 << 50, 1 << 100, None]))
    def use_foreign_offset(self, offset):
        """Free an offset before or after the heap."""
        if offset is None:
            offset = self.shm.max_size - 16
        self._refused(shmem.InvalidBlock, self.shm.free, offset)
        self._refused(shmem.InvalidBlock, self.shm.block, offset)

    @rule()
    def use_foreign_block(self):
        """Free a block of another section, and an object outside of any section."""
        with shmem.SharedMemory(max_size=1 << 20) as other:
            block = other.allocate(100)
            self._refused(shmem.InvalidBlock, self.shm.free, block)
            self._refused(shmem.InvalidBlock, self.shm.reallocate, block, 10)
            other.free(block)
        self._refused(shmem.InvalidBlock, self.shm.free, np.zeros(3))

    @has_blocks
    @rule(pick=PICKS, size=st.sampled_from([-1, 1 << 30, 1 << 62, (1 << 64) - 1, 1 << 64, 1 << 200]))
    def ask_too_much(self, pick, size):
        """Request impossible sizes."""
        error = ValueError if size < 0 else shmem.SectionFull
        self._refused(error, self.shm.allocate, size)
        self._refused(error, self.shm.reallocate, self.live[self._pick(pick)].handle, size)

    # -- helpers

    def _pick(self, pick):
        """Return the number of one of the blocks."""
        return list(self.live)[pick % len(self.live)]

    def _room(self):
        stats = self.shm.stats()
        return stats.used + stats.free

    def _fill(self, block, start):
        """Write fresh random bytes from `start` on, so that no two contents are alike."""
        fresh = random.Random(next(self.numbers)).randbytes(block.handle.nbytes - start)
        memoryview(block.handle)[start:] = fresh
        block.content = block.content[:start] + fresh

    def _try(self, operation, n_bytes):
        """Return the result of an operation; None if it reports a full section and that is plausible."""
        try:
            return operation()
        except shmem.SectionFull:
            # computing largest_hole has emptied the cache; an index may skip a hole that fits only narrowly
            assert self.shm.stats().largest_hole < 1.1 * n_bytes + 200
            return None

    def _refused(self, error, operation, *arguments, **keywords):
        try:
            operation(*arguments, **keywords)
        except error:
            return
        raise AssertionError(f"{operation.__name__}{arguments} did not raise")

    def _name(self, name, what):
        self.shm[name] = what
        return True

    def _forget_names(self, what):
        """Note that an object was freed while it had names."""
        for name in self.names:
            if self.names[name] == what:
                self.names[name] = GONE

    def _forget_unseen(self):
        self.arrays = [array for array in self.arrays if array.name is not None or array.views]

    def _drop_views(self):
        """Drop the views of every array; arrays without a name are freed, by themselves or by the machine."""
        for array in self.arrays:
            if array.name is None and not array.temporary:
                self.shm.free(array.views[0])
            array.views.clear()
        self._forget_unseen()


class NextFitHeapMachine(HeapMachine):
    """`HeapMachine` for a section whose free blocks are found by next fit."""

    index = "next_fit"


# -- the command ------------------------------------------------------------------------------------------------

STEPS_PER_RUN = 100


class _Progress:
    """Count steps, and print their number from time to time."""

    def __init__(self, wanted):
        self.wanted = wanted
        self.done = 0
        self.said = time.monotonic()

    def count(self):
        self.done += 1
        if time.monotonic() - self.said > 1:
            self.said = time.monotonic()
            searching = self.done > self.wanted
            print("failed; looking for the shortest failing sequence" if searching else f"{self.done:,} of {self.wanted:,} steps",
                  file=sys.stderr, flush=True)  # fmt: skip


def _counting(machine, progress):
    """Return a subclass of the machine that counts its steps."""

    class Counting(machine):
        has_begun = False

        @invariant()
        def check(self):
            super().check()
            if self.has_begun:  # the first check comes before any step
                progress.count()
            self.has_begun = True

    Counting.__name__ = Counting.__qualname__ = machine.__name__
    return Counting


def fuzz(steps, first_seed=None, index="tlsf"):
    """Run a `HeapMachine` for a number of steps.

    Parameters
    ----------
    steps : int
        The minimum total number of operations.
    first_seed : int, optional
        The seed; the same seed repeats the same operations.
    index : {"tlsf", "next_fit"}
        The index of free blocks.

    Raises
    ------
    Exception
        The exception of the shortest failing sequence; its notes list the sequence.
    """
    machine = {"tlsf": HeapMachine, "next_fit": NextFitHeapMachine}[index]
    progress = _Progress(steps)
    with tempfile.TemporaryDirectory(prefix="shmem-fuzz-") as home:
        configuration.set_hypothesis_home_dir(home)  # otherwise hypothesis leaves files in the current folder
        try:
            for number in itertools.count(random.getrandbits(32) if first_seed is None else first_seed):
                if progress.done >= steps:
                    break
                left = steps - progress.done
                counting = seed(number)(_counting(machine, progress))
                run_state_machine_as_test(counting, settings=settings(
                    max_examples=math.ceil(left / STEPS_PER_RUN), stateful_step_count=min(left, STEPS_PER_RUN), deadline=None,
                    database=None, report_multiple_bugs=False, suppress_health_check=list(HealthCheck)))  # fmt: skip
        finally:
            configuration.set_hypothesis_home_dir(None)
    print(f"{index}: {progress.done:,} steps, no failures", file=sys.stderr)


def _positive(text):
    number = int(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"must be positive, got {number}")
    return number


def command_arguments(parser):
    """Declare the arguments of `python -m shmem fuzz`."""
    parser.add_argument("--steps", type=_positive, default=10_000, metavar="N", help="total number of operations (default: 10,000)")
    parser.add_argument("--seed", type=int, metavar="S", help="seed of the random operations; the same seed repeats them")
    parser.add_argument("--index", choices=("tlsf", "next_fit"), help="index of free blocks (default: half of the steps with each)")


def command(options):
    """Run `python -m shmem fuzz` and return the exit status."""
    indexes = [options.index] if options.index else ["tlsf", "next_fit"]
    number = random.getrandbits(32) if options.seed is None else options.seed
    for index in indexes:
        try:
            fuzz(math.ceil(options.steps / len(indexes)), number, index)
        except KeyboardInterrupt:
            print("fuzz: interrupted", file=sys.stderr)
            return 130
        except Exception as error:
            traceback.print_exception(error)
            print(f"fuzz: reproduce with --index {index} --seed {number} --steps {options.steps}", file=sys.stderr)
            return 1
    return 0
