# cython: language_level=3, auto_pickle=False
"""The Python class Event."""

cimport cython
from libc.stdint cimport int64_t
from libc.string cimport memset
from shmem._base.deadline cimport FOREVER
from shmem._base.layout cimport EVENT_SIGNALED, NAMED_EVENT, TYPE_EVENT, event_t, named_state_t
from shmem._base.section cimport section_t
from shmem._base.status cimport OK
from shmem._bridge.calls cimport deadline_argument
from shmem._core cimport Memory
from shmem._objects.waitables cimport (
    Waitable, changeable, is_gone, make_words, open_or_stand_alone, place_new, prepare_wait, readable, wait, wait_call_t)
from shmem._sync.primitives cimport event_is_signaled, event_reset, event_sequence, event_signal, event_wait


cdef int _event_step(section_t* section, void* request) noexcept nogil:
    cdef wait_call_t* call = <wait_call_t*>request
    return event_wait(<event_t*>call.words, call.where, call.since, call.deadline_ns, True)


cdef bint _event_wait(Event self, event_t* event, int64_t deadline_ns) except -1:
    """Wait without the GIL; return False when the deadline passed."""
    cdef wait_call_t call
    cdef section_t* section = prepare_wait(self, &call, event, deadline_ns)
    call.since = event_sequence(event)
    return wait(self, section, _event_step, &call) == OK


@cython.final
cdef class Event(Waitable):
    """An event: system-wide by name, of this process alone, or in a section.

    While it is signaled, no thread waits for it.  A signal releases every thread that is waiting, even if a reset follows
    immediately.  It has the methods of `threading.Event` too.  In a section `SharedMemory.event` makes
    one, and ``ready: shmem.Event`` in the body of a `Struct` class is a field.

    Parameters
    ----------
    name : str, optional
        System-wide, as for `Semaphore`.  None: of this process alone.
    signaled : bool
        The initial state.  An existing name keeps its state, and this one is ignored.
    permissions, trust_owner
        As for `Semaphore`.

    Raises
    ------
    UntrustedOwner, NotASection
        As for `Semaphore`.

    Examples
    --------
    >>> import shmem
    >>> ready = shmem.Event()
    >>> ready.wait(timeout=0)
    False
    >>> ready.signal()
    >>> ready.wait()
    True
    """
    __shmem_field__ = make_words("event", sizeof(event_t), Event, TYPE_EVENT, NAMED_EVENT)

    @cython.binding(False)            # with a docstring, so that it has a signature: see setup.py
    def __init__(self, name=None, signaled=False, *, permissions=0o600, trust_owner=False):
        """Initialize the object: see its class."""
        cdef named_state_t initial
        memset(&initial, 0, sizeof(initial))
        initial.event.word = EVENT_SIGNALED if signaled else 0
        open_or_stand_alone(self, name, "signaled", &initial, permissions, trust_owner)

    def wait(self, timeout=None):
        """Wait until it is signaled.

        Parameters
        ----------
        timeout : float, optional
            In seconds; None waits without end, 0 does not wait.

        Returns
        -------
        bool
            False when the time passed.
        """
        cdef event_t* event = <event_t*>changeable(self, "wait")
        cdef int64_t deadline_ns = FOREVER
        if timeout is not None:
            deadline_ns = deadline_argument(timeout)
        return event_is_signaled(event) or _event_wait(self, event, deadline_ns)

    def signal(self):
        """Signal it: all waiters return, and later waits return at once until `reset`."""
        event_signal(<event_t*>changeable(self, "signal"))

    def reset(self):
        """Reset it, so that `wait` waits again."""
        event_reset(<event_t*>changeable(self, "reset"))

    def set(self):
        """Do `signal`, under its name in `threading.Event`."""
        event_signal(<event_t*>changeable(self, "set"))

    def clear(self):
        """Do `reset`, under its name in `threading.Event`."""
        event_reset(<event_t*>changeable(self, "clear"))

    def is_set(self):
        """Return whether it is signaled."""
        return event_is_signaled(<event_t*>readable(self))

    def _state_text(self):
        if self.words == NULL or is_gone(self):
            return ", closed" if self.words == NULL else ", freed"
        return ", signaled" if self.is_set() else ", not signaled"


def place_event(Memory memory not None, signaled, name):
    """See `SharedMemory.event`."""
    return place_new(Event.__new__(Event), memory, name, EVENT_SIGNALED if signaled else 0)
