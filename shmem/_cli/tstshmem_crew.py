"""The processes and threads of a `tstshmem` instance that work on the tree."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
import warnings

import shmem
from shmem._cli.tstshmem_section import keys_of_member, tree_of
from shmem._objects import lock as _lock

PATIENCE = 10  # seconds for members to end by themselves


def work_in_threads(tree, shares, is_stopped):
    """Work with one thread for each share of keys; return when they began and ended, on the clock that all processes share."""
    stop = bytearray(1)
    errors = []
    ended = threading.Semaphore(0)

    def work(keys):
        try:
            tree.work(keys, stop)
        except Exception as error:
            errors.append(error)
            stop[0] = 1
        finally:
            ended.release()

    threads = [threading.Thread(target=work, args=(keys,)) for keys in shares]
    started = time.monotonic()
    try:
        for thread in threads:
            thread.start()
        for _ in threads:
            while not ended.acquire(timeout=0.05):
                stop[0] |= is_stopped()
        return started, time.monotonic()
    finally:
        stop[0] = 1  # after Ctrl-C the threads remove their keys
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        if errors:
            raise errors[0]


def member_main(place, offset, member, link):
    """Send "ready", wait for "go", work, and send when.  If the parent's end of the link is closed, clean up and leave."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    warnings.simplefilter("ignore", shmem.OwnerDiedWarning)  # the parent reports killed processes
    try:
        with shmem.SharedMemory(**place) as memory:
            with shmem.exclusive_lock(memory):
                control = memory.root
                [instance] = [one for one in control.instances() if one.offset == offset]
                instance.members[member], instance.crew[member] = os.getpid(), _lock.participant(memory)
            tree, shares = tree_of(memory, control), keys_of_member(instance, member)
            link.send("ready")
            if link.recv() == "go":
                link.send(work_in_threads(tree, shares, link.poll))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    except Exception as error:
        with contextlib.suppress(OSError):
            link.send(f"{type(error).__name__}: {error}")


class Member:
    """A member process as its parent sees it."""

    def __init__(self, context, place, offset, number):
        self.number = number
        self.link, other_end = context.Pipe()
        self.process = context.Process(target=member_main, args=(place, offset, number, other_end), daemon=True)
        self.process.start()
        other_end.close()
        self.times = None  # (began, ended), once all its work is done
        self.error = None  # the error it reported
        self.exitcode = None  # set when it has ended

    def hear(self):
        """Return its next message, or None if it ended instead."""
        try:
            return self.link.recv()
        except (EOFError, ConnectionResetError):
            self.end(None)
            return None

    def end(self, timeout):
        """Wait until the process has ended; after a timeout, kill it."""
        self.process.join(timeout)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.exitcode = self.process.exitcode


class Crew:
    """The member processes of one instance.

    A crew that does not get "go", or is stopped, removes its keys and ends.
    """

    def __init__(self, place, instance):
        context = multiprocessing.get_context("spawn")
        self.members = []
        try:
            with self._ignoring_interrupts():  # members inherit that: their parent decides when they end
                for number in range(instance.processes):
                    self.members.append(Member(context, place, instance.offset, number))
        except BaseException:
            self.stop(PATIENCE)
            raise

    @staticmethod
    @contextlib.contextmanager
    def _ignoring_interrupts():
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, former)

    def _hear_all(self):
        """Wait for one message of each live member; yield (member, message)."""
        waiting = {member.link: member for member in self.members if member.exitcode is None and member.error is None}
        while waiting:
            for link in multiprocessing.connection.wait(list(waiting)):
                member = waiting.pop(link)
                yield member, member.hear()

    def make_ready(self):
        """Wait until all members that are not killed are attached; return whether no error was reported."""
        for member, message in self._hear_all():
            if message not in ("ready", None):
                member.error = message
        return not any(member.error for member in self.members)

    def work(self):
        """Let the members work and wait for the end of it."""
        for member in self.members:
            with contextlib.suppress(OSError):
                member.link.send("go")
        for member, message in self._hear_all():
            if isinstance(message, tuple):
                member.times = message
            elif message is not None:
                member.error = message

    def stop(self, patience):
        """Tell all members to end, and wait; kill those that have not ended after `patience` seconds."""
        for member in self.members:
            member.link.close()
        deadline = time.monotonic() + patience
        for member in self.members:
            member.end(max(0.0, deadline - time.monotonic()))
