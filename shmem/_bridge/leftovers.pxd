# cython: language_level=3
cdef int remove_leftovers_once() except -1
cdef bint made_room(int status) except -1
