# cython: language_level=3, auto_pickle=False
"""The Python class Semaphore."""

from shmem._base import errors

cimport cython
from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memset
from shmem._atomics cimport load_seq_cst_u32, load_seq_cst_u64
from shmem._base.deadline cimport FOREVER
from shmem._base.layout cimport NAMED_SEMAPHORE, SEMAPHORE_MAX, TYPE_SEMAPHORE, named_state_t, semaphore_t
from shmem._base.section cimport section_t
from shmem._base.status cimport OK
from shmem._base.system cimport pause_ns
from shmem._bridge.calls cimport deadline_argument
from shmem._core cimport Memory
from shmem._objects.waitables cimport (
    Waitable, blocking_argument, changeable, count_argument, is_gone, make_words, open_or_stand_alone, place_new, prepare_wait, readable,
    wait, wait_call_t)
from shmem._sync.channel cimport ALL_WAITERS, channel_notify
from shmem._sync.primitives cimport semaphore_signal, semaphore_try, semaphore_wait

cdef enum:
    N_LOOKS = 100
    LOOK_NS = 1000000

cdef object ONE = 1


cdef uint32_t _value_argument(object value) except? 0xffffffff:
    cdef uint32_t number = count_argument(value, "a semaphore's value", 0)
    if number > SEMAPHORE_MAX:
        raise errors.SemaphoreOverflow(f"a semaphore's value must be at most {SEMAPHORE_MAX}, got {value}")
    return number


cdef int _semaphore_step(section_t* section, void* request) noexcept nogil:
    cdef wait_call_t* call = <wait_call_t*>request
    return semaphore_wait(<semaphore_t*>call.words, call.where, call.deadline_ns, True)


cdef bint _semaphore_wait(Semaphore self, semaphore_t* semaphore, int64_t deadline_ns) except -1:
    """Take one, waiting without the GIL; return False when the deadline passed."""
    cdef wait_call_t call
    cdef section_t* section = prepare_wait(self, &call, semaphore, deadline_ns)
    return wait(self, section, _semaphore_step, &call) == OK


cdef inline int _semaphore_signal(Semaphore self, object inc) except -1:
    cdef semaphore_t* semaphore = <semaphore_t*>changeable(self, "signal")
    cdef uint32_t n = 1
    if inc is not ONE:
        n = count_argument(inc, "what is added", 1)
    if semaphore_signal(semaphore, n) != OK:
        raise errors.SemaphoreOverflow(f"signal({inc}): the value {self.value} would exceed {SEMAPHORE_MAX}; it is unchanged")
    return 0


def has_waiters(Semaphore self not None):
    """Return whether a thread sleeps in it.  Killed waiters may still be registered: all are woken, and live ones register again."""
    cdef semaphore_t* semaphore = <semaphore_t*>changeable(self, "look")
    cdef int looks_left = N_LOOKS
    if load_seq_cst_u64(&semaphore.channel) >> 32 == 0:
        return False
    channel_notify(&semaphore.channel, ALL_WAITERS)
    while looks_left and load_seq_cst_u64(&semaphore.channel) >> 32 == 0:
        looks_left -= 1
        with nogil:
            pause_ns(LOOK_NS)
        semaphore = <semaphore_t*>changeable(self, "look")
    return looks_left > 0


@cython.final
cdef class Semaphore(Waitable):
    """A counting semaphore: system-wide by name, of this process alone, or in a section.

    `wait` decrements the value, waiting while it is 0; `signal` increments it.  Without waiters both are one atomic operation.
    It has the methods of `threading.Semaphore` too.  In a section `SharedMemory.semaphore` makes one, and
    ``slots: shmem.Semaphore`` in the body of a `Struct` class is a field.

    Parameters
    ----------
    name : str, optional
        System-wide: 1 to 200 of the characters A-Z a-z 0-9 . _ -.  It persists, with its value, until `unlink` or the next boot.
        None: of this process alone.
    value : int
        The initial value, at most 2**31 - 1.  An existing name keeps its value, and this one is ignored.
    permissions : int
        Permission bits of the name's file, at creation.
    trust_owner : bool
        Accept a file that belongs to another user.

    Raises
    ------
    UntrustedOwner
        The file belongs to another user, and `trust_owner` was not given.
    NotASection
        The file of that name is not a semaphore; it was not modified.

    Examples
    --------
    >>> import shmem
    >>> slots = shmem.Semaphore(value=1)
    >>> slots.wait(), slots.wait(timeout=0)
    (True, False)
    >>> slots.signal(3)
    >>> slots.value
    3
    """
    __shmem_field__ = make_words("semaphore", sizeof(semaphore_t), Semaphore, TYPE_SEMAPHORE, NAMED_SEMAPHORE)

    @cython.binding(False)            # with a docstring, so that it has a signature: see setup.py
    def __init__(self, name=None, value=0, *, permissions=0o600, trust_owner=False):
        """Initialize the object: see its class."""
        cdef named_state_t initial
        memset(&initial, 0, sizeof(initial))
        initial.semaphore.value = _value_argument(value)
        open_or_stand_alone(self, name, "value", &initial, permissions, trust_owner)

    def wait(self, timeout=None):
        """Decrement the value; wait while it is 0.

        Parameters
        ----------
        timeout : float, optional
            In seconds; None waits without end, 0 does not wait.

        Returns
        -------
        bool
            False when the time passed; the value was not changed then.
        """
        cdef semaphore_t* semaphore = <semaphore_t*>changeable(self, "wait")
        cdef int64_t deadline_ns = FOREVER
        if timeout is not None:
            deadline_ns = deadline_argument(timeout)
        return semaphore_try(semaphore) == OK or _semaphore_wait(self, semaphore, deadline_ns)

    def signal(self, inc=1):
        """Add `inc` to the value, and wake that many waiters.

        Raises
        ------
        SemaphoreOverflow
            The value would exceed 2**31 - 1; it is unchanged.
        """
        _semaphore_signal(self, inc)

    def acquire(self, blocking=True, timeout=None):
        """Do `wait`, with the arguments of `threading.Semaphore`."""
        cdef semaphore_t* semaphore = <semaphore_t*>changeable(self, "acquire")
        cdef int64_t deadline_ns = FOREVER
        if blocking is not True or timeout is not None:
            deadline_ns = blocking_argument(blocking, timeout, None)
        return semaphore_try(semaphore) == OK or _semaphore_wait(self, semaphore, deadline_ns)

    def release(self, n=1):
        """Do `signal`, with the arguments of `threading.Semaphore`."""
        _semaphore_signal(self, n)

    @property
    def value(self):
        """The value at this moment."""
        return load_seq_cst_u32(&(<semaphore_t*>readable(self)).value)

    def __enter__(self):
        cdef semaphore_t* semaphore = <semaphore_t*>changeable(self, "wait")
        return semaphore_try(semaphore) == OK or _semaphore_wait(self, semaphore, FOREVER)

    def __exit__(self, exc_type, exc, traceback):
        _semaphore_signal(self, ONE)

    def _state_text(self):
        return ", closed" if self.words == NULL else ", freed" if is_gone(self) else f", value {self.value}"


def place_semaphore(Memory memory not None, value, name):
    """See `SharedMemory.semaphore`."""
    return place_new(Semaphore.__new__(Semaphore), memory, name, _value_argument(value))
