"""What sections and reports show of themselves: one line of text, and HTML in notebooks.

It opens and pins no object, and waits for other processes a slice at most.
"""

import dataclasses
import html
import reprlib

from shmem._base.errors import ShmemError
from shmem._objects import directory, growing

NAMES_SHOWN = 8
ATTRIBUTES_SHOWN = 50
NAMES_SORTED = 1000  # of more names those that are shown are not the oldest ones
_PROCESSES = ("lock_holder",)  # of fields: the number of a process, which is no quantity


def section_text(memory):
    """Return what `repr` returns for a section: its state, and the first names."""
    try:
        return f"<shmem.SharedMemory {memory.name!r} {_state(memory)}{_names(*directory.glance(memory, NAMES_SORTED))}>"
    except ShmemError:  # it is closed, perhaps meanwhile, or the process exits
        return f"<shmem.SharedMemory {memory.name!r} closed>"


def _state(memory):
    return f"{memory.mode}, {memory.max_size:,} bytes"


def _names(n_names, names):
    if not n_names:
        return ""
    listed = [reprlib.repr(name) for name in names[:NAMES_SHOWN]] + ["..."] * (n_names > NAMES_SHOWN)
    return f", {n_names:,} name{'s' if n_names > 1 else ''}: {', '.join(listed)}"


def section_html(memory):
    """Return a table of the first named objects: name, kind, shape and dtype of arrays, and bytes."""
    try:
        n_names, objects = directory.glance(memory, NAMES_SORTED)[0], directory.glance_at_objects(memory)
        rows = [(name, kind, *_array_facts(memory, name, kind), n_bytes) for name, kind, n_bytes in objects]
        head = f"{html.escape(repr(memory.name))} {_state(memory)}"
    except ShmemError:
        return f"<div><b>shmem.SharedMemory</b> {html.escape(repr(memory.name))} closed</div>"
    more = f"<div>{n_names:,} names, of which {len(rows)} are shown</div>" if n_names and n_names > len(rows) else ""
    table = _table(("name", "kind", "shape", "dtype", "bytes"), rows) if rows else ""
    return f"<div><b>shmem.SharedMemory</b> {head}{table}{more}</div>"


def _array_facts(memory, name, kind):
    """Return shape and dtype of an array as texts, which are empty for other objects, and for one that is damaged or gone."""
    try:
        facts = growing.look(memory, name, False) if kind == "array" else None
    except (ShmemError, KeyError):
        return "", ""
    return ("", "") if facts is None or facts.shape is None else (str(facts.shape), f"{facts.dtype!s:.60}")


def attributes_html(attributes, of):
    """Return a table of the first attributes: name and value."""
    head = f"<b>shmem.Attributes</b> {html.escape(of)}"
    try:
        found = list(attributes.items())
    except (ShmemError, KeyError) as error:
        return f"<div>{head} {type(error).__name__}</div>"
    rows = [(name, _shortened(value)) for name, value in found[:ATTRIBUTES_SHOWN]]
    more = f"<div>{len(found):,} attributes, of which {len(rows)} are shown</div>" if len(found) > len(rows) else ""
    return f"<div>{head}{_table(('name', 'value'), rows) if rows else ''}{more}</div>"


def _shortened(value):
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def record_html(record):
    """Return a table of the fields of a dataclass."""
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    rows = [(name, (value,) if name in _PROCESSES else value) for name, value in values.items()]
    return f"<div><b>shmem.{type(record).__name__}</b>{_table((), rows)}</div>"


def _table(titles, rows):
    head = f"<thead><tr>{''.join(map(_title, titles))}</tr></thead>" if titles else ""
    body = "".join(f"<tr>{_title(name)}{''.join(map(_cell, cells))}</tr>" for name, *cells in rows)
    return f"<table>{head}<tbody>{body}</tbody></table>"


def _title(text):
    return f'<th style="text-align: left">{html.escape(text)}</th>'


def _cell(value):
    side = "left" if isinstance(value, str) else "right"
    text = f"{value:,}" if isinstance(value, int) else ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f'<td style="text-align: {side}">{html.escape(text)}</td>'
