# cython: language_level=3
"""The interface to the operating system, implemented in `_base/system.pyx`.  Statuses are 0 or an errno."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

ctypedef struct file_facts_t:
    uint64_t device
    uint64_t inode
    uint64_t n_links
    uint64_t size_bytes
    uint32_t user
    bint is_regular

ctypedef void (*thread_end_t)(void*) noexcept nogil
ctypedef void (*fork_handler_t)() noexcept nogil

cdef const char* system_folder               # /dev/shm, where files are memory

# time and waiting
cdef int64_t now_ns() noexcept nogil
cdef uint64_t boot_ns() noexcept nogil
cdef void pause_ns(int64_t duration_ns) noexcept nogil
cdef void pause_longer(int64_t* waited_ns) noexcept nogil
cdef int futex_wait(uint32_t* word, uint32_t expected, int64_t timeout_ns) noexcept nogil
cdef int futex_wake(uint32_t* word, int n_threads) noexcept nogil
cdef bint barrier_prepare() noexcept nogil
cdef bint barrier_on_all_threads() noexcept nogil

# files
cdef int file_open(const char* path, bint create, int permissions, int* fd) noexcept nogil
cdef int file_set_permissions(int fd, int permissions) noexcept nogil
cdef int file_create(const char* path, int permissions, int* fd) noexcept nogil
cdef int file_open_unnamed(const char* folder, int permissions, int* fd) noexcept nogil
cdef int file_give_name(int fd, const char* path) noexcept nogil
cdef int file_reopen(int fd, const char* path, int* new_fd) noexcept nogil
cdef void file_close(int fd) noexcept nogil
cdef int file_facts(int fd, file_facts_t* facts) noexcept nogil
cdef int path_facts(const char* path, file_facts_t* facts) noexcept nogil
cdef int file_read(int fd, void* buffer, size_t size_bytes, uint64_t off, size_t* got) noexcept nogil
cdef int file_write(int fd, const void* buffer, size_t size_bytes, uint64_t off) noexcept nogil
cdef int file_set_size(int fd, uint64_t size_bytes) noexcept nogil
cdef int file_reserve(int fd, uint64_t start_off, uint64_t end_off, uint64_t reserved_off) noexcept nogil
cdef int file_give_back(int fd, uint64_t start_off, uint64_t end_off) noexcept nogil
cdef int file_sync(int fd) noexcept nogil
cdef int folder_sync(const char* folder) noexcept nogil
cdef int file_remove(const char* path) noexcept nogil
cdef uint64_t file_system_kind(int fd) noexcept nogil
cdef bint file_system_is_coherent(uint64_t kind) noexcept nogil

# byte locks that a killed process drops
cdef int byte_lock(int fd, uint64_t off, bint shared) noexcept nogil
cdef int byte_lock_as_process(int fd, uint64_t off) noexcept nogil
cdef void byte_unlock(int fd, uint64_t off, bint as_process) noexcept nogil
cdef int byte_wait(int fd, uint64_t off, bint shared) noexcept nogil
cdef int byte_range_is_locked(int fd, uint64_t off, uint64_t n_bytes, bint* is_locked) noexcept nogil
cdef int liveness_take(int fd, const char* path, uint64_t off, bint shared, bint inherit, bint* keeps_fd, void** page,
                       int* kept_fd) noexcept nogil
cdef void liveness_drop(void* page, int kept_fd) noexcept nogil
cdef void liveness_do_not_inherit(void* page) noexcept nogil

# memory
cdef int memory_map(int fd, uint64_t size_bytes, bint writable, uint64_t address, char** base) noexcept nogil
cdef void memory_unmap(void* base, uint64_t size_bytes) noexcept nogil
cdef int memory_detach(char* base, uint64_t size_bytes, bint writable) noexcept nogil
cdef int memory_sync(void* base, uint64_t size_bytes) noexcept nogil
cdef void* memory_wiped_by_fork(size_t size_bytes) noexcept nogil

# the process
cdef uint64_t process_id() noexcept nogil
cdef uint32_t processor_count() noexcept nogil
cdef uint32_t user_id() noexcept nogil
cdef void kill_with_parent() noexcept nogil
cdef int random_bytes(void* buffer, size_t size_bytes) noexcept nogil
cdef int boot_id(char* text, size_t size_bytes) noexcept nogil
cdef void process_mutex_lock() noexcept nogil
cdef void process_mutex_unlock() noexcept nogil
cdef int at_fork(fork_handler_t before, fork_handler_t in_parent, fork_handler_t in_child) noexcept nogil
cdef int at_thread_end(thread_end_t handler) noexcept nogil
cdef void watch_thread() noexcept nogil
