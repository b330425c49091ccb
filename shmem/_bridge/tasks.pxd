# cython: language_level=3
"""Which task of a thread is running: an asyncio task or a greenlet, told apart by its `contextvars` context.

A thread's locks are reentrant.  Tasks take turns in one thread, so a task may meet a lock that another one holds while it is suspended.
Each task runs in a context of its own, and comparing the thread's current one takes one load.  A context in which another one was entered
(`Context.run`) encloses it: the code in it runs inside the same call, so it is no other task.

A thread, or a greenlet, that has never used a context gets one here, so that it differs from others.
"""

from libc.stdint cimport uint64_t

cdef extern from *:
    """
    #ifndef SHMEM_TASKS
    #define SHMEM_TASKS
    #include <stdint.h>
    typedef struct { PyObject_HEAD PyObject *prev; } shmem_context_t;     /* the head of PyContext in CPython 3.7 and newer */
    static PyObject *shmem_context_marker = NULL;
    static uint64_t shmem_context(void) {
        PyThreadState *thread = PyThreadState_Get();
        if (thread->context == NULL) {
            PyObject *token = NULL;
            if (shmem_context_marker == NULL) shmem_context_marker = PyContextVar_New("shmem", NULL);
            if (shmem_context_marker != NULL) token = PyContextVar_Set(shmem_context_marker, Py_None);
            if (token == NULL) PyErr_Clear();
            Py_XDECREF(token);
        }
        return (uint64_t)(uintptr_t)thread->context;
    }
    /* whether the current context, or one that encloses it, has the address, of which only the bits in `mask` are known */
    static int shmem_context_is_inside(uint64_t address, uint64_t mask) {
        PyObject *context = PyThreadState_Get()->context;
        while (context != NULL && PyContext_CheckExact(context)) {
            if ((((uint64_t)(uintptr_t)context ^ address) & mask) == 0) return 1;
            context = ((shmem_context_t *)context)->prev;
        }
        return 0;
    }
    #endif
    """
    # The address of the current context; 0 if there is no memory for one
    uint64_t task_here "shmem_context" () noexcept
    bint task_is_inside "shmem_context_is_inside" (uint64_t address, uint64_t mask) noexcept
