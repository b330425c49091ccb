"""What sections and reports show of themselves: one line of text, and HTML in notebooks.

It opens and pins no object, and waits for other processes a slice at most.
"""

import dataclasses
import itertools
import reprlib

from shmem._base.errors import ShmemError
from shmem._objects import glances, tables
from shmem._objects.tree import Tree

NAMES_SHOWN = 8
ATTRIBUTES_SHOWN = 50
NAMES_SORTED = 1000  # of more names those that are shown are not the oldest ones
_PROCESSES = ("lock_holder",)  # of fields: the number of a process, which is no quantity


def section_text(memory):
    """Return what `repr` returns for a section: its state, and the first names."""
    try:
        names = _names(glances.at_names(memory, "", NAMES_SORTED))
        return f"<shmem.SharedMemory {memory.name!r} {_state(memory)}{names}>"
    except ShmemError:  # it is closed, perhaps meanwhile, or the process exits
        return f"<shmem.SharedMemory {memory.name!r} closed>"


def _state(memory):
    return f"{memory.mode}, {memory.max_size:,} bytes"


def _names(glance):
    if not glance.n_names:
        return ""
    listed = [reprlib.repr(name) for name in glance.names[:NAMES_SHOWN]] + ["..."] * (glance.n_names > NAMES_SHOWN)
    return f", {glance.n_names:,} name{'s' if glance.n_names > 1 else ''}: {', '.join(listed)}"


def section_html(memory):
    """Return a table of the first named objects: name, kind, shape and dtype of arrays, and bytes; of groups the number of names."""
    try:
        return Tree(memory, level=1).html(f"<b>shmem.SharedMemory</b> {tables.escape(repr(memory.name))} {_state(memory)}")
    except ShmemError:
        return f"<div><b>shmem.SharedMemory</b> {tables.escape(repr(memory.name))} closed</div>"


def group_html(memory, path):
    """Return the same table for a group."""
    head = f"<b>shmem.Group</b> {tables.escape(repr(path))}"
    try:
        return Tree(memory, path, level=1).html(head)
    except (ShmemError, KeyError) as error:
        return f"<div>{head} {type(error).__name__}</div>"


def attributes_html(read, of):
    """Return a table of the first attributes in the dict that `read()` returns, which is None if another process keeps the heap."""
    head = f"<b>shmem.Attributes</b> {tables.escape(of)}"
    try:
        found = read()
    except (ShmemError, KeyError) as error:
        return f"<div>{head} {type(error).__name__}</div>"
    if found is None:
        return f"<div>{head} not read: another process keeps the heap</div>"
    rows = [(name, _shortened(value)) for name, value in itertools.islice(found.items(), ATTRIBUTES_SHOWN)]
    more = f"<div>{len(found):,} attributes, of which {len(rows)} are shown</div>" if len(found) > len(rows) else ""
    return f"<div>{head}{tables.table(('name', 'value'), rows) if rows else ''}{more}</div>"


def _shortened(value):
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def record_html(record):
    """Return a table of the fields of a dataclass."""
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    rows = [(name, (value,) if name in _PROCESSES else value) for name, value in values.items()]
    return f"<div><b>shmem.{type(record).__name__}</b>{tables.table((), rows)}</div>"
