"""Claims of messages on arrays: states, ends, recovery, and damage to their list."""

import contextlib
import gc
import os
import signal
import threading
import time

import numpy as np
import pytest
from scribe import ABSENT_OWNER, EVERY_BIT, HEAP_GATE, ROOT_OFF, Scribe
from workers import in_child

import shmem
from shmem import _core
from shmem._base.layout import ARRAY_UNNAMED, BLOCK_HEAD_BYTES, LAYOUT, TYPE_CLAIM, read_tag

HEADER, CLAIM, ARRAY, PARTICIPANT = LAYOUT["header_t"], LAYOUT["claim_t"], LAYOUT["array_t"], LAYOUT["participant_t"]
CLAIMS_OFF, N_CLAIMS, CLAIMED, BOOT = (HEADER[name].offset for name in ("claims_off", "n_claims", "claimed_bytes", "claims_boot"))
NS = 1_000_000_000
LONG_AGO = 1  # on the boot clock
ORPHAN, AGED = 60 * NS, 600 * NS


@pytest.fixture
def shm(shm):
    """The section, which its last process removes although messages were not opened."""
    yield shm
    shm.sweep(claims=0)


@pytest.fixture
def scribe(shm):
    return Scribe(shm.path)


def now():
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def claims(scribe):
    """Return the offsets of the claims, the last one first."""
    found, at = [], scribe[CLAIMS_OFF]
    while at:
        assert read_tag(scribe[at - BLOCK_HEAD_BYTES]).type_id == TYPE_CLAIM
        found.append(at)
        at = scribe[CLAIM["next_off"].at(at)]
    return found


def facts(scribe, at):
    return CLAIM.read(scribe.bytes, at)


def put(scribe, at, **values):
    for name, value in values.items():
        scribe[CLAIM[name].at(at)] = value


def send(shm, n=1000, **how):
    """Return a message with a temporary array that its sender has dropped."""
    array = shm.full(n, 7.0, **(how or {"temporary": True}))
    return shmem.dumps(array)


def n_open(shm):
    shm.check_heap()
    return shm.stats().claims


def lost(message):
    """Return whether opening a message raises InvalidBlock."""
    try:
        shmem.loads(message)
    except shmem.InvalidBlock:
        return True
    return False


def killed(shm, act):
    """Run `act()` in a process that is killed then."""
    assert in_child(lambda: (act(), os.kill(os.getpid(), signal.SIGKILL))) == -signal.SIGKILL


# -- what a claim is ----------------------------------------------------------------------------------------


def test_message_keeps_a_dropped_array(shm, scribe):
    before = shm.check_heap()
    message = send(shm)
    assert n_open(shm) == 1
    [at] = claims(scribe)
    claim = facts(scribe, at)
    assert (claim["expires_at"], claim["next_off"], claim["previous_off"]) == (0, 0, 0)
    assert now() - 60 * NS < claim["made_at"] <= now()
    assert claim["sender"] == scribe.owner_word(scribe.entry_of(os.getpid()))
    assert scribe[PARTICIPANT["claims"].at(scribe.entry_start(scribe.entry_of(os.getpid())))] == 1
    assert ARRAY["n_claims"].read(scribe.bytes, claim["target_off"]) == 1
    report, stats = shm.check_heap(), shm.stats()
    assert (report.blocks, report.internal_blocks) == (before.blocks + 1, before.internal_blocks + 1)
    assert stats.blocks == 1
    assert 8000 < stats.claimed_bytes < 8300
    array = shmem.loads(message)
    assert array.tolist() == [7.0] * 1000
    assert (n_open(shm), shm.stats().claimed_bytes, claims(scribe)) == (0, 0, [])
    del array
    assert shm.check_heap().blocks == before.blocks


def test_opened_twice(shm):
    """The second opening works while the first receiver, or any process, keeps the array; then it raises."""
    message = send(shm)
    first = shmem.loads(message)
    second = shmem.loads(message)
    first[0] = 5
    assert second[0] == 5
    assert n_open(shm) == 0
    del first, second
    assert lost(message)
    assert shm.check_heap().blocks == 0


def test_one_array_in_several_messages(shm):
    array = shm.full(100, 7.0, temporary=True)
    messages = [shmem.dumps(array) for _ in range(3)]
    messages.append(shmem.dumps([array, array[1:], memoryview(array)]))  # three references
    assert n_open(shm) == 6
    claimed = shm.stats().claimed_bytes
    del array
    for message, left in zip(messages[:3], (5, 4, 3), strict=True):
        shmem.loads(message)
        assert (n_open(shm), shm.stats().claimed_bytes) == (left, claimed)
    whole, part, view = shmem.loads(messages[3])
    whole[1] = 9
    assert (part[0], view[1]) == (9, 9)
    del whole, part, view
    assert (n_open(shm), shm.stats().claimed_bytes, shm.check_heap().blocks) == (0, 0, 0)


def test_arrays_with_names_cost_nothing(shm):
    """No block is made for the message, and the gate is not taken."""
    shm["named"] = [1, 2, 3]
    array = shm["named"]
    others = [shm.allocate(10), shm.mutex(), shm.queue(1, "i8"), shm]
    before = shm.check_heap()
    message = shmem.dumps([array, *others])
    assert (n_open(shm), shm.check_heap()) == (0, before)
    assert shmem.loads(message)[0].tolist() == [1, 2, 3]


def test_array_without_a_name_stays(shm):
    """It is claimed, too, for it may get a name and lose it again before the message is opened."""
    message = send(shm, name=None)
    assert n_open(shm) == 1
    array = shmem.loads(message)
    assert n_open(shm) == 0
    message = shmem.dumps(array)
    shm["name"] = array
    del array
    del shm["name"]
    shm.sweep()
    array = shmem.loads(message)
    assert array[0] == 7
    del array
    assert shm.check_heap().blocks == 0


def test_deleted_name_then_sent(shm, scribe):
    shm["name"] = [1, 2]
    array = shm["name"]
    del shm["name"]
    message = shmem.dumps(array)
    target = facts(scribe, claims(scribe)[0])["target_off"]
    assert ARRAY["flags"].read(scribe.bytes, target) & ARRAY_UNNAMED
    del array
    assert shmem.loads(message).tolist() == [1, 2]
    assert (n_open(shm), shm.check_heap().blocks) == (0, 0)


def test_array_that_was_freed(shm):
    """Freeing is explicit: it ends the array, whatever refers to it, and its claims."""
    array = shm.full(100, 7.0)
    messages = [shmem.dumps(array), shmem.dumps(array)]
    other = send(shm)
    shm.free(array)
    assert (n_open(shm), shm.check_heap().blocks) == (1, 1)
    assert all(lost(message) for message in messages)
    assert shmem.loads(other)[0] == 7
    assert shm.stats().claimed_bytes == 0


def test_claimed_array_is_not_moved(shm):
    array = shm.full(100, 7.0)
    offset = shmem.handle(array).offset
    message = shmem.dumps(array)
    del array
    with pytest.raises(shmem.InvalidBlock):
        shm.reallocate(shm.block(offset), 100_000)
    assert shmem.loads(message)[99] == 7


def test_pickling_that_fails_leaves_no_claim(shm):
    array = shm.full(100, 7.0, temporary=True)
    kept = shmem.dumps(array)
    with pytest.raises(TypeError, match="cannot pickle"):
        shmem.dumps([array, array[2:], threading.Lock()])
    assert n_open(shm) == 1
    shmem.loads(kept)
    assert n_open(shm) == 0


def test_read_only_sender_and_receiver(section_file):
    with shmem.SharedMemory(section_file, max_size=1 << 20) as shm:
        array = shm.full(10, 7.0, temporary=True)
        handle = shmem.handle(array, claim=60)
        del array
        opened = handle.open(writeable=False)
        assert (opened[0], opened.flags.writeable, n_open(shm)) == (7, False, 0)
        message = shmem.dumps(opened)
        del opened
        gc.collect()
        assert n_open(shm) == 1
        assert shmem.loads(message)[0] == 7
        assert n_open(shm) == 0


# -- handles with claims ------------------------------------------------------------------------------------


def test_handle_with_a_claim(shm, scribe):
    array = shm.full(100, 7.0, temporary=True)
    handle = shmem.handle(array, claim=100)
    claim = facts(scribe, claims(scribe)[0])
    assert claim["expires_at"] - claim["made_at"] == 100 * NS
    del array
    assert handle.open()[0] == 7
    assert (n_open(shm), shm.check_heap().blocks) == (0, 0)
    with pytest.raises(shmem.InvalidBlock):
        handle.open()


def test_handle_with_a_claim_on_a_name(shm):
    shm["name"] = [1, 2, 3]
    handle = shmem.handle(shm["name"], claim=float("inf"))
    del shm["name"]
    assert handle.open().tolist() == [1, 2, 3]
    assert shm.check_heap().blocks == 0


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_claim_must_be_positive(shm, seconds):
    with pytest.raises(ValueError, match="positive number of seconds"):
        shmem.handle(shm.zeros(3), claim=seconds)
    assert n_open(shm) == 0


def test_only_arrays_are_claimed(shm):
    for obj in (shm, shm.allocate(10), shm.mutex(), shm.queue(1, "i8")):
        with pytest.raises(TypeError, match="only arrays"):
            shmem.handle(obj, claim=5)
    assert n_open(shm) == 0


# -- when a claim ends by itself ------------------------------------------------------------------------------


def test_sweep_of_claims(shm, scribe):
    messages = [send(shm), send(shm)]
    put(scribe, claims(scribe)[0], made_at=now() - 100 * NS)
    assert shm.sweep() == 0
    assert shm.sweep(claims=1000) == 0
    assert n_open(shm) == 2
    assert shm.sweep(claims=90) > 8000
    assert n_open(shm) == 1
    assert lost(messages[1])
    assert shm.sweep(claims=0) > 8000
    assert lost(messages[0])
    assert shm.check_heap().blocks == 0
    for bad in (-1, float("nan")):
        with pytest.raises(ValueError, match="non-negative"):
            shm.sweep(claims=bad)


def test_expired_claim(shm, scribe):
    """It still can be opened until something ends it."""
    messages = [send(shm) for _ in range(2)]
    for at in claims(scribe):
        put(scribe, at, expires_at=LONG_AGO)
    assert shmem.loads(messages[0])[0] == 7
    assert shm.sweep() > 8000
    assert (n_open(shm), shm.check_heap().blocks) == (0, 0)
    assert lost(messages[1])


def test_view_keeps_an_array_whose_claim_ends(shm):
    array = shm.full(100, 7.0, temporary=True)
    shmem.dumps(array)
    assert 0 < shm.sweep(claims=0) < 200
    assert array[99] == 7
    del array
    assert shm.check_heap().blocks == 0


def test_sender_that_lives_or_left_has_no_clock(section_file):
    with shmem.SharedMemory(section_file, max_size=1 << 20) as shm:
        scribe = Scribe(section_file)

        def work():
            send(shm)
            _core.depart_all(True)

        assert in_child(work) == 0
        [at] = claims(scribe)
        assert (facts(scribe, at)["sender"], facts(scribe, at)["expires_at"]) == (0, 0)
        shm.sweep()
        assert (n_open(shm), facts(scribe, at)["expires_at"]) == (1, 0)


def test_claim_of_a_killed_sender(shm, scribe):
    """It lives for a minute more: the message may be in a pipe, or may not have been written."""
    killed(shm, lambda: send(shm))
    assert shm.stats().claims == 1
    earliest = now()
    shm.sweep()
    [at] = claims(scribe)
    claim = facts(scribe, at)
    assert claim["sender"] == 0
    assert earliest + ORPHAN <= claim["expires_at"] <= now() + ORPHAN
    shm.sweep()
    assert n_open(shm) == 1
    assert facts(scribe, at) == claim  # a second recovery does not prolong it
    put(scribe, at, expires_at=LONG_AGO)
    assert shm.sweep() > 8000
    assert shm.check_heap().blocks == 0


def test_end_that_a_killed_sender_has_set(shm, scribe):
    killed(shm, lambda: shmem.handle(shm.full(10, 7.0, temporary=True), claim=1000))
    shm.sweep()
    claim = facts(scribe, claims(scribe)[0])
    assert (claim["sender"], claim["expires_at"] - claim["made_at"]) == (0, 1000 * NS)


def test_claims_of_a_killed_sender_are_not_those_of_its_entrys_next_owner(section_file):
    """The next owner of the entry orphans them, and sends its own."""
    with shmem.SharedMemory(section_file, max_size=1 << 20, max_participants=2) as shm:
        scribe = Scribe(section_file)
        killed(shm, lambda: send(shm))

        def work():
            send(shm)
            assert sorted(facts(scribe, at)["sender"] == 0 for at in claims(scribe)) == [False, True]
            assert scribe.bytes[scribe.entry(1, "claims")] == 1
            shm.check_heap()

        assert in_child(work) == 0


def fill_up(shm):
    blocks = []
    for size in (100_000, 1000, 40):
        with contextlib.suppress(shmem.SectionFull):
            while True:
                blocks.append(shm.allocate(size))
    return blocks


def test_full_section_gives_up_what_has_expired(shm, scribe):
    first, second = send(shm), send(shm)
    put(scribe, claims(scribe)[1], expires_at=LONG_AGO)
    fill_up(shm)
    assert n_open(shm) == 1
    assert lost(first)
    assert shmem.loads(second)[0] == 7


@pytest.mark.skipif(now() < AGED + NS, reason="the system was booted less than ten minutes ago")
@pytest.mark.parametrize("has_sender", [False, True])
@pytest.mark.parametrize("age", [AGED - 60 * NS, AGED])
def test_full_section_gives_up_old_messages_of_senders_that_are_gone(shm, scribe, has_sender, age):
    message = send(shm)
    [at] = claims(scribe)
    made_at = now() - age
    if has_sender:
        put(scribe, at, made_at=made_at)
    else:
        put(scribe, at, made_at=made_at, sender=0)
        scribe.bytes[scribe.entry(scribe.entry_of(os.getpid()), "claims")] = 0
    fill_up(shm)
    assert lost(message) == (age == AGED and not has_sender)


def test_full_section_can_send(shm):
    """A temporary array cannot without a claim; one that stays anyway can.  Nothing is lost."""
    temporary, plain = shm.full(100, 7.0, temporary=True), shm.full(100, 8.0)
    fill_up(shm)
    assert shmem.loads(shmem.dumps(plain))[0] == 8
    with pytest.raises(shmem.SectionFull):
        shmem.dumps(temporary)
    with pytest.raises(shmem.SectionFull):
        shmem.handle(plain, claim=5)
    assert n_open(shm) == 0


# -- closed sections ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other_boot", [False, True])
def test_closed_file(section_file, other_boot):
    """A message outlives the processes of a section that is a file, but not the boot."""
    with shmem.SharedMemory(section_file, max_size=1 << 20) as shm:
        shm["kept"] = [1, 2]
        message = send(shm)
    scribe = Scribe(section_file)
    assert (HEADER["clean"].read(scribe.bytes), scribe[N_CLAIMS], facts(scribe, scribe[CLAIMS_OFF])["sender"]) == (1, 1, 0)
    if other_boot:
        scribe[BOOT] ^= 1
    with shmem.SharedMemory(section_file) as shm:
        assert not shm.recovered
        assert n_open(shm) == (not other_boot)
        assert lost(message) == other_boot
        assert (n_open(shm), shm.check_heap().blocks) == (0, 1)
        assert lost(send(shm)) is False


def test_snapshot_has_no_claims(shm, tmp_path):
    message = send(shm)
    shm.snapshot(tmp_path / "copy.shm")
    with shmem.SharedMemory(tmp_path / "copy.shm") as copy:
        assert (n_open(copy), copy.check_heap().blocks) == (0, 0)
    assert shmem.loads(message)[0] == 7


NAME = f"test-claims-{os.getpid()}"


def leave_message(name=NAME):
    """Return a message of a section whose last process has left it."""
    with shmem.SharedMemory(shared_name=name, max_size=1 << 20) as shm:
        message = send(shm)
        path = shm.path
    del shm
    gc.collect()
    return message, path


def test_anonymous_section_is_kept_for_a_message():
    message, path = leave_message()
    assert os.path.exists(path)
    array = shmem.loads(message)
    assert array[0] == 7
    assert not shmem.find_storage(array).recovered
    del array
    gc.collect()
    assert not os.path.exists(path)
    with pytest.raises(shmem.SectionNotFound):
        shmem.loads(message)


def test_anonymous_section_whose_messages_were_opened_is_removed():
    with shmem.SharedMemory(shared_name=NAME, max_size=1 << 20) as shm:
        shmem.loads(send(shm))
        path = shm.path
    del shm
    gc.collect()
    assert not os.path.exists(path)


def test_anonymous_section_after_the_last_claim_has_ended():
    """It counts as removed: it is not found, and made anew by a process that would make it."""
    message, path = leave_message()
    HEADER["claims_until"].write(Scribe(path).bytes, LONG_AGO)
    with pytest.raises(shmem.SectionNotFound):
        shmem.loads(message)
    assert not os.path.exists(path)
    _, path = leave_message()
    HEADER["claims_until"].write(Scribe(path).bytes, LONG_AGO)
    with shmem.SharedMemory(shared_name=NAME, max_size=1 << 20) as shm:
        assert shm.check_heap().blocks == 0
    assert not os.path.exists(path)


def test_anonymous_section_with_an_old_message():
    """The last one out does not keep the file for a message that was sent more than a minute ago."""
    with shmem.SharedMemory(shared_name=NAME, max_size=1 << 20) as shm:
        send(shm)
        path, scribe = shm.path, Scribe(shm.path)
        put(scribe, claims(scribe)[0], made_at=max(0, now() - ORPHAN - NS))
    del shm
    gc.collect()
    assert not os.path.exists(path)


@pytest.mark.parametrize("until", ["later", "past"])
@pytest.mark.parametrize("end", ["left", "killed"])
def test_leftovers_with_claims(child, until, end):
    """A section with a generated name is a leftover once its processes are gone and its last claim has ended."""
    other = child("""
section = shmem.SharedMemory(max_size=1 << 20)
data = shmem.dumps(section.full(10, 7.0, temporary=True))
say(section.path)
say(data.hex())
sys.stdin.readline()
section.close()
""")
    path, message = other.hear(), bytes.fromhex(other.hear())
    if end == "killed":
        other.kill()
    else:
        other.tell()
        other.end()
    if until == "past":
        HEADER["claims_until"].write(Scribe(path).bytes, LONG_AGO)
    child("shmem.SharedMemory(max_size=1 << 20)").end()  # the first one in a process removes leftovers
    assert os.path.exists(path) == (until == "later")
    if until == "later":
        assert shmem.loads(message)[0] == 7
        gc.collect()
        assert not os.path.exists(path)


# -- damage -----------------------------------------------------------------------------------------------------

DAMAGE = {
    "no first claim": lambda s: (CLAIMS_OFF, 0),
    "first claim beyond the end": lambda s: (CLAIMS_OFF, 1 << 40),
    "first claim is a plain block": lambda s: (CLAIMS_OFF, s[ROOT_OFF]),
    "first claim is the second": lambda s: (CLAIMS_OFF, claims(s)[1]),
    "no claim counted": lambda s: (N_CLAIMS, 0),
    "too many counted": lambda s: (N_CLAIMS, EVERY_BIT),
    "endless": lambda s: (CLAIM["next_off"].at(claims(s)[1]), claims(s)[0]),
    "list is cut": lambda s: (CLAIM["next_off"].at(claims(s)[0]), 0),
    "link backwards": lambda s: (CLAIM["previous_off"].at(claims(s)[1]), EVERY_BIT),
    "bytes": lambda s: (CLAIMED, 5),
    "array counts none": lambda s: (ARRAY["n_claims"].at(facts(s, claims(s)[1])["target_off"]), 0),
    "array counts more": lambda s: (ARRAY["n_claims"].at(facts(s, claims(s)[1])["target_off"]), 2),
    "sender counts none": lambda s: (s.entry(s.entry_of(os.getpid()), "claims"), 0),
}


@pytest.mark.damages
@pytest.mark.parametrize("what", DAMAGE)
@pytest.mark.parametrize("way", ["recovery", "use", "sweep", "leave"])
def test_damaged_list(section_file, what, way):
    """The chain is the truth.  Whatever happens next, no array that a message needs is freed, and nothing is endless."""
    with shmem.SharedMemory(section_file, max_size=1 << 20) as shm:
        scribe = Scribe(section_file)
        shm.root = shm.allocate(10)
        messages = [send(shm, n) for n in (10, 2000, 30)]
        at, value = DAMAGE[what](scribe)
        scribe[at] = value
        with pytest.raises(shmem.HeapCorruption, match="claims of messages"):
            shm.check_heap()
        if way == "recovery":
            scribe[HEAP_GATE] = ABSENT_OWNER  # the next owner of the gate recovers the heap
            assert n_open(shm) == 3
        elif way == "sweep":
            shm.sweep()
            shm.sweep(claims=10_000)
        elif way == "leave":
            shm.close()
            gc.collect()
        arrays = [shmem.loads(message) for message in messages]
        assert [len(array) for array in arrays] == [10, 2000, 30]
        assert all((array == 7).all() for array in arrays)
        again = shmem.find_storage(arrays[0])
        Scribe(section_file)[HEAP_GATE] = ABSENT_OWNER
        assert n_open(again) == 0
        del arrays
        gc.collect()
        assert again.check_heap().blocks == 1


@pytest.mark.damages
@pytest.mark.parametrize("field", ["target_off", "serial", "sender", "expires_at", "made_at"])
@pytest.mark.parametrize("value", [0, 1, 0x4000, EVERY_BIT >> 1, EVERY_BIT])
def test_damaged_claim(shm, scribe, field, value):
    """Only its own array may be lost."""
    messages = [send(shm, n) for n in (10, 2000, 30)]
    put(scribe, claims(scribe)[1], **{field: value})
    shm.sweep()
    scribe[HEAP_GATE] = ABSENT_OWNER
    shm.check_heap()
    for message in (messages[0], messages[2]):
        np.testing.assert_array_equal(shmem.loads(message), 7)
    with contextlib.suppress(shmem.InvalidBlock):
        shmem.loads(messages[1])
    shm.sweep(claims=0)
    scribe[HEAP_GATE] = ABSENT_OWNER
    assert shm.check_heap().blocks == 0
