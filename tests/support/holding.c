/* Preloaded by tests: system calls that wait.

   HOLD_OPENING, HOLD_MSYNC, HOLD_FSYNC: a path.  The first call that would lock the opening byte, write more than 64 KiB of mapped memory to
   disk, or write a file to disk, creates that file, and waits until the file is removed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define OPENING_BYTE 0x2000000000000000ll

static void hold(const char *name, int *has_waited) {
    static const struct timespec pause = {0, 1000000};
    const char *path = getenv(name);
    if (!path || *has_waited) return;
    *has_waited = 1;
    close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    while (access(path, F_OK) == 0) nanosleep(&pause, NULL);
}

int fcntl64(int fd, int command, ...) {
    static int (*real)(int, int, ...);
    static int has_waited;
    va_list rest;
    void *argument;
    va_start(rest, command);
    argument = va_arg(rest, void *);
    va_end(rest);
    if (!real) real = (int (*)(int, int, ...))dlsym(RTLD_NEXT, "fcntl64");
    if (command == F_OFD_SETLK && ((struct flock *)argument)->l_start == OPENING_BYTE) hold("HOLD_OPENING", &has_waited);
    return real(fd, command, argument);
}

int msync(void *start, size_t n_bytes, int flags) {
    static int (*real)(void *, size_t, int);
    static int has_waited;
    if (!real) real = (int (*)(void *, size_t, int))dlsym(RTLD_NEXT, "msync");
    if (n_bytes > 65536) hold("HOLD_MSYNC", &has_waited);
    return real(start, n_bytes, flags);
}

int fsync(int fd) {
    static int (*real)(int);
    static int has_waited;
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    hold("HOLD_FSYNC", &has_waited);
    return real(fd);
}
