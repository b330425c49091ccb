# cython: language_level=3
from libc.stdint cimport uint64_t
from shmem._base.section cimport section_t

# Make `section` describe the image of a section at `base`: no process is in it, `fd` is the file that it lies in, or -1.
# 0, or ENOMEM.  The header's counts and offsets were checked by the caller.
cdef int image_begin(section_t* section, char* base, uint64_t size_bytes, int fd) noexcept nogil
cdef void image_end(section_t* section) noexcept nogil
