"""`Tree`: the names of a section or a group, level by level, as text and as a table for notebooks."""

import collections
import operator

from shmem._base.errors import HeapCorruption, ShmemError
from shmem._objects import glances, growing, tables

GROUPFULS = 4  # so many times `max_names` are shown in all
COLUMNS = ("name", "kind", "shape", "dtype", "bytes")
PROBLEMS = {glances.BUSY: "not read: another process keeps the heap", glances.DAMAGED: "damaged", glances.GONE: "deleted meanwhile"}


class Node:
    """A name: its kind, for an array shape, dtype and whether it is sealed, and for a group what was read of its contents."""

    __slots__ = ("children", "dtype", "kind", "n_bytes", "n_names", "name", "path", "problem", "sealed", "shape")

    def __init__(self, path, name, kind, n_bytes=0):
        self.path, self.name, self.kind, self.n_bytes = path, name, kind, n_bytes
        self.shape = self.dtype = self.problem = self.n_names = None
        self.sealed, self.children = False, []

    @property
    def n_hidden(self):
        """How many names of a group are not shown."""
        return max((self.n_names or 0) - len(self.children), 0)

    def read_array(self, memory):
        """Look at an array without a view of it; return False if another process keeps the heap gate."""
        try:
            facts = growing.look(memory, self.path, False)
        except HeapCorruption:
            self.problem = glances.DAMAGED
        except (ShmemError, KeyError, TypeError, ValueError):  # it was freed or renamed meanwhile, or is a group by now
            self.problem = glances.GONE
        else:
            if facts is None:
                self.problem = glances.BUSY
            elif facts.shape is not None:
                self.shape, self.dtype, self.sealed = facts.shape, cut(str(facts.dtype), 60), facts.sealed
        return self.problem != glances.BUSY

    def read_group(self, memory, most):
        """Look at the first names of a group, at most `most` of them; return False if another process keeps the heap gate."""
        glance = glances.at_objects(memory, self.path, most) if most else glances.at_names(memory, self.path, 0)
        self.problem, self.n_names = glance.problem, None if glance.problem else glance.n_names
        for name, kind, n_bytes in glance.objects:
            child = Node(f"{self.path}/{name}" if self.path else name, name, kind, n_bytes)
            self.children.append(child)
            if kind == "array" and not child.read_array(memory):
                return False
        return self.problem != glances.BUSY


def cut(text, most):
    """Return a text, or its beginning with three dots if it has more than `most` characters."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def read(memory, path, level, max_names):
    """Return the `Node` of a group with its contents, upper levels first; stop reading after a slice in vain at the heap gate."""
    root = Node(path, path, "group")
    n_left = GROUPFULS * max_names
    waiting = collections.deque([(root, 1)])
    while waiting:
        node, depth = waiting.popleft()
        is_shown = level is None or depth <= level
        if not node.read_group(memory, min(max_names, n_left) if is_shown else 0):
            for child, _ in waiting:
                child.problem = glances.BUSY
            break
        n_left -= len(node.children)
        waiting.extend((child, depth + 1) for child in node.children if child.kind == "group")
    return root


# -- text -----------------------------------------------------------------------------------------------------


def printable(name):
    """Return the beginning of a name, as its `repr` if it has characters that would disturb lines."""
    name = cut(name, 80)
    return name if name.isprintable() else repr(name)


def _label(node):
    if node.kind == "group":
        hidden = f"  ({_names(node.n_hidden)})" if node.n_hidden and not node.children else ""
        return f"{printable(node.name)}/{hidden}"
    if node.shape is None:
        return f"{printable(node.name)}  {node.kind}{f', {PROBLEMS[node.problem]}' if node.problem else ''}"
    return f"{printable(node.name)}  {node.shape} {node.dtype}{', sealed' if node.sealed else ''}"


def _names(n, more=""):
    return f"{n:,} {more}name{'s' if n != 1 else ''}"


def _remark(node):
    """Return what stands below the names of a group, or None."""
    if node.problem is not None:
        return f"... {PROBLEMS[node.problem]}"
    return f"... {_names(node.n_hidden, 'more ')}" if node.n_hidden and node.children else None


def _lines(node, indent=""):
    remark = _remark(node) if node.kind == "group" else None
    below = [*node.children, *([remark] if remark else [])]
    for child in below:
        is_last = child is below[-1]
        yield f"{indent}{'└── ' if is_last else '├── '}{child if isinstance(child, str) else _label(child)}"
        if not isinstance(child, str):
            yield from _lines(child, indent + ("    " if is_last else "│   "))


# -- tables ---------------------------------------------------------------------------------------------------


def _rows(node, level=0):
    for child in node.children:
        name = tables.Indented(cut(child.name, 80), level)
        if child.kind == "group":
            yield name, "group", "" if child.n_names is None else _names(child.n_names), "", ""
            yield from _rows(child, level + 1)
        else:
            kind = f"{child.kind}{', sealed' if child.sealed else ''}{f', {PROBLEMS[child.problem]}' if child.problem else ''}"
            yield name, kind, "" if child.shape is None else str(child.shape), child.dtype or "", child.n_bytes
    remark = _remark(node)
    if remark:
        yield (tables.Wide(remark, level),)


class Tree:
    """The names of a section or a group, with kinds, shapes and dtypes, as they were when it was made: `SharedMemory.tree`.

    `str` and `repr` are a text with a line for each name, and notebooks show a table.
    """

    __slots__ = ("_head", "_root")

    def __init__(self, memory, path="", level=None, max_names=50):
        if level is not None and operator.index(level) < 1:
            raise ValueError(f"level must be None or at least 1, got {level}")
        if operator.index(max_names) < 1:
            raise ValueError(f"max_names must be at least 1, got {max_names}")
        self._root = read(memory, path, level, max_names)
        if self._root.problem == glances.GONE:
            raise KeyError(path)
        self._head = f"{printable(path)}/" if path else printable(memory.name)

    def __str__(self):
        return "\n".join([self._head, *_lines(self._root)])

    __repr__ = __str__

    def html(self, head):
        """Return the table below a line of HTML."""
        rows = list(_rows(self._root))
        return f"<div>{head}{tables.table(COLUMNS, rows) if rows else ''}</div>"

    def _repr_html_(self):
        return self.html(f"<b>{tables.escape(self._head)}</b>")
