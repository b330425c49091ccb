"""The checks of a section after a kill, and the checker processes that do them.

A *state* is the content of a section's file at some instant of an operation.  A checker is a process of its own.  It does with a state
what other processes would do with the section of a process killed at that instant:

open    as the first opener of the file, with no participant alive
live    as a participant that was attached all the time, at its own entry of the table: it finds the dead one's words while it works
join    as a process that attaches while another one is alive, and is given the dead one's entry
hold    nothing is re-enacted: the checker is attached to the file itself when the process beside it is really killed

Each check ends by observing everything (`observe`), which must be the same as before the operation or after it.  The order of the checker's
calls changes from state to state, so that each call is sometimes the first to meet the dead participant.

Checkers never fork one another while one of them has a section open: a fork would attach the child.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import struct
import time
import traceback
import warnings

import numpy as np

import shmem
from shmem._base.layout import (
    BLOCK_HEAD_BYTES,
    BLOCK_MIN_BYTES,
    BLOCK_REAR_BYTES,
    INTERNAL_TYPES,
    LAYOUT,
    PAGE_BYTES,
    SLACK_MASK,
    SLACK_SHIFT,
    SLOT_REMOVED,
    STATE_USED,
    TYPE_ARRAY,
    TYPE_GROUP,
    TYPE_NAME_ENTRY,
    TYPE_NAME_TABLE,
    TYPE_PLAIN,
    read_tag,
)

MAX_SIZE = 1 << 16
MAX_PARTICIPANTS = 3
LONGEST_SECONDS = 60  # for one task of a checker; one that takes longer hangs

HEADER, BLOCK, PARTICIPANT, ARRAY = (LAYOUT[name] for name in ("header_t", "block_t", "participant_t", "array_t"))
TABLE, SLOT, ENTRY, GROUP = (LAYOUT[name] for name in ("name_table_t", "name_slot_t", "name_entry_t", "group_t"))
KINDS = {TYPE_NAME_TABLE: "table", TYPE_NAME_ENTRY: "name", TYPE_GROUP: "group"}


class Damage(Exception):
    """A violated guarantee for a section after a kill."""


def entry_off(i):
    """Return the offset of an entry of the participants' table: it follows the header's page, also where no header is written yet."""
    return PAGE_BYTES + PARTICIPANT.size * i


def blocks_of(content):
    """Yield the chain of blocks in a section's bytes, each as (offset of the payload, size of the payload, state, type)."""
    offset, top = HEADER["heap_start"].read(content), HEADER["top"].read(content)
    while offset < top:
        tag = read_tag(BLOCK["tag"].read(content, offset))
        if tag.size < BLOCK_MIN_BYTES or not tag.is_right:
            raise Damage(f"the chain of blocks cannot be walked: {tag} at offset {offset:#x}")
        yield offset + BLOCK_HEAD_BYTES, tag.size - BLOCK_HEAD_BYTES - BLOCK_REAR_BYTES, tag.state, tag.type_id
        offset += tag.size


def _reachable(content):
    """Return the payload offsets of the name tables, of those whose entries they take over, of the entries in them, and of the groups."""
    found = set()
    tables = [HEADER[anchor].read(content) for anchor in ("directory_off", "types_off", "attributes_off")]
    for table in tables:  # which grows meanwhile
        if not table:
            continue
        found.add(table)
        tables.append(TABLE["old_off"].read(content, table))
        for i in range(TABLE["capacity"].read(content, table)):
            entry = SLOT["entry_off"].read(content, table + TABLE.size + SLOT.size * i)
            if entry <= SLOT_REMOVED:
                continue
            found.add(entry)
            value, serial = ENTRY["value"].read(content, entry), ENTRY["serial"].read(content, entry)
            if serial and read_tag(BLOCK["tag"].read(content, value - BLOCK_HEAD_BYTES)).type_id == TYPE_GROUP:
                found.add(value)
                tables.append(GROUP["table_off"].read(content, value))
    return found


def _encoded_attributes(content):
    """Return what the entries in the table of attributes hold, also those of blocks without a name."""
    table, found = HEADER["attributes_off"].read(content), []
    while table:
        for i in range(TABLE["capacity"].read(content, table)):
            at = SLOT["entry_off"].read(content, table + TABLE.size + SLOT.size * i)
            if at > SLOT_REMOVED:
                data = at + ENTRY.size + ENTRY["name_bytes"].read(content, at)
                found.append(bytes(content[data : data + ENTRY["data_bytes"].read(content, at)]))
        table = TABLE["old_off"].read(content, table)
    return sorted(found)


def _users_block(content, offset, size, type_id):
    """Return the parts of a user's block that must not change: its type, its size, and for arrays and plain blocks the content.

    The content of an object is not among them: its maker may have been killed between the stores to two fields.
    """
    if type_id == TYPE_PLAIN:
        wanted = size - (BLOCK["serial"].read(content, offset - BLOCK_HEAD_BYTES) >> SLACK_SHIFT & SLACK_MASK)
        return type_id, wanted, bytes(content[offset : offset + wanted])
    if type_id == TYPE_ARRAY:
        data, n_bytes = ARRAY["data_off"].read(content, offset), ARRAY["data_bytes"].read(content, offset)
        if ARRAY["capacity_bytes"].read(content, offset):  # the rows of an array that can grow
            n_dims = ARRAY["n_dims"].read(content, offset)
            n_rows, row_bytes = (struct.unpack_from("Q", content, offset + ARRAY.size + 8 * i)[0] for i in (0, n_dims))
            n_bytes = n_rows * row_bytes
        return type_id, size, bytes(content[offset + data : offset + data + n_bytes])
    return type_id, size, b""


def _describe(value):
    """Return a named object or the root in a form that can be compared."""
    if isinstance(value, shmem.Group):
        return ("group",)
    if isinstance(value, np.ndarray):
        return "array", value.dtype.str, value.shape, value.flags.writeable, value.tobytes()
    if isinstance(value, shmem.Block):
        return "block", bytes(value)
    if isinstance(value, shmem.Queue):
        found = []
        with contextlib.suppress(shmem.QueueEmpty):
            while True:
                found.append(value.get(timeout=5) if len(found) < value.qsize() else value.get_nowait())
        value.put(b"again" if value.max_bytes else 0, timeout=5)  # it still works
        return "queue", repr(found), repr(value.get(timeout=5))
    if isinstance(value, shmem.Semaphore):
        return "semaphore", value.value
    if isinstance(value, shmem.Event):
        return "event", value.is_set()
    if isinstance(value, shmem.Mutex):
        with value:
            return ("mutex",)
    return type(value).__name__, repr({name: getattr(value, name) for name in type(value).dtype.names})


def _describe_name(shm, name):
    try:
        return _describe(shm[name])
    except shmem.InvalidBlock:
        return ("freed",)


def observe(shm):
    """Return all that a user can see: names with their objects, the root and the blocks.  Verify that nothing else is allocated."""
    shm.check_heap()
    shm.sweep()  # groups that were deleted, and are yet to be emptied
    report = shm.check_heap()
    if report.pending_blocks:
        raise Damage(f"{report.pending_blocks} blocks are still being made, but no process is making them")
    with open(shm.path, "rb") as file:
        content = file.read()
    kept = _reachable(content)
    blocks = []
    for offset, size, state, type_id in blocks_of(content):
        if state != STATE_USED:
            continue
        if type_id in KINDS:
            if offset not in kept:
                raise Damage(f"lost: nothing leads to a {KINDS[type_id]} at offset {offset:#x}")
            kept.discard(offset)
        elif type_id not in INTERNAL_TYPES:  # a record of views belongs to the live: `_empty` finds those that are left
            blocks.append(_users_block(content, offset, size, type_id))
    if kept:
        raise Damage(f"the names at offsets {sorted(map(hex, kept))} are not in used blocks")
    if len(blocks) != report.blocks:
        raise Damage(f"check_heap counts {report.blocks} blocks, but the chain has {len(blocks)}")
    names = {}
    shm.visit(lambda name: names.update({name: _describe_name(shm, name)}))
    entries = {name: shm[name] if kind == "group" else shm.entry(name) for name, (kind, *_) in names.items() if kind != "freed"}
    versions = {name: entry.version for name, entry in entries.items() if not isinstance(entry, shmem.Group)}
    for entry in [entries[name] for name in versions]:
        if entry.maxshape is not None and not entry.sealed:
            entry.resize(entry.shape)  # its gate is not taken
    attributes = {name: repr(entry.attrs) for name, entry in entries.items()} | {
        None: repr(shm.attrs),
        "encoded": _encoded_attributes(content),
    }
    root = shm.root
    found = {"names": names, "versions": versions, "attributes": attributes, "blocks": sorted(blocks)}
    return found | {"root": None if root is None else _describe(root)}


def _empty(shm):
    """Delete and free everything: pins of dead participants and pending blocks must not prevent this."""
    shm.root = None
    shm.attrs.clear()
    for name in list(shm):
        del shm[name]
    with open(shm.path, "rb") as file:
        content = file.read()
    for offset, _, state, type_id in blocks_of(content):
        if state == STATE_USED and type_id not in INTERNAL_TYPES:
            shm.free(offset)
    report = shm.check_heap()
    with open(shm.path, "rb") as file:
        kept = _reachable(file.read())  # types remain
    if report.blocks or report.internal_blocks != len(kept):
        raise Damage(f"{report.blocks} blocks and {report.internal_blocks} tables and names are left after everything was freed")


def _lock(shm, timeout):
    with shmem.exclusive_lock(shm, timeout), shmem.shared_lock(shm, timeout):
        pass


def _lock_shared(shm, timeout):
    with shmem.shared_lock(shm, timeout):
        pass


def _use_heap(shm, timeout):
    with contextlib.suppress(shmem.SectionFull):  # one operation fills the section
        shm.free(shm.allocate(100))
        shm.free(shm.allocate(2000))


def _look(shm, timeout):
    shm.check_heap()
    list(shm)


def _change_names(shm, timeout):
    shm["by the checker"] = [1, 2, 3]
    del shm["by the checker"]


FIRST = [_lock, _look, _use_heap, _lock_shared, _change_names]


def carry_on(shm, number, others=0):
    """Use the section as any process would, and return an observation.

    Parameters
    ----------
    shm : SharedMemory
    number : int
        Decides the order of the calls.
    others : int, optional
        Number of other participants that are alive.

    Raises
    ------
    Damage
    """
    timeout = 0 if number % 2 else 20  # by turns: polling alone must get the lock of the dead, too
    turn = number % len(FIRST)
    for action in FIRST[turn:] + FIRST[:turn]:
        action(shm, timeout)
    seen = observe(shm)
    participants = shm.stats().participants
    if len(participants) != 1 + others:
        raise Damage(f"{len(participants)} participants are listed, but {1 + others} are alive")
    return seen


# -- re-enacting ----------------------------------------------------------------------------------------------


def _write(path, content):
    with open(path, "wb") as file:
        file.write(content)


def occupy(path, entry):
    """Make a free entry of the table look like that of a dead participant, so that it is not the first to be given out."""
    with open(path, "r+b") as file:
        PARTICIPANT["attached"].write_file(file.fileno(), 1, entry_off(entry))


def pour(path, content, mine=None):
    """Overwrite a section that is in use with the bytes of a state.

    Parameters
    ----------
    path : str
    content : bytes
    mine : int, optional
        This process's entry of the table, which was free in that state.  It is left as it is.
    """
    content = bytearray(content)
    with open(path, "r+b") as file:
        if mine is not None:
            at, high = entry_off(mine), HEADER["participants_high"]
            file.seek(at)
            content[at : at + PARTICIPANT.size] = file.read(PARTICIPANT.size)
            high.write(content, max(mine + 1, high.read(content)))
        file.seek(0)
        file.write(content)


def _is_clean(path):
    with open(path, "rb") as file:
        content = file.read()
    if HEADER["clean"].read(content) != 1 or HEADER["broken"].read(content) != 0:
        raise Damage("the last process to leave did not mark the section clean")


def _open(task, folder, partner):
    path = os.path.join(folder, "open")
    _write(path, task["state"])
    with shmem.SharedMemory(path, max_size=MAX_SIZE, max_participants=MAX_PARTICIPANTS, index=task["index"]) as shm:
        seen = carry_on(shm, task["number"])
    _is_clean(path)
    with shmem.SharedMemory(path) as shm:
        _empty(shm)
    return seen


def _pour_beside(task, shm):
    """Write the state into the section during the activity of the process beside the victim, or after it if it had ended by then."""
    with survivor(task["operation"], shm):
        if not task["let_go"]:
            pour(shm.path, task["state"])
    if task["let_go"]:
        pour(shm.path, task["state"])


def _live(task, folder, partner):
    path = os.path.join(folder, "live")
    _write(path, task["base"])
    with shmem.SharedMemory(path) as shm:
        _pour_beside(task, shm)
        seen = carry_on(shm, task["number"])
        _empty(shm)
    _is_clean(path)
    return seen


def _join(task, folder, partner):
    path = os.path.join(folder, "join")
    _write(path, task["base"])
    with shmem.SharedMemory(path) as shm:
        _pour_beside(task, shm)
        occupy(path, 2)
        partner.send({"mode": "attach", "path": path, "number": task["number"]})
        seen, error = partner.recv()
        if error:
            raise Damage(error)
        _empty(shm)
    _is_clean(path)
    return seen


def _attach(task, folder, partner):
    with shmem.SharedMemory(task["path"]) as shm:
        return carry_on(shm, task["number"], others=1)


_held = {}


def _hold(task, folder, partner):
    """Attach, and begin the activity that the operation asks of the process beside the victim."""
    shm = shmem.SharedMemory(task["path"])
    doing = survivor(task["operation"], shm)
    doing.__enter__()
    _held["shm"], _held["doing"] = shm, doing


def _let_go(task, folder, partner):
    """End the activity, but stay attached."""
    _held["doing"].__exit__(None, None, None)
    _held["doing"] = contextlib.nullcontext()


def living(shm):
    """Return the pids of the participants that are alive.  Nothing is cleared up, as `stats` might do."""
    return shm._header_facts()["participants"]


def _wait_until_alone(shm):
    """Wait until the killed process is seen as dead: its lock goes with its mappings, which a reader of /proc keeps for a moment."""
    while set(living(shm)) - {os.getpid()}:
        time.sleep(0.001)


def _go_on(task, folder, partner):
    """Go on after the victim was killed."""
    shm, doing = _held.pop("shm"), _held.pop("doing")
    with shm:
        _wait_until_alone(shm)
        doing.__exit__(None, None, None)
        seen = carry_on(shm, task["number"])
        _empty(shm)
    return seen


def _drop(task, folder, partner):
    """End the activity and leave: the victim has done its work."""
    shm, doing = _held.pop("shm"), _held.pop("doing")
    doing.__exit__(None, None, None)
    del doing
    shm.close()


MODES = {"open": _open, "live": _live, "join": _join, "attach": _attach, "hold": _hold, "let go": _let_go, "go on": _go_on, "drop": _drop}


@contextlib.contextmanager
def survivor(name, shm):
    """Do what the process beside an operation does meanwhile, such as holding the lock or viewing an array."""
    from shmem.testing.crash.operations import OPERATIONS

    beside = OPERATIONS[name].beside
    if beside is None:
        yield
    else:
        with beside(shm):
            yield


# -- processes ------------------------------------------------------------------------------------------------


def _serve(link, folder, partner):
    """Serve tasks: the answer to each is (observation, None) or (None, error text)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.simplefilter("ignore", shmem.OwnerDiedWarning)
    while True:
        try:
            task = link.recv()
        except EOFError:
            os._exit(0)
        try:
            answer = MODES[task["mode"]](task, folder, partner), None
        except Exception as error:
            answer = None, f"{error}\n" if isinstance(error, Damage) else _last_lines(error)
            _held.clear()
        link.send(answer)


def _last_lines(error):
    return "".join(traceback.format_tb(error.__traceback__)[-1:]) + f"{type(error).__name__}: {error}\n"


def _start(folder, partner, to_close):
    mine, its = multiprocessing.Pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking while there are threads: numpy's, which are idle
        pid = os.fork()
    if pid == 0:
        try:
            mine.close()
            for link in to_close:
                link.close()
            _serve(its, folder, partner)
        finally:
            os._exit(1)
    its.close()
    return pid, mine


class Checker:
    """A process that checks states, with a partner process for checks that take two.

    Parameters
    ----------
    folder : str
        A folder of its own, for its files.
    """

    _links = []  # noqa: RUF012 - of all checkers: a new process closes its copies

    def __init__(self, folder):
        self.folder = folder
        os.makedirs(folder, exist_ok=True)
        self._begin()

    def _begin(self):
        partner_pid, partner = _start(self.folder, None, Checker._links)
        pid, self.link = _start(self.folder, partner, Checker._links)
        self.pids = [pid, partner_pid]
        partner.close()
        Checker._links.append(self.link)
        self.task = None

    def ask(self, task):
        """Send a task; the answer arrives in `link`."""
        self.task = task
        self.link.send(task)

    def answer(self, timeout=LONGEST_SECONDS):
        """Return the observation and an error text, one of which is None.  A checker that hangs or dies is replaced."""
        try:
            if self.link.poll(timeout):
                return self.link.recv()
            wrong = f"the checker hangs: no answer within {timeout} s\n"
        except (EOFError, ConnectionError):
            wrong = "the checker crashed\n"
        self.end()
        self._begin()
        return None, wrong

    def end(self):
        """Kill both processes."""
        Checker._links.remove(self.link)
        self.link.close()
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


class Pool:
    """Checkers that work at the same time: each spends most of its time waiting for a slice of sleep to end.

    Parameters
    ----------
    folder : str
    n : int
        Number of checkers.
    """

    def __init__(self, folder, n):
        self.checkers = [Checker(os.path.join(folder, f"checker{i}")) for i in range(n)]

    def run(self, tasks):
        """Do all tasks; yield (task, observation, error text) for each, in any order."""
        tasks = iter(tasks)
        idle, busy = list(self.checkers), {}
        while True:
            for task in tasks:
                checker = idle.pop()
                checker.ask(task)
                busy[checker.link] = checker
                if not idle:
                    break
            if not busy:
                return
            ready = multiprocessing.connection.wait(list(busy), LONGEST_SECONDS)
            for link in ready or list(busy):
                checker = busy.pop(link)
                task = checker.task
                seen, wrong = checker.answer(0 if not ready else LONGEST_SECONDS)
                idle.append(checker)
                yield task, seen, wrong

    def end(self):
        """Kill all processes."""
        for checker in self.checkers:
            checker.end()
