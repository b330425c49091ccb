"""A member process of a storm: some threads, each an actor, and the children that they fork."""

import contextlib
import faulthandler
import os
import random
import signal
import threading
import time
import warnings

import shmem
from shmem._base.system_tools import die_with_parent
from shmem.testing.storm import ledger
from shmem.testing.storm.actor import Actor, run

LONG_SECONDS = 0.15  # of a handler: longer than the lock stays reserved for its thread


def run_handlers(storm, rng):
    """Let a timer interrupt the main thread until it ends; return what keeps the section open for the handler.

    The handler runs in the middle of every operation and wait.  It requests the lock, or lasts longer than the lock is reserved for it.
    """
    shm = shmem.SharedMemory(**storm.place)

    def interrupt(number, frame):
        with contextlib.suppress(shmem.LockTimeout, shmem.DeadlockError):
            way = rng.randrange(20)
            if way < 2:
                with shmem.shared_lock(shm, rng.choice([0, 0.01, 0.2])):
                    shm.stats()
            elif way < 4:
                with shmem.exclusive_lock(shm, rng.choice([0, 0.01, 0.2])):
                    shm.stats()
            elif way == 4:
                time.sleep(LONG_SECONDS)
        signal.setitimer(signal.ITIMER_REAL, pause)  # only now: handlers that take longer than the pause would nest without end

    pause = rng.choice([0.002, 0.01, 0.06])
    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    return shm


def end_member(at_once):
    """Do what a member that was not killed does last."""
    if at_once:
        os._exit(0)  # without leaving the section


def member_main(storm, member, log):
    """Work in several threads until all of them are done or the storm ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.dup2(log, 2)
    faulthandler.enable(2, all_threads=True)
    die_with_parent()
    if os.getppid() != storm.pid:
        os._exit(0)
    warnings.simplefilter("ignore", shmem.OwnerDiedWarning)
    warnings.simplefilter("ignore", DeprecationWarning)  # of forking while there are threads, which is what is tested
    rng = random.Random(f"{storm.options.seed} {storm.round} member {member}")
    first = member * ledger.ACTORS_OF_MEMBER
    numbers = iter(range(first + 4, first + ledger.ACTORS_OF_MEMBER))
    if storm.keeper is not None and rng.random() < 0.5:
        storm.keeper.close()  # the inherited handle; other members leave through it only at exit
    n_operations = rng.randrange(100, 4000)
    jobs = [
        (lambda i=i: Actor(storm, first + i, numbers, waits_for_ever=i > 0), storm, first + i, n_operations)
        for i in range(rng.choice([1, 1, 2, 3]))
    ]
    threads = [threading.Thread(target=run, args=job) for job in jobs[1:]]
    for thread in threads:
        thread.start()
    handled = run_handlers(storm, rng) if rng.random() < 0.4 else None
    kept = run(*jobs[0])  # either exit leaves the section, or dropping the last handle does
    while any(thread.is_alive() for thread in threads) and not storm.ledger.stop[0]:
        time.sleep(0.01)  # the threads may wait without a timeout for other members
    for thread in threads:
        thread.join()
    signal.signal(signal.SIGALRM, signal.SIG_IGN)  # first: a handler that is due would start the timer again
    signal.setitimer(signal.ITIMER_REAL, 0)
    end_member(rng.random() < 0.3)
    del kept, handled
