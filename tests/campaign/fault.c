// Preloaded into a process: makes the n-th call that changes something below a directory fail, or kills there.
// A failing write has written half of its bytes already, as a full disk does.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, ONCE, ON, KILL };  // fail one call, all from it on, die at it

static char home[PATH_MAX];
static long at, seen;
static int code, mode;

void fault_arm(const char *directory, long number, int error, int how) {
    snprintf(home, sizeof home, "%s/", directory);
    at = number;
    seen = 0;
    code = error;
    mode = how;
}

long fault_seen(void) { return seen; }

static int below(const char *path) { return home[0] && strncmp(path, home, strlen(home)) == 0; }

static int path_below(const char *path) {
    char whole[2 * PATH_MAX];
    if (!home[0] || !path) return 0;
    if (path[0] == '/') return below(path);
    char here[PATH_MAX];
    if (!getcwd(here, sizeof here)) return 0;
    snprintf(whole, sizeof whole, "%s/%s", here, path);
    return below(whole);
}

static int fd_below(int fd) {
    char link[64], path[PATH_MAX];
    if (!home[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return below(path);
}

static int due(void) {
    long number = __atomic_add_fetch(&seen, 1, __ATOMIC_SEQ_CST);
    if (mode == OFF || number < at || (number > at && mode != ON)) return 0;
    if (mode == KILL) kill(getpid(), SIGKILL);
    errno = code;
    return 1;
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    if (!fd_below(fd)) return real(fd, data, size);
    int how = mode;
    mode = how == KILL ? ONCE : how;  // half of it is written before the process dies, too
    int fails = due();
    mode = how;
    if (!fails) return real(fd, data, size);
    if (size > 1) (void)!real(fd, data, size / 2);
    if (how == KILL) kill(getpid(), SIGKILL);
    errno = code;
    return -1;
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    return fd_below(fd) && due() ? -1 : real(fd, parts, count);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t place) {
    REAL(pwrite64);
    return fd_below(fd) && due() ? -1 : real(fd, data, size, place);
}

ssize_t copy_file_range(int from, off64_t *a, int to, off64_t *b, size_t size, unsigned flags) {
    REAL(copy_file_range);
    return fd_below(to) && due() ? -1 : real(from, a, to, b, size, flags);
}

int fsync(int fd) {
    REAL(fsync);
    return fd_below(fd) && due() ? -1 : real(fd);
}

int ftruncate64(int fd, off64_t size) {
    REAL(ftruncate64);
    return fd_below(fd) && due() ? -1 : real(fd, size);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    return path_below(to) && due() ? -1 : real(from, to);
}

int mkdir(const char *path, mode_t bits) {
    REAL(mkdir);
    return path_below(path) && due() ? -1 : real(path, bits);
}

int link(const char *from, const char *to) {
    REAL(link);
    return path_below(to) && due() ? -1 : real(from, to);
}

int linkat(int a, const char *from, int b, const char *to, int flags) {
    REAL(linkat);
    return path_below(to) && due() ? -1 : real(a, from, b, to, flags);
}

int open64(const char *path, int flags, ...) {
    REAL(open64);
    va_list rest;
    va_start(rest, flags);
    mode_t bits = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return (flags & O_CREAT) && path_below(path) && due() ? -1 : real(path, flags, bits);
}

int open(const char *path, int flags, ...) {
    REAL(open);
    va_list rest;
    va_start(rest, flags);
    mode_t bits = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return (flags & O_CREAT) && path_below(path) && due() ? -1 : real(path, flags, bits);
}
