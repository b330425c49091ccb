# cython: language_level=3
from libc.stdint cimport uint64_t
from shmem._base.section cimport section_t

# Make `section` describe the image of a section at `base`, to which no process is attached; `fd` is the file that contains it, or -1.
# Return 0 or ENOMEM.  The caller must have checked the counts and offsets in the header.
cdef int image_begin(section_t* section, char* base, uint64_t size_bytes, int fd) noexcept nogil
cdef void image_end(section_t* section) noexcept nogil
