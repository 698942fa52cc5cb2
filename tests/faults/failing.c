/* SPDX-License-Identifier: Apache-2.0
 *
 * Lets operations on files below a folder fail: to be preloaded, and armed from Python.
 * Operations are counted in the order they are made. In the mode ONCE the chosen one gives -1 with
 * ENOSPC if it would have changed something, else with EIO, and does nothing. In the others all from
 * the chosen one on fail that a full disk, one that is mounted read-only, or a process without
 * free file handles could not do.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

static char below[PATH_MAX];
static char failed[PATH_MAX + 64];
static atomic_long count, chosen;
enum { ONCE, FULL, READ_ONLY, HANDLES } static mode;
enum kind { READS, OPENS, CREATES, GROWS, CHANGES };

void failing_arm(const char *folder, long at, int how) {
    snprintf(below, sizeof below, "%s", folder);
    failed[0] = 0;
    atomic_store(&count, 0);
    atomic_store(&chosen, at);
    mode = how;
}

void failing_disarm(void) { below[0] = 0; }
long failing_count(void) { return atomic_load(&count); }
const char *failing_failed(void) { return failed; }

static int error_of(enum kind kind) {
    switch (mode) {
    case ONCE: return kind == READS || kind == OPENS ? EIO : ENOSPC;
    case FULL: return kind == CREATES || kind == GROWS ? ENOSPC : 0;
    case READ_ONLY: return kind == READS || kind == OPENS ? 0 : EROFS;
    default: return kind == OPENS || kind == CREATES ? EMFILE : 0;
    }
}

static int fails(const char *what, const char *path, enum kind kind) {
    size_t length = strlen(below);
    if (!length || !path || strncmp(path, below, length)) return 0;
    long now = atomic_fetch_add(&count, 1) + 1, first = atomic_load(&chosen);
    if (!first || (mode == ONCE ? now != first : now < first)) return 0;
    int error = error_of(kind);
    if (!error) return 0;
    if (!failed[0]) snprintf(failed, sizeof failed, "%s %s", what, path + length);
    errno = error;
    return 1;
}

static int fd_fails(const char *what, int fd, enum kind kind) {
    char link[64], path[PATH_MAX];
    if (!below[0] || fd < 3) return 0;
    int before = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = before;
    if (length < 0) return 0;
    path[length] = 0;
    return fails(what, path, kind);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define OPENING(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT) ? CREATES : OPENS)
#define MODE(flags, last) \
    mode_t rights = 0; \
    if ((flags) & O_CREAT) { va_list list; va_start(list, last); rights = va_arg(list, int); va_end(list); }

int open(const char *path, int flags, ...) {
    MODE(flags, flags)
    return fails("open", path, OPENING(flags)) ? -1 : REAL(open)(path, flags, rights);
}
int open64(const char *path, int flags, ...) {
    MODE(flags, flags)
    return fails("open", path, OPENING(flags)) ? -1 : REAL(open64)(path, flags, rights);
}
int openat(int at, const char *path, int flags, ...) {
    MODE(flags, flags)
    return fails("open", path, OPENING(flags)) ? -1 : REAL(openat)(at, path, flags, rights);
}
int openat64(int at, const char *path, int flags, ...) {
    MODE(flags, flags)
    return fails("open", path, OPENING(flags)) ? -1 : REAL(openat64)(at, path, flags, rights);
}
FILE *fopen(const char *path, const char *how) {
    return fails("fopen", path, how[0] == 'r' ? OPENS : CREATES) ? NULL : REAL(fopen)(path, how);
}
FILE *fopen64(const char *path, const char *how) {
    return fails("fopen", path, how[0] == 'r' ? OPENS : CREATES) ? NULL : REAL(fopen64)(path, how);
}
size_t fwrite(const void *content, size_t size, size_t number, FILE *file) {
    return fd_fails("fwrite", fileno(file), GROWS) ? 0 : REAL(fwrite)(content, size, number, file);
}
int fflush(FILE *file) {
    return file && fd_fails("fflush", fileno(file), GROWS) ? EOF : REAL(fflush)(file);
}
int fclose(FILE *file) {
    if (!fd_fails("fclose", fileno(file), GROWS)) return REAL(fclose)(file);
    int error = errno;
    REAL(fclose)(file);
    errno = error;
    return EOF;
}
ssize_t write(int fd, const void *content, size_t size) {
    if (!fd_fails("write", fd, GROWS)) return REAL(write)(fd, content, size);
    /* A disk takes what fits before it is full. */
    return mode == FULL && size > 1 ? REAL(write)(fd, content, size / 2) : -1;
}
ssize_t pwrite64(int fd, const void *content, size_t size, off64_t at) {
    return fd_fails("write", fd, GROWS) ? -1 : REAL(pwrite64)(fd, content, size, at);
}
ssize_t read(int fd, void *content, size_t size) {
    return fd_fails("read", fd, READS) ? -1 : REAL(read)(fd, content, size);
}
ssize_t pread(int fd, void *content, size_t size, off_t at) {
    return fd_fails("read", fd, READS) ? -1 : REAL(pread)(fd, content, size, at);
}
ssize_t pread64(int fd, void *content, size_t size, off64_t at) {
    return fd_fails("read", fd, READS) ? -1 : REAL(pread64)(fd, content, size, at);
}
ssize_t sendfile(int to, int from, off_t *at, size_t size) {
    return fd_fails("sendfile", to, GROWS) ? -1 : REAL(sendfile)(to, from, at, size);
}
ssize_t sendfile64(int to, int from, off64_t *at, size_t size) {
    return fd_fails("sendfile", to, GROWS) ? -1 : REAL(sendfile64)(to, from, at, size);
}
int ftruncate64(int fd, off64_t size) {
    return fd_fails("ftruncate", fd, CHANGES) ? -1 : REAL(ftruncate64)(fd, size);
}
int flock(int fd, int operation) {
    return fd_fails("flock", fd, READS) ? -1 : REAL(flock)(fd, operation);
}
int fsync(int fd) { return fd_fails("fsync", fd, GROWS) ? -1 : REAL(fsync)(fd); }
int rename(const char *from, const char *to) {
    return fails("rename", to, CHANGES) ? -1 : REAL(rename)(from, to);
}
int mkdir(const char *path, mode_t rights) {
    return fails("mkdir", path, GROWS) ? -1 : REAL(mkdir)(path, rights);
}
int unlink(const char *path) { return fails("unlink", path, CHANGES) ? -1 : REAL(unlink)(path); }
int rmdir(const char *path) { return fails("rmdir", path, CHANGES) ? -1 : REAL(rmdir)(path); }
int chmod(const char *path, mode_t rights) {
    return fails("chmod", path, CHANGES) ? -1 : REAL(chmod)(path, rights);
}
DIR *opendir(const char *path) {
    return fails("opendir", path, OPENS) ? NULL : REAL(opendir)(path);
}
int stat(const char *path, struct stat *found) {
    return fails("stat", path, READS) ? -1 : REAL(stat)(path, found);
}
int stat64(const char *path, struct stat64 *found) {
    return fails("stat", path, READS) ? -1 : REAL(stat64)(path, found);
}
int lstat(const char *path, struct stat *found) {
    return fails("stat", path, READS) ? -1 : REAL(lstat)(path, found);
}
int lstat64(const char *path, struct stat64 *found) {
    return fails("stat", path, READS) ? -1 : REAL(lstat64)(path, found);
}
