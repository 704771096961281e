// A file layer that fails on purpose, for tests: preloaded, it counts what a process asks of the files under one
// folder, and at a chosen step refuses it (EIO once, or ENOSPC or EROFS from then on), does half of it, or kills the process.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { NOTHING, FAIL, FULL, SHORT, KILL, READ_ONLY };

static char under[1024];
static int kind = NOTHING;
static long chosen = -1, steps = 0;
static char steps_log[1 << 18];
static size_t log_length = 0;

// Begin to count: `at` is the step (from 0) at which `what` happens; none if it is negative.
void fault_arm(const char *folder, long at, int what) {
    snprintf(under, sizeof under, "%s", folder);
    kind = what;
    chosen = at;
    steps = 0;
    log_length = 0;
    steps_log[0] = 0;
}

void fault_disarm(void) { under[0] = 0; }

const char *fault_steps(void) { return steps_log; }

static int is_ours(const char *path) { return under[0] && strncmp(path, under, strlen(under)) == 0; }

// What is to happen now; counts a step. `needs_room`: a full disk refuses it.
static int verdict(const char *what, const char *path, int needs_room) {
    if (!is_ours(path)) return NOTHING;
    long now = steps++;
    log_length += snprintf(steps_log + log_length, sizeof steps_log - log_length, "%s %s\n", what, path + strlen(under));
    if (log_length >= sizeof steps_log) log_length = sizeof steps_log - 1;
    if (kind == FULL && chosen >= 0 && now >= chosen) return needs_room ? FULL : NOTHING;
    if (kind == READ_ONLY && chosen >= 0 && now >= chosen) return READ_ONLY;
    if (now != chosen) return NOTHING;
    if (kind == KILL) raise(SIGKILL);
    return kind;
}

static int of_descriptor(const char *what, int descriptor, int needs_room) {
    char link[64], path[1024];
    if (!under[0]) return NOTHING;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return NOTHING;
    path[length] = 0;
    return verdict(what, path, needs_room);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define REFUSE(what, result) \
    switch (what) { \
        case FAIL: errno = EIO; return result; \
        case FULL: errno = ENOSPC; return result; \
        case READ_ONLY: errno = EROFS; return result; \
    }

ssize_t write(int descriptor, const void *bytes, size_t length) {
    int found = of_descriptor("write", descriptor, 1);
    REFUSE(found, -1)
    return REAL(write)(descriptor, bytes, found == SHORT && length > 1 ? length / 2 : length);
}

ssize_t pwrite64(int descriptor, const void *bytes, size_t length, off64_t offset) {
    int found = of_descriptor("write", descriptor, 1);
    REFUSE(found, -1)
    return REAL(pwrite64)(descriptor, bytes, found == SHORT && length > 1 ? length / 2 : length, offset);
}

ssize_t pwrite(int descriptor, const void *bytes, size_t length, off_t offset) {
    return pwrite64(descriptor, bytes, length, offset);
}

int fsync(int descriptor) {
    REFUSE(of_descriptor("flush", descriptor, 0), -1)
    return REAL(fsync)(descriptor);
}

int fdatasync(int descriptor) {
    REFUSE(of_descriptor("flush", descriptor, 0), -1)
    return REAL(fdatasync)(descriptor);
}

int ftruncate64(int descriptor, off64_t length) {
    REFUSE(of_descriptor("truncate", descriptor, 1), -1)
    return REAL(ftruncate64)(descriptor, length);
}

int ftruncate(int descriptor, off_t length) { return ftruncate64(descriptor, length); }

int rename(const char *from, const char *to) {
    REFUSE(verdict("rename to", to, 0), -1)
    return REAL(rename)(from, to);
}

int unlink(const char *path) {
    REFUSE(verdict("remove", path, 0), -1)
    return REAL(unlink)(path);
}

int mkdir(const char *path, mode_t mode) {
    REFUSE(verdict("make", path, 1), -1)
    return REAL(mkdir)(path, mode);
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        mode_t mode = 0; \
        if (flags & O_CREAT) { \
            va_list rest; \
            va_start(rest, flags); \
            mode = va_arg(rest, mode_t); \
            va_end(rest); \
            if (access(path, F_OK) != 0) { REFUSE(verdict("create", path, 1), -1) } \
        } \
        return REAL(name)(path, flags, mode); \
    }

OPEN(open)
OPEN(open64)
