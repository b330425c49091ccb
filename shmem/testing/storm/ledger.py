"""The ledger of a storm: what each actor is about to do and what it has done, in memory outside of every section.

An *actor* is a thread of a member process, or a child that such a thread forked; it owns one row.  The storm's process makes the memory
before it forks members, so a row outlives its actor, and no error in the section reaches it.  Whenever an actor is killed, its row holds:

* `HAND` and `HAND_SERIAL`: the block *in hand*, which the actor may free, or may or may not have linked.  `HAND` is stored last and cleared
  first.  The serial tells whether the block is still the one noted.  Every block is in hand before it is unlinked, and until it is
  linked or freed.
* `MAKING` and `BYTES`: the kind and size of the block being made, from before the store that makes it until it is in hand.  A block that
  is neither linked nor in hand was lost in that interval; there is at most one for each actor.
* `TOKEN`: whether the actor holds a unit of the semaphore.
* `ABOUT`, `DID`: the messages that may be in a queue, and those that are or were (see `Actor.produce`), one column for each queue.
* `APPENDING`, `APPENDED`: the rows that may be in a log, and those that are (see `Actor.append`), one column for each log.
* `GETTING`: how many messages the actor may have taken without noting them (see `Actor.consume`), one column for each queue.
* `LOCK_BLAME`, `MUTEX_BLAME`: the step at which the actor left a witness unequal.  Other actors store it; only an actor that was
  killed may have one.
"""

import numpy as np

from shmem._base.system_tools import map_shared_zeros

ACTORS_OF_MEMBER = 8  # at most four threads, and four children
MAX_ACTORS = 4096
MAX_MESSAGES = 2048  # of an actor, in each queue
N_COLUMNS = 64
ACTOR_SHIFT, STEP_MASK = 40, (1 << 40) - 1  # a witness holds an actor and its step in one word

NOTHING, BLOCK, ARRAY, NODE = range(4)  # MAKING
UNUSED, RUNNING, DONE, FAILED, KILLED = range(5)  # STATE
NO_TOKEN, HAS_TOKEN, PERHAPS = range(3)  # TOKEN
(
    STATE, PID, STEP, OPERATION, MAKING, BYTES, HAND, HAND_SERIAL, LOCK_BLAME, MUTEX_BLAME, TOKEN, ABOUT, ABOUT_2, DID, DID_2, GETTING,
    GETTING_2, APPENDING, APPENDING_2, APPENDED, APPENDED_2, FIRST_COUNT,
) = range(22)  # fmt: skip


class Ledger:
    """The notes of all actors of a round, in memory that forked processes share."""

    def __init__(self):
        self.rows = np.frombuffer(map_shared_zeros(MAX_ACTORS * N_COLUMNS * 8), "int64").reshape(MAX_ACTORS, N_COLUMNS)
        self.taken = np.frombuffer(map_shared_zeros(2 * MAX_ACTORS * MAX_MESSAGES), "uint8").reshape(2, MAX_ACTORS, MAX_MESSAGES)
        self.wishes = np.frombuffer(map_shared_zeros(MAX_ACTORS // ACTORS_OF_MEMBER * 8), "int64")  # of each member: see `Actor.point`
        self.stop = np.frombuffer(map_shared_zeros(4096), "int64")  # [0]: end; [1]: waits without a timeout are over


def actors_of(member):
    """The rows of a member's actors."""
    first = member * ACTORS_OF_MEMBER
    return range(first, first + ACTORS_OF_MEMBER)
