"""Arguments that are easily wrong: names, sizes, attributes, and objects outside of every section."""

import fractions
import re
import unittest.mock
from decimal import Decimal

import numpy as np
import pytest

import shmem
from shmem._cli import fifo, tstshmem
from shmem._cli.options import size_option

# -- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [[1, 2, 3], b"bytes", np.zeros(3), memoryview(b"abc"), 1.5])
@pytest.mark.parametrize("name", [None, 3, b"x", ("x",)])
def test_a_name_is_a_string(shm, name, value):
    """None would make an array that no name leads to."""
    before = shm.stats().blocks
    with pytest.raises(TypeError, match="a name must be a string"):
        shm[name] = value
    with pytest.raises(TypeError, match="a name must be a string"):
        shm[name] = shm.root
    assert shm.stats().blocks == before
    assert list(shm) == []


def test_a_name_may_be_a_subclass_of_str(shm):
    shm[np.str_("x")] = [1]
    assert shm["x"].tolist() == [1]


# -- attributes ---------------------------------------------------------------------------------------------------


def test_unknown_attributes_are_refused(shm):
    """A misspelled attribute would be an assignment without effect on the section."""
    objects = [shm, shm.zeros(3), shm.allocate(5), shm.queue(1, "i8"), shm.mutex(), shm.semaphore(), shm.event()]
    for obj in objects:
        with pytest.raises(AttributeError):
            obj.rot = 5
    with pytest.raises(AttributeError):
        shm.zeros(3)[1:].rot = 5


# -- find_storage -------------------------------------------------------------------------------------------------


def test_find_storage_of_objects_outside(shm):
    released = memoryview(b"abc")
    released.release()
    strided = np.arange(10)
    times = np.zeros(3, "M8[us]")
    objects = ["text", "", None, 1.5, object(), [1], {}, shm, str, released, strided[::2], strided[::-1], times, times[0], np.float64(1)]
    objects += [np.array(["a", None], object), np.zeros(0), np.zeros((2, 0, 3)), -5, 0, True, shmem.Semaphore(), unittest.mock.Mock()]
    for obj in objects:
        assert shmem.find_storage(obj) is None, obj


def test_find_storage_of_views(shm):
    array = shm.zeros((4, 4), "M8[us]")
    for view in (array[::2], array[::-1], array.T, np.asarray(array)[1:], array.view("i8"), memoryview(array.view("i8"))):
        assert shmem.find_storage(view) is shm
    assert shmem.find_storage(shm.zeros(3, "i4,f8")[1]) is shm


# -- sizes --------------------------------------------------------------------------------------------------------

SIZES = {
    "65536": 1 << 16,
    "65536B": 1 << 16,
    "64K": 1 << 16,
    "64KiB": 1 << 16,
    "64k": 1 << 16,
    "64 kib": 1 << 16,
    "1M": 1 << 20,
    " 1MiB ": 1 << 20,
    "2G": 2 << 30,
    "2GiB": 2 << 30,
    "1TiB": 1 << 40,
}


@pytest.mark.parametrize("text", SIZES)
def test_sizes_as_text(text):
    with shmem.SharedMemory(max_size=text) as section:
        assert section.max_size == SIZES[text]
    assert size_option(text) == SIZES[text]


def test_later_opener_asks_by_text(section_file):
    """The warning compares the size that was asked for with the one in force."""
    with shmem.SharedMemory(section_file, max_size="1M"):
        shmem.SharedMemory(section_file, max_size="1MiB").close()
        with pytest.warns(shmem.LimitWarning, match="max_size is 1,048,576, not 2,097,152"):
            shmem.SharedMemory(section_file, max_size="2M").close()


def test_sizes_as_text_everywhere(shm):
    block = shm.allocate("3K", align="64")
    assert block.nbytes == 3072
    assert shm.reallocate(block, "5KiB").nbytes == 5120
    queue = shm.queue(2, bytes, max_bytes="1K")
    queue.put(b"x" * 1024)
    with pytest.raises(ValueError, match="1,024"):
        queue.put(b"x" * 1025)
    with pytest.raises(shmem.SectionFull):
        shm.allocate("900T")


@pytest.mark.parametrize("text", ["", "M", "64MB", "1.5G", "-1M", "0x10", "1_000", "64 M B", "\N{ARABIC-INDIC DIGIT ONE}", "9" * 40])
def test_sizes_that_are_not_understood(shm, text):
    with pytest.raises(ValueError, match=re.escape(f'such as "64M" or "1GiB" (powers of 1024), got {text!r}')):
        shmem.SharedMemory(max_size=text)
    with pytest.raises(ValueError, match=re.escape("size must be a number of bytes, or a text such as")):
        shm.allocate(text)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (1e9, "got float 1000000000.0; write 1000000000"),
        (1.5e6 + 0.25, "got float 1500000.25; write 1500001"),
        (np.float32(65536), "write 65536"),
        (fractions.Fraction(1 << 17, 2), "write 65536"),
        (float("inf"), "got float"),
        (float("nan"), "got float"),
        (Decimal(5), "got Decimal"),
        (b"64M", "got bytes"),
        ([1], "got list"),
    ],
)
def test_sizes_of_other_types(shm, value, hint):
    """The message states what to write instead of a float."""
    for call in (lambda: shmem.SharedMemory(max_size=value), lambda: shm.allocate(value), lambda: shm.queue(1, bytes, max_bytes=value)):
        with pytest.raises(TypeError, match=r'must be an int, or a text such as "64M" or "1GiB", .*' + re.escape(hint)):
            call()
    with pytest.raises(TypeError, match="align must be an int"):
        shm.allocate(5, align=value)


@pytest.mark.parametrize(("command", "arguments"), [(fifo, ["check"]), (tstshmem, [])])
def test_sizes_of_commands(command, arguments):
    import argparse

    parser = argparse.ArgumentParser(exit_on_error=False)
    command.command_arguments(parser)
    assert parser.parse_args([*arguments, "--size", "64M"]).size == 64 << 20
    assert parser.parse_args([*arguments, "--size", "1GiB"]).size == 1 << 30
    with pytest.raises(argparse.ArgumentError, match='such as "64M"'):
        parser.parse_args([*arguments, "--size", "64MB"])
