/* Preloaded by tests: an fallocate that takes time, and gives up when a signal comes, as that of tmpfs before Linux 6.9.

   FALLOCATE_NS_PER_MIB: how long it takes.  FALLOCATE_HOLDS: a path; the first call that allocates space creates that file, and waits until
   the file is removed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static int pause_ns(long ns) {
    struct timespec duration = {ns / 1000000000, ns % 1000000000};
    return nanosleep(&duration, NULL);
}

int fallocate(int fd, int mode, off_t off, off_t n_bytes) {
    static int (*real)(int, int, off_t, off_t);
    static int has_waited;
    const char *ns = getenv("FALLOCATE_NS_PER_MIB"), *path = getenv("FALLOCATE_HOLDS");
    if (!real) real = (int (*)(int, int, off_t, off_t))dlsym(RTLD_NEXT, "fallocate");
    if (mode == 0 && off && path && !has_waited) {          /* not at offset 0: the control pages */
        has_waited = 1;
        close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
        while (access(path, F_OK) == 0) pause_ns(1000000);
    }
    if (mode == 0 && ns && pause_ns((n_bytes * atol(ns)) >> 20) != 0) {
        errno = EINTR;
        return -1;
    }
    return real(fd, mode, off, n_bytes);
}

int fallocate64(int fd, int mode, off_t off, off_t n_bytes) { return fallocate(fd, mode, off, n_bytes); }
