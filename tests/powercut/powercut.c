/* A disk that can lose power: a library for LD_PRELOAD.
 *
 * It stands between a program and the C library's file calls and keeps a log of everything that the program changes
 * below one directory, with what is needed to take it back: old bytes, old lengths, old names. A sync is a mark in that log. What a
 * power cut would leave is then made by whoever reads the log (tests/it/harness/disk): the changes that no sync covers are
 * undone in the files themselves, which so keep their inodes. It also fails syncs and writes on command.
 *
 * A slow sync waits before it is logged, so a power cut meanwhile finds it not done; other calls go on beside it.
 *
 * Promises: the records of all threads are in the order of their changes, and that of a write, a creation or a sync is in
 * the log before the program can see its effect. The data of a file is covered by a sync of that file, its name by a sync
 * of its directory; sync_file_range covers nothing. Syncs do not reach the real disk, which makes them cheap.
 *
 * Not here: system calls that are made without the C library, and writing through mmap. Calls that it does not model end the
 * process with a message when they are made below the directory.
 *
 * Environment: POWERCUT_ROOT the directory, POWERCUT_EXCEPT a directory in it that is left alone, POWERCUT_STATE where all of
 * its own lies, on the same file system:
 *   log         records: the header below, then name, second name and data
 *   saved/N     files whose last name was taken away
 *   fail-sync   "NTH PATTERN": the NTH sync from now on of a path that contains PATTERN fails with EIO; the file is then
 *               renamed to sync-failed
 *   fail-write  "ERRNO PATTERN": everything that would change a path that contains PATTERN fails
 *   no-exclusive  anything: a rename that must not replace fails with EINVAL, as on NFS
 *   slow-sync   "FROM TO PATTERN": every sync of a path that contains PATTERN takes between FROM and TO milliseconds
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum kind { WRITE = 1, LENGTH, CREATE, UNLINK, RENAME, SYNC, SYNC_FAILED };

struct header {
  uint32_t magic, kind;
  uint64_t a, b, c, d;
  uint32_t name_length, second_length;
  uint64_t data_length;
};

/* A name below the root: its directory, held open, and the last component of its path. */
struct place {
  int dir;
  uint64_t dir_inode;
  char name[NAME_MAX + 1];
  char path[PATH_MAX + NAME_MAX + 2];
};

static const uint32_t MAGIC = 0x54554350;
static char root[PATH_MAX], except[PATH_MAX], state[PATH_MAX];
static int log_fd = -1;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long (*next_syscall)(long, ...);

__attribute__((noreturn)) static void die(const char *what) {
  dprintf(STDERR_FILENO, "powercut: %s: %s\n", what, strerror(errno));
  abort();
}

/* The system calls themselves: the C library's functions of these names are ours. */
#define REAL(...) next_syscall(__VA_ARGS__)

static int state_path(char *path, const char *name) {
  return snprintf(path, PATH_MAX, "%s/%s", state, name) < PATH_MAX;
}

__attribute__((constructor)) static void begin(void) {
  next_syscall = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
  if (!next_syscall) abort();
  const char *root_of = getenv("POWERCUT_ROOT"), *state_of = getenv("POWERCUT_STATE"), *not_of = getenv("POWERCUT_EXCEPT");
  if (!root_of || !state_of) die("POWERCUT_ROOT and POWERCUT_STATE must be set");
  if (!realpath(root_of, root) || !realpath(state_of, state)) die("cannot find the directories");
  if (not_of && !realpath(not_of, except)) die("cannot find POWERCUT_EXCEPT");
  char path[PATH_MAX];
  state_path(path, "log");
  log_fd = REAL(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (log_fd < 0) die("cannot open the log");
  /* Out of the way of programs that expect the lowest numbers. */
  int high = fcntl(log_fd, F_DUPFD_CLOEXEC, 400);
  if (high >= 0) {
    close(log_fd);
    log_fd = high;
  }
}

static int below(const char *path, const char *dir) {
  size_t length = strlen(dir);
  return length && !strncmp(path, dir, length) && (path[length] == '/' || !path[length]);
}

static int is_ours(const char *path) { return log_fd >= 0 && below(path, root) && !below(path, except); }

/* Whether a descriptor is a file or directory of ours; its path and metadata then. */
static int is_tracked(int fd, char path[PATH_MAX], struct stat *info) {
  if (log_fd < 0 || fd == log_fd || fstat(fd, info) || !(S_ISREG(info->st_mode) || S_ISDIR(info->st_mode))) return 0;
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, PATH_MAX - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return is_ours(path);
}

/* Finds the directory of a path; whether that is one of ours. `end` gives it free. */
static int find(int dirfd, const char *path, struct place *place) {
  int saved = errno;
  size_t length = strlen(path);
  while (length > 1 && path[length - 1] == '/') length--;
  if (!length || length >= PATH_MAX) return 0;
  char whole[PATH_MAX];
  memcpy(whole, path, length);
  whole[length] = 0;
  char *slash = strrchr(whole, '/');
  const char *name = slash ? slash + 1 : whole, *parent = slash ? (slash == whole ? "/" : whole) : ".";
  if (strlen(name) > NAME_MAX) return 0;
  strcpy(place->name, name);
  if (slash && slash != whole) *slash = 0;
  place->dir = REAL(SYS_openat, dirfd, parent, O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
  struct stat info;
  int ours = place->dir >= 0 && is_tracked(place->dir, place->path, &info);
  if (ours) {
    place->dir_inode = info.st_ino;
    strcat(strcat(place->path, "/"), place->name);
    ours = is_ours(place->path);
  }
  if (!ours && place->dir >= 0) close(place->dir);
  errno = saved;
  return ours;
}

static void end(struct place *place) {
  int saved = errno;
  close(place->dir);
  errno = saved;
}

static void append(struct header header, const char *name, const char *second, const void *data) {
  header.magic = MAGIC;
  header.name_length = name ? strlen(name) : 0;
  header.second_length = second ? strlen(second) : 0;
  size_t names = header.name_length + header.second_length, length = sizeof header + names + header.data_length;
  char *record = malloc(length);
  if (!record) die("no memory");
  memcpy(record, &header, sizeof header);
  if (name) memcpy(record + sizeof header, name, header.name_length);
  if (second) memcpy(record + sizeof header + header.name_length, second, header.second_length);
  if (header.data_length) memcpy(record + sizeof header + names, data, header.data_length);
  /* At once: two processes may share the log. */
  if (REAL(SYS_write, log_fd, record, length) != (long)length) die("cannot write the log");
  free(record);
}

/* Reads up to `size` bytes of what the file has at `at`; returns how many, without the zeros at the end. */
static size_t old_bytes(int fd, uint64_t at, size_t size, char **bytes) {
  *bytes = malloc(size ? size : 1);
  if (!*bytes) die("no memory");
  size_t count = 0;
  int reader = fd;
  while (count < size) {
    long some = REAL(SYS_pread64, reader, *bytes + count, size - count, at + count);
    if (some < 0 && errno == EBADF && reader == fd) {
      /* Open for writing only. */
      char link[64];
      snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
      reader = REAL(SYS_openat, AT_FDCWD, link, O_RDONLY | O_CLOEXEC, 0);
      if (reader >= 0) continue;
    }
    if (some < 0) die("cannot read what is to be written over");
    if (!some) break;
    count += some;
  }
  if (reader != fd) close(reader);
  while (count && !(*bytes)[count - 1]) count--;
  return count;
}

static int read_command(const char *name, char *text, size_t size) {
  int saved = errno;
  char path[PATH_MAX];
  state_path(path, name);
  int fd = REAL(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
  long length = fd < 0 ? -1 : REAL(SYS_read, fd, text, size - 1);
  if (fd >= 0) close(fd);
  errno = saved;
  if (length <= 0) return 0;
  text[length] = 0;
  return 1;
}

/* Whether a change of this path is to fail; sets errno then. */
static int fails(const char *path) {
  char text[PATH_MAX + 16], *pattern;
  if (!read_command("fail-write", text, sizeof text)) return 0;
  long error = strtol(text, &pattern, 10);
  if (!strstr(path, pattern + 1)) return 0;
  errno = error;
  return 1;
}

/* Whether this sync is the one that is to fail. The count is in the file, since more than one process may do the syncs. */
static int sync_fails(const char *path) {
  char text[PATH_MAX + 16], *pattern, from[PATH_MAX], to[PATH_MAX];
  if (!read_command("fail-sync", text, sizeof text)) return 0;
  long nth = strtol(text, &pattern, 10);
  if (!strstr(path, pattern + 1)) return 0;
  state_path(from, "fail-sync");
  if (nth > 1) {
    int fd = REAL(SYS_openat, AT_FDCWD, from, O_WRONLY | O_TRUNC | O_CLOEXEC, 0);
    int length = snprintf(to, sizeof to, "%ld%s", nth - 1, pattern);
    if (fd < 0 || REAL(SYS_write, fd, to, length) != length) die("cannot count in fail-sync");
    close(fd);
    return 0;
  }
  state_path(to, "sync-failed");
  if (REAL(SYS_rename, from, to)) die("cannot rename fail-sync");
  return 1;
}

/* How long a sync of this path takes. The times of one process are the same in each run. */
static void sync_slowly(const char *path) {
  char text[PATH_MAX + 32], *rest;
  if (!read_command("slow-sync", text, sizeof text)) return;
  long from = strtol(text, &rest, 10), to = strtol(rest, &rest, 10);
  if (!strstr(path, rest + 1)) return;
  static unsigned seed = 1;
  pthread_mutex_lock(&lock);
  long millis = from + (to > from ? rand_r(&seed) % (to - from) : 0);
  pthread_mutex_unlock(&lock);
  struct timespec left = {.tv_sec = millis / 1000, .tv_nsec = millis % 1000 * 1000000};
  while (nanosleep(&left, &left) && errno == EINTR) continue;
}

static void log_length(int fd, uint64_t inode, uint64_t from, uint64_t to) {
  char *bytes = NULL;
  size_t count = to < from ? old_bytes(fd, to, from - to, &bytes) : 0;
  append((struct header){.kind = LENGTH, .a = inode, .b = from, .c = to, .data_length = count}, NULL, NULL, bytes);
  free(bytes);
}

/* Every kind of writing; `at` is -1 for the descriptor's own position. */
static ssize_t change(int fd, const struct iovec *parts, int count, off_t at) {
  char path[PATH_MAX];
  struct stat info;
  int tracked = is_tracked(fd, path, &info) && S_ISREG(info.st_mode);
  ssize_t done;
  size_t size = 0;
  off_t to = at;
  for (int i = 0; i < count; i++) size += parts[i].iov_len;
  if (tracked) {
    pthread_mutex_lock(&lock);
    if (fails(path)) {
      pthread_mutex_unlock(&lock);
      return -1;
    }
    fstat(fd, &info);
    if (fcntl(fd, F_GETFL) & O_APPEND) to = info.st_size;
    else if (to < 0) to = lseek(fd, 0, SEEK_CUR);
    char *bytes;
    size_t old = old_bytes(fd, to, size, &bytes);
    struct header header = {.kind = WRITE, .a = info.st_ino, .b = to, .c = size, .d = info.st_size, .data_length = old};
    append(header, NULL, NULL, bytes);
    free(bytes);
  }
  if (count == 1 && at < 0) done = REAL(SYS_write, fd, parts->iov_base, parts->iov_len);
  else if (count == 1) done = REAL(SYS_pwrite64, fd, parts->iov_base, parts->iov_len, at);
  else if (at < 0) done = REAL(SYS_writev, fd, parts, count);
  else done = REAL(SYS_pwritev, fd, parts, count, at, 0);
  if (tracked) {
    int saved = errno;
    struct stat now;
    uint64_t meant = (uint64_t)info.st_size > to + size ? (uint64_t)info.st_size : to + size;
    /* Less was written than the record says. */
    if (done != (ssize_t)size && !fstat(fd, &now) && (uint64_t)now.st_size != meant)
      log_length(fd, now.st_ino, meant, now.st_size);
    pthread_mutex_unlock(&lock);
    errno = saved;
  }
  return done;
}

ssize_t write(int fd, const void *data, size_t size) {
  return change(fd, &(struct iovec){(void *)data, size}, 1, -1);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
  return change(fd, &(struct iovec){(void *)data, size}, 1, at);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return pwrite64(fd, data, size, at); }
ssize_t writev(int fd, const struct iovec *parts, int count) { return change(fd, parts, count, -1); }
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at) { return change(fd, parts, count, at); }
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) { return pwritev64(fd, parts, count, at); }

int ftruncate64(int fd, off64_t length) {
  char path[PATH_MAX];
  struct stat info;
  if (!is_tracked(fd, path, &info)) return REAL(SYS_ftruncate, fd, length);
  pthread_mutex_lock(&lock);
  int done = -1;
  if (!fails(path)) {
    fstat(fd, &info);
    log_length(fd, info.st_ino, info.st_size, length);
    done = REAL(SYS_ftruncate, fd, length);
  }
  pthread_mutex_unlock(&lock);
  return done;
}
int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

int fallocate64(int fd, int mode, off64_t at, off64_t size) {
  char path[PATH_MAX];
  struct stat info;
  if (!is_tracked(fd, path, &info)) return REAL(SYS_fallocate, fd, mode, at, size);
  if (mode) die("fallocate with a mode is not modelled");
  pthread_mutex_lock(&lock);
  int done = -1;
  if (!fails(path)) {
    fstat(fd, &info);
    done = REAL(SYS_fallocate, fd, mode, at, size);
    /* What is new is zeros: a kill in between leaves nothing to be taken back. */
    if (!done && at + size > info.st_size) log_length(fd, info.st_ino, info.st_size, at + size);
  }
  pthread_mutex_unlock(&lock);
  return done;
}
int fallocate(int fd, int mode, off_t at, off_t size) { return fallocate64(fd, mode, at, size); }

static int open_at(int dirfd, const char *path, int flags, mode_t mode) {
  struct place place;
  if ((flags & O_TMPFILE) == O_TMPFILE || !((flags & O_ACCMODE) != O_RDONLY || flags & O_CREAT) ||
      !find(dirfd, path, &place))
    return REAL(SYS_openat, dirfd, path, flags, mode);
  pthread_mutex_lock(&lock);
  struct stat info;
  int saved = errno, missing = fstatat(place.dir, place.name, &info, flags & O_NOFOLLOW ? AT_SYMLINK_NOFOLLOW : 0);
  int fd = -1;
  errno = saved;
  if (!fails(place.path)) {
    if (missing && flags & O_CREAT) {
      append((struct header){.kind = CREATE, .a = place.dir_inode}, place.name, NULL, NULL);
    } else if (!missing && flags & O_TRUNC && S_ISREG(info.st_mode) && info.st_size) {
      int reader = REAL(SYS_openat, place.dir, place.name, O_RDONLY | O_CLOEXEC, 0);
      if (reader < 0) die("cannot read what is to be truncated");
      log_length(reader, info.st_ino, info.st_size, 0);
      close(reader);
    }
    fd = REAL(SYS_openat, dirfd, path, flags, mode);
  }
  pthread_mutex_unlock(&lock);
  end(&place);
  return fd;
}

#define MODE(flags) \
  mode_t mode = 0; \
  if ((flags) & O_CREAT || ((flags) & O_TMPFILE) == O_TMPFILE) { \
    va_list rest; \
    va_start(rest, flags); \
    mode = va_arg(rest, mode_t); \
    va_end(rest); \
  }

int open(const char *path, int flags, ...) { MODE(flags) return open_at(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return open_at(AT_FDCWD, path, flags, mode); }
int openat(int dirfd, const char *path, int flags, ...) { MODE(flags) return open_at(dirfd, path, flags, mode); }
int openat64(int dirfd, const char *path, int flags, ...) { MODE(flags) return open_at(dirfd, path, flags, mode); }
int creat(const char *path, mode_t mode) { return open_at(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return creat(path, mode); }

int mkdirat(int dirfd, const char *path, mode_t mode) {
  struct place place;
  if (!find(dirfd, path, &place)) return REAL(SYS_mkdirat, dirfd, path, mode);
  pthread_mutex_lock(&lock);
  struct stat info;
  int saved = errno, missing = fstatat(place.dir, place.name, &info, AT_SYMLINK_NOFOLLOW), done = -1;
  errno = saved;
  if (!missing || !fails(place.path)) {
    if (missing) append((struct header){.kind = CREATE, .a = place.dir_inode}, place.name, NULL, NULL);
    done = REAL(SYS_mkdirat, dirfd, path, mode);
  }
  pthread_mutex_unlock(&lock);
  end(&place);
  return done;
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

/* Keeps a file that is about to lose a name, under a number; 0 for a directory and when there is none. */
static uint64_t keep(const struct place *place) {
  static uint64_t last;
  struct stat info;
  int saved = errno, found = !fstatat(place->dir, place->name, &info, AT_SYMLINK_NOFOLLOW) && !S_ISDIR(info.st_mode);
  if (found) {
    char path[PATH_MAX], name[64];
    do {
      snprintf(name, sizeof name, "saved/%lu", (unsigned long)++last);
      state_path(path, name);
    } while (REAL(SYS_linkat, place->dir, place->name, AT_FDCWD, path, 0) && errno == EEXIST);
  }
  errno = saved;
  return found ? last : 0;
}

int unlinkat(int dirfd, const char *path, int flags) {
  struct place place;
  if (!find(dirfd, path, &place)) return REAL(SYS_unlinkat, dirfd, path, flags);
  pthread_mutex_lock(&lock);
  int done = -1;
  if (!fails(place.path)) {
    uint64_t number = keep(&place);
    done = REAL(SYS_unlinkat, dirfd, path, flags);
    if (!done) append((struct header){.kind = UNLINK, .a = place.dir_inode, .b = number}, place.name, NULL, NULL);
  }
  pthread_mutex_unlock(&lock);
  end(&place);
  return done;
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
  struct place old, new;
  int ours_from = find(from_dir, from, &old), ours_to = find(to_dir, to, &new);
  if (!ours_from && !ours_to) return REAL(SYS_renameat2, from_dir, from, to_dir, to, flags);
  if (!ours_from || !ours_to || flags & ~RENAME_NOREPLACE) die("this rename is not modelled");
  char text[16];
  if (flags && read_command("no-exclusive", text, sizeof text)) {
    end(&old);
    end(&new);
    errno = EINVAL;
    return -1;
  }
  pthread_mutex_lock(&lock);
  int done = -1;
  if (!fails(old.path) && !fails(new.path)) {
    uint64_t number = flags & RENAME_NOREPLACE ? 0 : keep(&new);
    done = REAL(SYS_renameat2, from_dir, from, to_dir, to, flags);
    struct header header = {.kind = RENAME, .a = old.dir_inode, .b = new.dir_inode, .c = number};
    if (!done) append(header, old.name, new.name, NULL);
  }
  pthread_mutex_unlock(&lock);
  end(&old);
  end(&new);
  return done;
}
/* A further name of a file is undone like a new file: the name goes. */
int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
  struct place old, new;
  int ours_from = find(from_dir, from, &old), ours_to = find(to_dir, to, &new);
  if (!ours_from && !ours_to) return REAL(SYS_linkat, from_dir, from, to_dir, to, flags);
  if (!ours_from || !ours_to || flags) die("this link is not modelled");
  pthread_mutex_lock(&lock);
  int done = -1;
  if (!fails(old.path) && !fails(new.path)) {
    done = REAL(SYS_linkat, from_dir, from, to_dir, to, flags);
    if (!done) append((struct header){.kind = CREATE, .a = new.dir_inode}, new.name, NULL, NULL);
  }
  pthread_mutex_unlock(&lock);
  end(&old);
  end(&new);
  return done;
}

int renameat(int from_dir, const char *from, int to_dir, const char *to) {
  return renameat2(from_dir, from, to_dir, to, 0);
}
int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

static int covered(int fd, long call) {
  char path[PATH_MAX];
  struct stat info;
  if (!is_tracked(fd, path, &info)) return REAL(call, fd);
  sync_slowly(path);
  pthread_mutex_lock(&lock);
  int failed = sync_fails(path);
  append((struct header){.kind = failed ? SYNC_FAILED : SYNC, .a = info.st_ino}, NULL, NULL, NULL);
  pthread_mutex_unlock(&lock);
  if (failed) errno = EIO;
  return failed ? -1 : 0;
}
int fsync(int fd) { return covered(fd, SYS_fsync); }
int fdatasync(int fd) { return covered(fd, SYS_fdatasync); }

int sync_file_range(int fd, off64_t at, off64_t size, unsigned flags) {
  char path[PATH_MAX];
  struct stat info;
  return is_tracked(fd, path, &info) ? 0 : REAL(SYS_sync_file_range, fd, at, size, flags);
}

/* Ends the process when a call that is not modelled would change something of ours. */
static void refuse(int fd, const char *what) {
  char path[PATH_MAX];
  struct stat info;
  if (!is_tracked(fd, path, &info)) return;
  errno = ENOTSUP;
  die(what);
}

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags) {
  refuse(out, "copy_file_range");
  return REAL(SYS_copy_file_range, in, from, out, to, size, flags);
}
ssize_t sendfile64(int out, int in, off64_t *from, size_t size) {
  refuse(out, "sendfile");
  return REAL(SYS_sendfile, out, in, from, size);
}
void *mmap64(void *address, size_t size, int protection, int flags, int fd, off64_t at) {
  if (fd >= 0 && flags & MAP_SHARED && protection & PROT_WRITE) refuse(fd, "writing through mmap");
  return (void *)REAL(SYS_mmap, address, size, protection, flags, fd, at);
}

long syscall(long number, ...) {
  va_list rest;
  va_start(rest, number);
  long a = va_arg(rest, long), b = va_arg(rest, long), c = va_arg(rest, long);
  long d = va_arg(rest, long), e = va_arg(rest, long), f = va_arg(rest, long);
  va_end(rest);
  if (!next_syscall) next_syscall = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
  switch (number) {
    case SYS_openat2: case SYS_io_uring_setup: case SYS_pwritev2: case SYS_linkat: case SYS_symlinkat:
      errno = ENOTSUP;
      die("a raw system call is not modelled");
    case SYS_copy_file_range: return copy_file_range(a, (off64_t *)b, c, (off64_t *)d, e, f);
    case SYS_renameat2: return renameat2(a, (char *)b, c, (char *)d, e);
    default: return next_syscall(number, a, b, c, d, e, f);
  }
}
