"""The audit after a round: everything that must hold of the section when all members have ended, and the account of what kills lost."""

import collections
import contextlib
import os
import traceback

import shmem
from shmem._base.layout import LAYOUT, READERS_COUNT_MASK
from shmem._cli import check
from shmem._objects import finding
from shmem.testing.storm import actor as acting
from shmem.testing.storm import contents, ledger

HEADER, PARTICIPANT, INTENT = LAYOUT["header_t"], LAYOUT["participant_t"], LAYOUT["intent_t"]


class Audit:
    """The examination of a section after a round.

    Parameters
    ----------
    storm : Storm
        Its members have ended.  Problems and counts go into its totals.
    """

    def __init__(self, storm):
        self.storm, self.ledger, self.totals, self.problem = storm, storm.ledger, storm.totals, storm.problem

    def run(self):
        """Examine the section after the round, and repair what killed members left incomplete."""
        try:
            self.storm.wait_until_left(self.storm.keeper)
            if self.storm.keeper is None:
                self._check_file("as the round left it")
            with self.storm.opened() as shm:
                linked, lost_at_most = self._settle(shm)
            self._find_leaks(linked, lost_at_most)
            self._audit_sides()
        except Exception as error:
            self.problem("".join(traceback.format_exception(error)[-2:]))
        self._count()

    # -- the open section

    def _settle(self, shm):
        """Examine the section with no other process attached; return the offsets that are linked, and how many blocks may be lost."""
        with shmem.exclusive_lock(shm, 20):
            pass
        report, stats = shm.check_heap(), shm.stats()
        is_alone = stats.participants == (self.storm.pid,)
        if report.pending_blocks or not is_alone or stats.lock_holder or stats.lock_sharers or stats.lock_waiters:
            self.problem(f"the section is in use although all members have ended: {report}, {stats}")
        linked = set(contents.verify_all(shm))
        lost_at_most = self._settle_hands(shm, linked)
        self._settle_messages(shm)
        self._settle_witnesses(shm["witness"])
        self._settle_tokens(shm["tokens"])
        for which in range(2):
            self._settle_queue(which, shm[f"queue {which}"])
            self._settle_log(which, shm[f"log {which}"])
        with shm["mutex"]:
            pass
        self.totals.owner_deaths = shm.owner_deaths
        shm.check_heap()
        return linked, lost_at_most

    def _dead(self):
        """Yield (number, row) of each actor that was killed or failed; verify that the others ended with nothing in hand."""
        states = self.ledger.rows[:, ledger.STATE]
        for actor in (states != ledger.UNUSED).nonzero()[0].tolist():
            row = self.ledger.rows[actor]
            if row[ledger.STATE] != ledger.DONE:
                yield actor, row
            elif row[ledger.HAND] or row[ledger.MAKING] or row[ledger.TOKEN] or row[ledger.GETTING : ledger.GETTING_2 + 1].any():
                self.problem(f"actor {actor} ended normally with something in hand: {row.tolist()}")

    def _settle_hands(self, shm, linked):
        """Free the blocks that killed actors had in hand and not linked; return how many blocks of each kind and size may be lost."""
        lost_at_most = collections.Counter()
        for _, row in self._dead():
            offset, making = int(row[ledger.HAND]), int(row[ledger.MAKING])
            in_hand = None
            if offset:
                with contextlib.suppress(shmem.InvalidBlock):
                    in_hand = finding.reopen(shm, offset, int(row[ledger.HAND_SERIAL]))
            if in_hand is None and making:
                lost_at_most[making, int(row[ledger.BYTES])] += 1
            elif in_hand is not None and offset not in linked:
                shm.free(in_hand)
                self.totals.returned += 1
            self.totals.killed_actors += 1
        return lost_at_most

    def _settle_messages(self, shm):
        """Open the messages that are left; give up those that were taken and not opened, of which nothing may remain."""
        for name in [name for name in shm if name.startswith("message ")]:
            contents.verify_message(bytes(shm[name]))
            del shm[name]
        shm.sweep(claims=0)
        if shm.stats().claims:
            self.problem(f"{shm.stats().claims} claims remain after all messages were given up")

    def _settle_witnesses(self, witness):
        """Verify that only killed actors have left a witness unequal."""
        kinds = (contents.WITNESS, ledger.LOCK_BLAME, "lock"), (contents.MUTEX_WITNESS, ledger.MUTEX_BLAME, "mutex")
        for at, column, what in kinds:
            if witness[at + 1] != witness[at + 2]:
                word = int(witness[at])
                self.ledger.rows[word >> ledger.ACTOR_SHIFT, column] = word & ledger.STEP_MASK
                witness[at + 2] = witness[at + 1]
            for actor in self.ledger.rows[:, column].nonzero()[0].tolist():
                row = self.ledger.rows[actor]
                self.totals.blamed += 1
                if row[ledger.STATE] not in (ledger.RUNNING, ledger.KILLED) or row[column] != row[ledger.STEP]:
                    self.problem(
                        f"the {what} was acquired after actor {actor} without having been released at step {row[column]}, "
                        f"but the actor went on to step {row[ledger.STEP]}"
                    )

    def _settle_tokens(self, tokens):
        """Verify that the semaphore has all its units except those that killed actors held, which are restored."""
        states = [int(row[ledger.TOKEN]) for _, row in self._dead()]
        most = contents.N_TOKENS - states.count(ledger.HAS_TOKEN)
        least = most - states.count(ledger.PERHAPS)
        value = tokens.value
        if not least <= value <= most:
            self.problem(f"the semaphore's value is {value}, but killed processes leave {least} to {most}")
        self.totals.lost_tokens += contents.N_TOKENS - value
        if value < contents.N_TOKENS:
            tokens.signal(contents.N_TOKENS - value)

    def _settle_queue(self, which, queue):
        """Take the remaining messages; verify that every message was delivered, except those that killed consumers had just taken."""
        reader = acting.Actor.__new__(acting.Actor)
        reader.storm, reader.number, reader.last = self.storm, ledger.MAX_ACTORS - 1, {}
        queue.shutdown()  # the end of the round shuts it down only if a member was left
        with contextlib.suppress(shmem.QueueShutDown):
            while True:
                reader.note_message(which, reader.read(queue.get(timeout=20)))
        in_hand = sum(int(row[ledger.GETTING + which]) for _, row in self._dead())
        n_lost = 0
        for actor, n_put in enumerate(self.ledger.rows[:, ledger.DID + which].tolist()):
            n_lost += n_put - int(self.ledger.taken[which, actor, :n_put].sum())
        self.totals.lost_messages += n_lost
        if n_lost > in_hand:
            self.problem(f"queue {which}: {n_lost} messages are lost, but killed consumers had taken at most {in_hand}")

    def _settle_log(self, which, rows):
        """Verify that a log has all rows that were appended, and of killed actors those that they were appending, or not."""
        for actor, (least, most) in enumerate(self.ledger.rows[:, [ledger.APPENDED + which, ledger.APPENDING + which]].tolist()):
            n_rows = int((rows[:, 0] == actor).sum()) if most else 0
            if not least <= n_rows <= most:
                self.problem(f"log {which}: {n_rows} rows of actor {actor}, which appended {least} to {most}")

    # -- the closed file

    def _check_file(self, when, path=None):
        """Examine a closed file as `python -m shmem check --leaks` does; return the leaks."""
        path = path or self.storm.place["file_name"]
        found = check.examine(path, False, True)
        if found.state != "intact":
            self.problem(f"check, {when}: {found.state}: {found.findings} {found.notes}")
        return found.leaks or []

    def _closed(self):
        """Return the path of a closed file of the section: its own, or a snapshot."""
        if self.storm.keeper is None:
            return self.storm.place["file_name"]
        path = os.path.join(self.storm.folder, "copy")
        self.storm.keeper.snapshot(path)
        return path

    def _unlinked(self, when, linked):
        return [leak for leak in self._check_file(when, self._closed()) if leak.offset not in linked]

    def _find_leaks(self, linked, lost_at_most):
        """Verify that unreachable blocks are those that killed actors were making; free them, and verify that none are left."""
        lost = self._unlinked("when all members have left", linked)
        for leak in lost:
            if leak.type == "bytes":
                key = ledger.BLOCK, leak.n_bytes
            elif leak.type.startswith("array "):
                key = ledger.ARRAY, int(leak.type[7:].partition(",")[0])
            else:
                key = ledger.NODE if leak.type == contents.NODE_TYPE else leak.type, 0
            if lost_at_most[key] == 0:
                self.problem(f"leak at {leak.offset:#x}: {leak.n_bytes} bytes, {leak.type}; no killed process was making such a block")
            lost_at_most[key] -= 1
        self.totals.lost += len(lost)
        if self.totals.problems:
            return
        with self.storm.opened() as shm:
            for leak in lost:
                shm.free(leak.offset)
        if self._unlinked("when the lost blocks are freed", linked):
            self.problem("blocks that are unreachable remain after all lost blocks were freed")
        self._check_table(self._closed())

    def _check_table(self, path):
        """Verify that, with no process attached, every entry of the participants' table is free and there is no intent."""
        with open(path, "rb") as file:
            content = file.read()
        table, intents = HEADER["participants_off"].read(content), HEADER["intents_off"].read(content)
        for i in range(HEADER["max_participants"].read(content)):
            entry = PARTICIPANT.read(content, table + PARTICIPANT.size * i)
            left = {name: entry[name] for name in ("attached", "pending", "pins", "claims", "waiting")}
            left["sharers"] = entry["readers"] & READERS_COUNT_MASK
            left["operation"] = INTENT["operation"].read(content, intents + INTENT.size * i)
            if any(left.values()):
                self.problem(f"participant {i} of the closed file: {' '.join(f'{name}={value}' for name, value in left.items())}")

    # -- the other sections

    def _audit_sides(self):
        """Verify that the other sections are intact, and are removed by their last process."""
        for number in range(2 * contents.N_SIDES):
            place = self.storm.side(number)
            with shmem.SharedMemory(**place, max_size=contents.SIDE_BYTES) as side:
                self.storm.wait_until_left(side)
                report = side.check_heap()
                for name in side:
                    contents.verify_array(side[name])
                if report.blocks != len(side) or report.pending_blocks:
                    self.problem(f"{place}: {report.blocks} blocks for {len(side)} names, {report.pending_blocks} blocks still being made")
                path = side.path
            if "shared_name" in place and os.path.exists(path):
                self.problem(f"{path} still exists although its last process has closed it")

    def _count(self):
        counts = self.storm.counts().tolist()
        before = self.totals.operations
        self.totals.operations = {name: before.get(name, 0) + n for (name, *_), n in zip(acting.OPERATIONS, counts, strict=True)}
