# cython: language_level=3
"""The system calls of the library, which are made nowhere else.  This is the page for Linux.

What the library requires, and what Linux guarantees:

* *Open-file-description locks* (``F_OFD_SETLK``) belong to the description, not to the process: two
  descriptions in one process exclude each other, and a description that a mapping keeps alive
  keeps its locks after its descriptor is closed.  The kernel drops them when the last descriptor and the
  last mapping are gone, and so when the process has died for whatever reason.
* *Locks of the process* (``F_SETLK``) conflict with those of descriptions.  A forked child does not inherit them.  The kernel drops them
  when the process ends, and also when it closes any descriptor of the file.
* ``FUTEX_WAIT`` compares and sleeps in one step; never PRIVATE, since the word lies in a shared page.
* ``fallocate`` provides backing without changing existing content.  Where the file system does not support it, glibc's
  ``posix_fallocate`` would write, over stores of other processes.  The system call is therefore made directly, and
  zeros are written only beyond what is reserved.
* Pages with ``MADV_WIPEONFORK`` are zeroed in a child; pages with ``MADV_DONTFORK`` are not mapped in it.
"""

from libc.errno cimport EACCES, EAGAIN, EEXIST, EFBIG, EINTR, EINVAL, ELOOP, ENAMETOOLONG, ENOENT, ENOSYS, EOPNOTSUPP, EROFS, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy, memmove, memset, strlen, strrchr

from shmem._base cimport debug as _debug
from shmem._base.debug cimport PROCESS_MUTEX, debug_dropped, debug_level, debug_may_take, debug_sleep, debug_taken

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int CLOCK_BOOTTIME, CLOCK_MONOTONIC, CLOCK_THREAD_CPUTIME_ID
    int clock_gettime(int clock, timespec* now)
    int nanosleep(const timespec* duration, timespec* left)

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)
    int close(int fd)
    int ftruncate(int fd, int64_t length)
    int fsync(int fd)
    int unlink(const char* path)
    int64_t readlinkat(int folder_fd, const char* path, char* target, size_t size_bytes)
    int linkat(int from_fd, const char* from_path, int to_fd, const char* to_path, int flags)
    int64_t pread(int fd, void* buffer, size_t count, int64_t offset)
    int64_t pwrite(int fd, const void* buffer, size_t count, int64_t offset)
    int getpid()
    uint32_t geteuid()

cdef extern from "<sched.h>" nogil:
    ctypedef struct cpu_set_t:
        pass
    int sched_getaffinity(int pid, size_t size_bytes, cpu_set_t* processors)
    int CPU_COUNT(cpu_set_t* processors)

cdef extern from "<sys/syscall.h>" nogil:
    long SYS_futex

cdef extern from *:
    """
    #include <sys/syscall.h>
    #include <unistd.h>
    #define PREPARE_BARRIER 16                  /* MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, since Linux 4.14; headers may be older */
    #define BARRIER_ON_ALL_THREADS 8            /* MEMBARRIER_CMD_PRIVATE_EXPEDITED */
    #ifdef SYS_membarrier
    static int membarrier(int command) { return (int)syscall(SYS_membarrier, command, 0, 0); }
    #else
    static int membarrier(int command) { return -1; }
    #endif
    """
    int PREPARE_BARRIER
    int BARRIER_ON_ALL_THREADS
    int membarrier(int command) noexcept nogil

cdef extern from "<linux/futex.h>" nogil:
    int FUTEX_WAIT
    int FUTEX_WAKE

cdef extern from "<sys/random.h>" nogil:
    int64_t getrandom(void* buffer, size_t length, unsigned int flags)

cdef extern from "<fcntl.h>" nogil:
    struct flock:
        short l_type
        short l_whence
        int64_t l_start
        int64_t l_len
        int l_pid
    int O_RDWR, O_RDONLY, O_CREAT, O_EXCL, O_CLOEXEC, O_DIRECTORY, O_PATH, O_NOFOLLOW, O_NONBLOCK, O_TMPFILE
    int AT_FDCWD, AT_SYMLINK_FOLLOW, AT_EMPTY_PATH
    int F_SETLK, F_OFD_SETLK, F_OFD_SETLKW, F_OFD_GETLK
    short F_RDLCK, F_WRLCK, F_UNLCK
    int FALLOC_FL_PUNCH_HOLE, FALLOC_FL_KEEP_SIZE
    int open(const char* path, int flags, ...)
    int fcntl(int fd, int command, ...)
    int fallocate(int fd, int mode, int64_t offset, int64_t length)

cdef extern from "<sys/stat.h>" nogil:
    struct stat_t "stat":
        uint64_t st_dev
        uint64_t st_ino
        uint64_t st_nlink
        uint32_t st_uid
        unsigned int st_mode
        int64_t st_size
    int fstat(int fd, stat_t* facts)
    int fchmod(int fd, unsigned int mode)
    int stat(const char* path, stat_t* facts)
    bint S_ISREG(unsigned int mode)
    bint S_ISLNK(unsigned int mode)

cdef extern from "<sys/resource.h>" nogil:
    struct rlimit:
        uint64_t rlim_cur
    int RLIMIT_FSIZE
    uint64_t RLIM_INFINITY
    int getrlimit(int resource, rlimit* limit)

cdef extern from "<sys/vfs.h>" nogil:
    struct statfs_t "statfs":
        long f_type
    int fstatfs(int fd, statfs_t* facts)

cdef extern from "<sys/mman.h>" nogil:
    int PROT_NONE, PROT_READ, PROT_WRITE
    int MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MAP_FIXED, MAP_FIXED_NOREPLACE, MAP_NORESERVE
    int MADV_DONTFORK, MADV_WIPEONFORK, MS_SYNC
    void* MAP_FAILED
    void* mmap(void* address, size_t length, int protection, int flags, int fd, int64_t offset)
    int munmap(void* address, size_t length)
    int madvise(void* address, size_t length, int advice)
    int msync(void* address, size_t length, int flags)

cdef extern from "<signal.h>" nogil:
    int SIGKILL

cdef extern from "<sys/prctl.h>" nogil:
    int PR_SET_PDEATHSIG
    int prctl(int option, ...)

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef unsigned int pthread_key_t
    int pthread_mutex_init(pthread_mutex_t* mutex, const void* attributes)
    int pthread_mutex_lock(pthread_mutex_t* mutex)
    int pthread_mutex_unlock(pthread_mutex_t* mutex)
    int pthread_atfork(void (*prepare)() noexcept nogil, void (*parent)() noexcept nogil, void (*child)() noexcept nogil)
    int pthread_key_create(pthread_key_t* key, void (*destructor)(void*) noexcept nogil)
    int pthread_setspecific(pthread_key_t key, const void* value)

cdef enum:
    LIVENESS_PAGE_BYTES = 4096
    ZEROS_BYTES = 65536
    PATH_BYTES = 4096
    MAX_LINKS = 40
    MIN_PIECE_BYTES = 65536              # for which space is allocated, or given back, by one system call
    MIN_PAUSE_NS = 50000                 # between two attempts
    MAX_PAUSE_NS = 10000000
    MAX_PIECE_BYTES = 16 << 20
    MIN_PUNCH_BYTES = 1 << 30

cdef char _zeros[ZEROS_BYTES]            # not on the stack: a thread's stack may be smaller

system_folder = b"/dev/shm"


# -- time and waiting ---------------------------------------------------------------------------------

cdef int64_t now_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1000000000 + now.tv_nsec


cdef uint64_t boot_ns() noexcept nogil:
    """Return the nanoseconds since the system was booted, those in which it was suspended included."""
    cdef timespec now
    clock_gettime(CLOCK_BOOTTIME, &now)
    return <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec


cdef uint64_t _processor_ns() noexcept nogil:
    """Return the processor time that this thread has used."""
    cdef timespec now
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now)
    return <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec


_debug.debug_clock = _processor_ns


cdef void pause_ns(int64_t duration_ns) noexcept nogil:
    cdef timespec duration
    duration.tv_sec = duration_ns // 1000000000
    duration.tv_nsec = duration_ns % 1000000000
    nanosleep(&duration, NULL)


cdef void pause_longer(int64_t* waited_ns) noexcept nogil:
    """Pause between two attempts, each time for half of what was waited before, within bounds; a signal ends the pause."""
    cdef int64_t duration_ns = waited_ns[0] >> 1
    duration_ns = MIN_PAUSE_NS if duration_ns < MIN_PAUSE_NS else MAX_PAUSE_NS if duration_ns > MAX_PAUSE_NS else duration_ns
    pause_ns(duration_ns)
    waited_ns[0] += duration_ns


cdef int futex_wait(uint32_t* word, uint32_t expected, int64_t timeout_ns) noexcept nogil:
    """Sleep while `word` holds `expected`.  Return 0 when woken or if it changed, ETIMEDOUT, or EINTR after a signal."""
    cdef timespec timeout
    if debug_level:
        debug_sleep()
    timeout.tv_sec = timeout_ns // 1000000000
    timeout.tv_nsec = timeout_ns % 1000000000
    if syscall(SYS_futex, word, FUTEX_WAIT, expected, &timeout, NULL, 0) == 0 or errno == EAGAIN:
        return 0
    return errno


cdef int futex_wake(uint32_t* word, int n_threads) noexcept nogil:
    """Wake up to `n_threads` sleepers; return how many were woken."""
    return <int>syscall(SYS_futex, word, FUTEX_WAKE, n_threads, NULL, NULL, 0)


cdef bint barrier_prepare() noexcept nogil:
    """Prepare this process and its children for `barrier_on_all_threads`; False if the system has no such call.

    With several threads the first call takes up to some 20 ms.
    """
    return membarrier(PREPARE_BARRIER) == 0


cdef bint barrier_on_all_threads() noexcept nogil:
    """Make every thread of this process execute a memory barrier, wherever it is; return whether that was done."""
    return membarrier(BARRIER_ON_ALL_THREADS) == 0 or (membarrier(PREPARE_BARRIER) == 0 and membarrier(BARRIER_ON_ALL_THREADS) == 0)


# -- files --------------------------------------------------------------------------------------------

cdef int _own_link_target(const char* path, char* target) noexcept nogil:
    """Read where a symbolic link of this user leads: ELOOP if it is another user's.

    Owner and target are read through one descriptor, and so belong to the same link.  EAGAIN: the path is not a link by now.
    """
    cdef stat_t link
    cdef int64_t n = -1
    cdef size_t n_folder = 0
    cdef const char* slash = strrchr(path, b"/")
    cdef int status = 0, fd = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC)
    if fd < 0:
        return errno
    if fstat(fd, &link) != 0 or (S_ISLNK(link.st_mode) and link.st_uid != geteuid()):
        status = ELOOP
    elif not S_ISLNK(link.st_mode):
        status = EAGAIN                  # not a link by now
    else:
        n = readlinkat(fd, b"", target, PATH_BYTES)
        if n < 0 or n >= PATH_BYTES:
            status = ENAMETOOLONG
    close(fd)
    if status != 0:
        return status
    target[n] = 0
    if target[0] != b"/" and slash != NULL:
        n_folder = slash - path + 1
        if n_folder + n >= PATH_BYTES:
            return ENAMETOOLONG
        memmove(target + n_folder, target, n + 1)
        memcpy(target, path, n_folder)
    return 0


cdef int file_set_permissions(int fd, int permissions) noexcept nogil:
    """Set exactly these permissions: those that a file is created with are cut by the umask."""
    return 0 if fchmod(fd, permissions) == 0 else errno


cdef int _made(int fd, int permissions) noexcept nogil:
    """Finish a file that was just created, or close it."""
    cdef int status = errno if fd < 0 else file_set_permissions(fd, permissions)
    if status != 0 and fd >= 0:
        close(fd)
    return status


cdef int file_open(const char* path, bint create, int permissions, int* fd) noexcept nogil:
    """Open for reading and writing.  A symbolic link, and each one that it leads to, is followed only if it belongs to this user.

    With O_EXCL a file that was created is told from one that existed, whose permissions stay.  A folder that does not permit to create
    one may contain the file all the same.
    """
    cdef char places[2][PATH_BYTES]
    cdef const char* place = path
    cdef int n_links, status, refused = 0, flags = O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW
    for n_links in range(MAX_LINKS):
        if create:
            fd[0] = open(place, flags | O_CREAT | O_EXCL, permissions)
            if fd[0] >= 0:
                return _made(fd[0], permissions)
            refused = errno
            if refused != EEXIST and refused != EACCES and refused != EROFS:
                return refused
        fd[0] = open(place, flags)
        if fd[0] >= 0:
            return 0
        if errno == ENOENT and create:
            if refused != EEXIST:
                return refused
            continue                         # removed meanwhile
        if errno != ELOOP:
            return errno
        status = _own_link_target(place, places[n_links & 1])
        if status == EAGAIN:
            continue
        if status != 0:
            return status
        place = places[n_links & 1]
    return ELOOP


cdef int file_create(const char* path, int permissions, int* fd) noexcept nogil:
    """Create a file and open it for reading and writing: EEXIST if the name is in use, even by a symbolic link."""
    fd[0] = open(path, O_CREAT | O_EXCL | O_NOFOLLOW | O_RDWR | O_CLOEXEC, permissions)
    return _made(fd[0], permissions)


cdef int file_open_unnamed(const char* folder, int permissions, int* fd) noexcept nogil:
    """Create a file without a name on the file system of `folder`.  It is removed with its descriptor, unless it is given a name."""
    fd[0] = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, permissions)
    return _made(fd[0], permissions)


cdef int file_give_name(int fd, const char* path) noexcept nogil:
    """Give a name to a file without one: EEXIST if the name is in use; ENOSYS if the kernel needs /proc and it is not mounted."""
    cdef char found[40]
    snprintf(found, sizeof(found), b"/proc/self/fd/%d", fd)
    if linkat(AT_FDCWD, found, AT_FDCWD, path, AT_SYMLINK_FOLLOW) == 0:
        return 0
    if errno != ENOENT:
        return errno
    if linkat(fd, b"", AT_FDCWD, path, AT_EMPTY_PATH) == 0:
        return 0
    return ENOSYS if errno == ENOENT else errno


cdef int file_reopen(int fd, const char* path, int* new_fd) noexcept nogil:
    """Open a new description of the same file.

    Without /proc it is opened by its path: ENOSYS if the path leads to another file by now, or to none.
    """
    cdef char link[40]
    cdef file_facts_t old, new
    cdef int status
    snprintf(link, sizeof(link), b"/proc/self/fd/%d", fd)
    new_fd[0] = open(link, O_RDWR | O_CLOEXEC)
    if new_fd[0] >= 0 or errno != ENOENT:
        return 0 if new_fd[0] >= 0 else errno
    status = file_open(path, False, 0, new_fd)
    if status != 0:
        new_fd[0] = -1
        return ENOSYS if status == ENOENT else status
    if file_facts(fd, &old) == 0 and file_facts(new_fd[0], &new) == 0 and old.device == new.device and old.inode == new.inode:
        return 0
    file_close(new_fd[0])
    new_fd[0] = -1
    return ENOSYS


cdef void file_close(int fd) noexcept nogil:
    if fd >= 0:
        close(fd)


cdef void _convert_facts(const stat_t* found, file_facts_t* facts) noexcept nogil:
    facts.device = found.st_dev
    facts.inode = found.st_ino
    facts.n_links = found.st_nlink
    facts.size_bytes = found.st_size
    facts.user = found.st_uid
    facts.is_regular = S_ISREG(found.st_mode)


cdef int file_facts(int fd, file_facts_t* facts) noexcept nogil:
    cdef stat_t found
    if fstat(fd, &found) != 0:
        return errno
    _convert_facts(&found, facts)
    return 0


cdef int path_facts(const char* path, file_facts_t* facts) noexcept nogil:
    cdef stat_t found
    if stat(path, &found) != 0:
        return errno
    _convert_facts(&found, facts)
    return 0


cdef int file_read(int fd, void* buffer, size_t size_bytes, uint64_t off, size_t* got) noexcept nogil:
    cdef int64_t n
    got[0] = 0
    while got[0] < size_bytes:
        n = pread(fd, <char*>buffer + got[0], size_bytes - got[0], <int64_t>(off + got[0]))
        if n < 0:
            if errno == EINTR:
                continue
            return errno
        if n == 0:
            break
        got[0] += n
    return 0


cdef bint _is_past_limit(uint64_t end_off) noexcept nogil:
    """Return whether a limit of this process forbids writing up to `end_off`.

    The kernel would refuse it too, but with a SIGXFSZ, which kills a process that does not ignore it.  Python ignores it, but a program
    may have restored the default.
    """
    cdef rlimit limit
    return getrlimit(RLIMIT_FSIZE, &limit) == 0 and limit.rlim_cur != RLIM_INFINITY and end_off > limit.rlim_cur


cdef bint _grows_past_limit(int fd, uint64_t end_off) noexcept nogil:
    cdef stat_t found
    return _is_past_limit(end_off) and (fstat(fd, &found) != 0 or end_off > <uint64_t>found.st_size)


cdef int file_write(int fd, const void* buffer, size_t size_bytes, uint64_t off) noexcept nogil:
    cdef int64_t n
    cdef size_t done = 0
    if _is_past_limit(off + size_bytes):
        return EFBIG
    while done < size_bytes:
        n = pwrite(fd, <const char*>buffer + done, size_bytes - done, <int64_t>(off + done))
        if n < 0:
            if errno == EINTR:
                continue
            return errno
        done += n
    return 0


cdef int file_set_size(int fd, uint64_t size_bytes) noexcept nogil:
    if _grows_past_limit(fd, size_bytes):
        return EFBIG
    while ftruncate(fd, <int64_t>size_bytes) != 0:
        if errno != EINTR:
            return errno
    return 0


cdef int _write_zeros(int fd, uint64_t start_off, uint64_t end_off) noexcept nogil:
    cdef uint64_t off = start_off
    cdef size_t n
    cdef int status = 0
    while off < end_off and status == 0:
        n = ZEROS_BYTES if end_off - off > <uint64_t>ZEROS_BYTES else end_off - off
        status = file_write(fd, _zeros, n, off)
        off += n
    return status


cdef int file_reserve(int fd, uint64_t start_off, uint64_t end_off, uint64_t reserved_off) noexcept nogil:
    """Provide backing for [start, end).

    Where the file system cannot allocate, zeros are written, but only from `reserved_off` on, because other processes may store below it.

    A file system may undo an allocation that a signal interrupts, and signals may come faster than a large one takes.  So space is
    allocated in pieces; an interrupted piece is tried again at half the size.
    """
    cdef uint64_t off = start_off, piece = MAX_PIECE_BYTES, n
    if end_off <= start_off:
        return 0
    if _grows_past_limit(fd, end_off):
        return EFBIG
    while off < end_off:
        n = piece if end_off - off > piece else end_off - off
        if fallocate(fd, 0, <int64_t>off, <int64_t>n) == 0:
            off += n
            if piece < MAX_PIECE_BYTES:
                piece *= 2
        elif errno == EINTR:
            piece = n // 2 if n // 2 > MIN_PIECE_BYTES else MIN_PIECE_BYTES
        elif errno != EOPNOTSUPP and errno != ENOSYS:
            return errno
        else:
            return _write_zeros(fd, off if off > reserved_off else reserved_off, end_off)
    return 0


cdef int file_give_back(int fd, uint64_t start_off, uint64_t end_off) noexcept nogil:
    """Return the backing of [start, end) to the file system, in pieces; it reads as zeros afterwards.

    The time depends on the backing and not on the length, and most of a long range has none.
    """
    cdef uint64_t off = start_off, n
    while off < end_off:
        n = ((end_off - off) >> 4) & ~<uint64_t>(MIN_PUNCH_BYTES - 1)        # complete pages
        if n < MIN_PUNCH_BYTES:
            n = MIN_PUNCH_BYTES if end_off - off > <uint64_t>MIN_PUNCH_BYTES else end_off - off
        if fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, <int64_t>off, <int64_t>n) == 0:
            off += n
        elif errno != EINTR:
            return errno
    return 0


cdef int file_sync(int fd) noexcept nogil:
    while fsync(fd) != 0:
        if errno != EINTR:
            return errno
    return 0


cdef int folder_sync(const char* folder) noexcept nogil:
    """Write the names in a folder to disk, since the sync of a file need not include its name.

    A folder that this process must not read, or whose file system does not support the call, is left to the kernel.
    """
    cdef int status = 0, fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    if fd < 0:
        return 0 if errno == EACCES or errno == ENOENT else errno
    status = file_sync(fd)
    close(fd)
    return 0 if status == EINVAL else status


cdef int file_remove(const char* path) noexcept nogil:
    return 0 if unlink(path) == 0 else errno


cdef uint64_t file_system_kind(int fd) noexcept nogil:
    cdef statfs_t facts
    return <uint32_t>facts.f_type if fstatfs(fd, &facts) == 0 else 0


cdef bint file_system_is_coherent(uint64_t kind) noexcept nogil:
    """Return whether mappings and locks are coherent between all processes that can open the file (statfs(2) lists the numbers)."""
    return not (kind == 0x6969             # NFS
                or kind == 0x0bd00bd0      # Lustre
                or kind == 0x01021997      # 9p
                or kind == 0xff534d42U or kind == 0xfe534d42U or kind == 0x517b    # CIFS, SMB
                or kind == 0x00c36400      # Ceph
                or kind == 0x47504653      # GPFS
                or kind == 0x01161970      # GFS2
                or kind == 0x7461636f      # OCFS2
                or kind == 0x5346414f or kind == 0x6b414653    # AFS
                or kind == 0x73757245)     # Coda


# -- byte locks ---------------------------------------------------------------------------------------

cdef void _describe_range(flock* request, short kind, uint64_t off, uint64_t n_bytes) noexcept nogil:
    memset(request, 0, sizeof(flock))
    request.l_type = kind
    request.l_start = <int64_t>off
    request.l_len = <int64_t>n_bytes


cdef int byte_lock(int fd, uint64_t off, bint shared) noexcept nogil:
    """Lock one byte through this description: EAGAIN if another one, or a process, holds it."""
    cdef flock request
    _describe_range(&request, F_RDLCK if shared else F_WRLCK, off, 1)
    if fcntl(fd, F_OFD_SETLK, &request) == 0:
        return 0
    return EAGAIN if errno == EACCES else errno


cdef int byte_lock_as_process(int fd, uint64_t off) noexcept nogil:
    """Lock one byte for this process, until it closes any descriptor of the file: EAGAIN if another process, or a description, holds it."""
    cdef flock request
    _describe_range(&request, F_WRLCK, off, 1)
    if fcntl(fd, F_SETLK, &request) == 0:
        return 0
    return EAGAIN if errno == EACCES else errno


cdef void byte_unlock(int fd, uint64_t off, bint as_process) noexcept nogil:
    """Give up the lock of this process, or of this description, on one byte."""
    cdef flock request
    _describe_range(&request, F_UNLCK, off, 1)
    fcntl(fd, F_SETLK if as_process else F_OFD_SETLK, &request)


cdef int byte_wait(int fd, uint64_t off, bint shared) noexcept nogil:
    """Wait for one byte and lock it through this description: EINTR after a signal.

    A description that locks the byte shared may be open for reading only.
    """
    cdef flock request
    _describe_range(&request, F_RDLCK if shared else F_WRLCK, off, 1)
    return 0 if fcntl(fd, F_OFD_SETLKW, &request) == 0 else errno


cdef int byte_range_is_locked(int fd, uint64_t off, uint64_t n_bytes, bint* is_locked) noexcept nogil:
    """Find out whether any other description holds a lock in the range.  A description never sees its own locks."""
    cdef flock request
    _describe_range(&request, F_WRLCK, off, n_bytes)
    if fcntl(fd, F_OFD_GETLK, &request) != 0:
        return errno
    is_locked[0] = request.l_type != F_UNLCK
    return 0


cdef int liveness_take(int fd, const char* path, uint64_t off, bint shared, bint inherit, bint* keeps_fd, void** page,
                       int* kept_fd) noexcept nogil:
    """Lock a byte, exclusively or shared, for as long as this address space exists: EAGAIN if another process holds it.

    The lock is taken through a new description; one page is mapped through it, and the descriptor is closed.
    On a file system that drops the lock with the descriptor (overlayfs maps the file beneath), the descriptor is kept instead,
    and `keeps_fd` records that.  With `inherit`, a child that is forked next keeps the lock too.
    """
    cdef int own_fd = -1, status
    cdef bint is_locked = False
    cdef void* mapped
    page[0] = NULL
    kept_fd[0] = -1
    status = file_reopen(fd, path, &own_fd)
    if status != 0:
        return status
    status = byte_lock(own_fd, off, shared)
    if status != 0:
        close(own_fd)
        return status
    if keeps_fd[0]:
        kept_fd[0] = own_fd
        return 0
    mapped = mmap(NULL, LIVENESS_PAGE_BYTES, PROT_NONE, MAP_SHARED, own_fd, 0)
    if mapped == MAP_FAILED:
        status = errno
        close(own_fd)
        return status
    if not inherit:
        madvise(mapped, LIVENESS_PAGE_BYTES, MADV_DONTFORK)
    close(own_fd)
    status = byte_range_is_locked(fd, off, 1, &is_locked)
    if status == 0 and is_locked:
        page[0] = mapped
        return 0
    munmap(mapped, LIVENESS_PAGE_BYTES)
    if status != 0:
        return status
    keeps_fd[0] = True
    return liveness_take(fd, path, off, shared, inherit, keeps_fd, page, kept_fd)


cdef void liveness_drop(void* page, int kept_fd) noexcept nogil:
    if page != NULL:
        munmap(page, LIVENESS_PAGE_BYTES)
    if kept_fd >= 0:
        close(kept_fd)


cdef void liveness_do_not_inherit(void* page) noexcept nogil:
    if page != NULL:
        madvise(page, LIVENESS_PAGE_BYTES, MADV_DONTFORK)


# -- memory -------------------------------------------------------------------------------------------

cdef int memory_map(int fd, uint64_t size_bytes, bint writable, uint64_t address, char** base) noexcept nogil:
    """Map the file from its start: at any address if `address` is 0, otherwise at `address`, or EEXIST."""
    cdef int flags = MAP_SHARED
    cdef void* mapped
    if address:
        flags |= MAP_FIXED_NOREPLACE
    mapped = mmap(<void*>address, size_bytes, PROT_READ | PROT_WRITE if writable else PROT_READ, flags, fd, 0)
    if mapped == MAP_FAILED:
        return errno
    if address and <uint64_t>mapped != address:      # a kernel older than the flag treats the address as a hint
        munmap(mapped, size_bytes)
        return EEXIST
    base[0] = <char*>mapped
    return 0


cdef void memory_unmap(void* base, uint64_t size_bytes) noexcept nogil:
    if base != NULL:
        munmap(base, size_bytes)


cdef int memory_detach(char* base, uint64_t size_bytes, bint writable) noexcept nogil:
    """Put zeroed private memory in place of mapped pages, so that they can be accessed after their file was truncated: 0 or an errno."""
    cdef void* mapped
    if size_bytes == 0:
        return 0
    mapped = mmap(base, size_bytes, PROT_READ | PROT_WRITE if writable else PROT_READ,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0)
    return errno if mapped == MAP_FAILED else 0


cdef int memory_sync(void* base, uint64_t size_bytes) noexcept nogil:
    return 0 if msync(base, size_bytes, MS_SYNC) == 0 else errno


cdef void* memory_wiped_by_fork(size_t size_bytes) noexcept nogil:
    """Return zeroed private pages, which a fork zeroes in the child; NULL if there is no memory."""
    cdef void* mapped = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if mapped == MAP_FAILED:
        return NULL
    if madvise(mapped, size_bytes, MADV_WIPEONFORK) != 0:
        munmap(mapped, size_bytes)
        return NULL
    return mapped


# -- the process --------------------------------------------------------------------------------------

cdef uint64_t process_id() noexcept nogil:
    return getpid()


cdef uint32_t processor_count() noexcept nogil:
    """Return the number of processors that this process may run on; 2 if it is unknown."""
    cdef cpu_set_t processors
    return <uint32_t>CPU_COUNT(&processors) if sched_getaffinity(0, sizeof(processors), &processors) == 0 else 2


cdef uint32_t user_id() noexcept nogil:
    return geteuid()


cdef void kill_with_parent() noexcept nogil:
    """Have the kernel kill this process when the thread that made it ends."""
    prctl(PR_SET_PDEATHSIG, SIGKILL)


cdef int random_bytes(void* buffer, size_t size_bytes) noexcept nogil:
    while getrandom(buffer, size_bytes, 0) != <int64_t>size_bytes:
        if errno != EINTR:
            return errno
    return 0


cdef int boot_id(char* text, size_t size_bytes) noexcept nogil:
    """Read the kernel's name for this boot, NUL-terminated and without newline; empty if /proc is not mounted.  For diagnostics only."""
    cdef size_t got = 0
    cdef int fd = open(b"/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC)
    memset(text, 0, size_bytes)
    if fd < 0:
        return 0 if errno == ENOENT else errno
    cdef int status = file_read(fd, text, size_bytes - 1, 0, &got)
    close(fd)
    got = strlen(text)
    if got > 0 and text[got - 1] == b"\n":
        text[got - 1] = 0
    return status


cdef pthread_mutex_t _process_mutex
cdef pthread_key_t _thread_key
pthread_mutex_init(&_process_mutex, NULL)


cdef void process_mutex_lock() noexcept nogil:
    """Lock the mutex that guards opening, closing and the list of sections.  Its owner never needs the GIL."""
    if debug_level:
        debug_may_take(PROCESS_MUTEX)
    pthread_mutex_lock(&_process_mutex)
    if debug_level:
        debug_taken(PROCESS_MUTEX)


cdef void process_mutex_unlock() noexcept nogil:
    if debug_level:
        debug_dropped(PROCESS_MUTEX)
    pthread_mutex_unlock(&_process_mutex)


cdef int at_fork(fork_handler_t before, fork_handler_t in_parent, fork_handler_t in_child) noexcept nogil:
    return pthread_atfork(before, in_parent, in_child)


cdef int at_thread_end(thread_end_t handler) noexcept nogil:
    """Register `handler`, which every watched thread calls as it ends.  Called once per process."""
    return pthread_key_create(&_thread_key, handler)


cdef void watch_thread() noexcept nogil:
    pthread_setspecific(_thread_key, <void*>1)
