/* The file layer between a process and the kernel, for the tests of durability (LD_PRELOAD).
 *
 * Below one directory every call that changes a file or a name is written to a log, in the order in which the kernel did
 * them, with the data; and the n-th call of certain kinds can be made to fail, to do half, or to take thirty seconds (of
 * a clock that the test asks for). One call at a time goes through, so the order is the true one. What is not modelled
 * (a writable shared mapping, say) is logged as foreign, so that no test can overlook it.
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
#include <unistd.h>

enum { MADE = 1, WRITE, LENGTH, SYNC, RENAME, REMOVE, LINK, MARK, FOREIGN, LOST, SYNC_ALL };
enum { F_OPEN = 1, F_WRITE = 2, F_LENGTH = 4, F_SYNC = 8, F_NAME = 16, F_READ = 32 };
enum { HALF = -1, STALL = -2 };

struct head { uint32_t kind, path, path2, data; uint64_t inode, number; };

static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX], only[PATH_MAX];
static int out = -1, wanted, what, lasting;
static long at, count, hits, stalled;

/* -- what the test calls ------------------------------------------------------------------------------------------ */

int layer_watch(const char *directory, const char *file)
{
	snprintf(root, sizeof root, "%s", directory);
	if (out >= 0)
		syscall(SYS_close, out);
	out = file ? (int)syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
	return file && out < 0 ? -1 : 0;
}

/* The n-th call (from 1; 0: none) of the kinds below the directory *where* does *action*: an errno, HALF or STALL. */
void layer_arm(int kinds, const char *where, long n, int action, int stays)
{
	pthread_mutex_lock(&one);
	wanted = kinds, at = n, what = action, lasting = stays;
	snprintf(only, sizeof only, "%s", where);
	count = hits = stalled = 0;
	pthread_mutex_unlock(&one);
}

long layer_count(void) { return count; }
long layer_hits(void) { return hits; }
long layer_stalled(void) { return stalled; }

static void put(uint32_t kind, uint64_t inode, uint64_t number, const char *path, const char *path2, const void *data, size_t size)
{
	struct head head = { kind, (uint32_t)strlen(path), (uint32_t)strlen(path2), (uint32_t)size, inode, number };
	struct iovec parts[4] = { { &head, sizeof head }, { (void *)path, head.path }, { (void *)path2, head.path2 }, { (void *)data, size } };
	if (out >= 0 && syscall(SYS_writev, out, parts, 4) != (long)(sizeof head + head.path + head.path2 + size))
		abort();
}

void layer_mark(const char *text)
{
	pthread_mutex_lock(&one);
	put(MARK, 0, 0, text, "", "", 0);
	pthread_mutex_unlock(&one);
}

/* -- helpers ------------------------------------------------------------------------------------------------------ */

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int below(const char *path, const char *directory)
{
	size_t length = strlen(directory);
	return length && !strncmp(path, directory, length) && (!path[length] || path[length] == '/');
}

static int path_of(int fd, char *path)
{
	char link[40];
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
	path[length < 0 ? 0 : length] = 0;
	return length > 0 && below(path, root);
}

static int whole(int dirfd, const char *name, char *path)
{
	char folder[PATH_MAX];
	if (!*root || !name)
		return 0;
	if (*name == '/')
		snprintf(path, PATH_MAX, "%s", name);
	else if (dirfd == AT_FDCWD ? !getcwd(folder, sizeof folder) : (path_of(dirfd, folder), !*folder))
		return 0;
	else if ((size_t)snprintf(path, PATH_MAX, "%s/%s", folder, name) >= PATH_MAX)
		return 0;
	return below(path, root);
}

static uint64_t inode_of(int fd)
{
	struct stat status;
	return fstat(fd, &status) ? 0 : status.st_ino;
}

static int64_t size_of(int fd)
{
	struct stat status;
	return fstat(fd, &status) ? -1 : status.st_size;
}

/* What happens to this call: 0 nothing, HALF, or an errno. */
static int fault(int kind, const char *path)
{
	if (!(wanted & kind) || !below(path, only))
		return 0;
	count++;
	if (!at || (lasting ? count < at : count != at))
		return 0;
	hits++;
	if (what == STALL)
		stalled += 30;
	return what == STALL ? 0 : what;
}

#define ENTER(kind, path) \
	pthread_mutex_lock(&one); \
	int trouble = fault(kind, path); \
	if (trouble > 0) { pthread_mutex_unlock(&one); errno = trouble; return -1; }
#define LEAVE(result) do { int saved = errno; pthread_mutex_unlock(&one); errno = saved; return result; } while (0)

/* -- open, names -------------------------------------------------------------------------------------------------- */

static int do_open(int dirfd, const char *name, int flags, mode_t mode)
{
	char path[PATH_MAX];
	if (!whole(dirfd, name, path))
		return REAL(openat64)(dirfd, name, flags, mode);
	ENTER(F_OPEN, path);
	struct stat before;
	int was = !fstatat(dirfd, name, &before, AT_SYMLINK_NOFOLLOW);
	int fd = REAL(openat64)(dirfd, name, flags, mode);
	if (fd >= 0 && !was && (flags & O_CREAT))
		put(MADE, inode_of(fd), 0, path, "", "", 0);
	else if (fd >= 0 && (flags & O_TRUNC))
		put(LENGTH, inode_of(fd), 0, "", "", "", 0);
	LEAVE(fd);
}

#define MODE(flags, last) \
	mode_t mode = 0; \
	if ((flags) & (O_CREAT | O_TMPFILE)) { va_list list; va_start(list, last); mode = va_arg(list, mode_t); va_end(list); }

int open(const char *name, int flags, ...) { MODE(flags, flags); return do_open(AT_FDCWD, name, flags, mode); }
int open64(const char *name, int flags, ...) { MODE(flags, flags); return do_open(AT_FDCWD, name, flags | O_LARGEFILE, mode); }
int openat(int dir, const char *name, int flags, ...) { MODE(flags, flags); return do_open(dir, name, flags, mode); }
int openat64(int dir, const char *name, int flags, ...) { MODE(flags, flags); return do_open(dir, name, flags | O_LARGEFILE, mode); }
int creat(const char *name, mode_t mode) { return do_open(AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int __open_2(const char *name, int flags) { return do_open(AT_FDCWD, name, flags, 0); }
int __open64_2(const char *name, int flags) { return do_open(AT_FDCWD, name, flags, 0); }

int mkdirat(int dirfd, const char *name, mode_t mode)
{
	char path[PATH_MAX];
	if (!whole(dirfd, name, path))
		return REAL(mkdirat)(dirfd, name, mode);
	ENTER(F_NAME, path);
	int done = REAL(mkdirat)(dirfd, name, mode);
	struct stat status;
	if (!done && !fstatat(dirfd, name, &status, 0))
		put(MADE, status.st_ino, 1, path, "", "", 0);
	LEAVE(done);
}
int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }

int renameat2(int from, const char *name, int to, const char *name2, unsigned flags)
{
	char path[PATH_MAX], path2[PATH_MAX];
	int mine = whole(from, name, path), theirs = whole(to, name2, path2);
	if (!mine && !theirs)
		return REAL(renameat2)(from, name, to, name2, flags);
	ENTER(F_NAME, path2);
	int done = REAL(renameat2)(from, name, to, name2, flags);
	if (!done)
		put(flags & ~RENAME_NOREPLACE || !mine || !theirs ? FOREIGN : RENAME, 0, 0, path, path2, "", 0);
	LEAVE(done);
}
int rename(const char *name, const char *name2) { return renameat2(AT_FDCWD, name, AT_FDCWD, name2, 0); }
int renameat(int from, const char *name, int to, const char *name2) { return renameat2(from, name, to, name2, 0); }

int unlinkat(int dirfd, const char *name, int flags)
{
	char path[PATH_MAX];
	if (!whole(dirfd, name, path))
		return REAL(unlinkat)(dirfd, name, flags);
	ENTER(F_NAME, path);
	int done = REAL(unlinkat)(dirfd, name, flags);
	if (!done)
		put(REMOVE, 0, 0, path, "", "", 0);
	LEAVE(done);
}
int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }

int linkat(int from, const char *name, int to, const char *name2, int flags)
{
	char path[PATH_MAX], path2[PATH_MAX];
	whole(from, name, path);
	if (!whole(to, name2, path2))
		return REAL(linkat)(from, name, to, name2, flags);
	ENTER(F_NAME, path2);
	int done = REAL(linkat)(from, name, to, name2, flags);
	struct stat status;
	if (!done && !fstatat(to, name2, &status, AT_SYMLINK_NOFOLLOW))
		put(LINK, status.st_ino, 0, path2, "", "", 0);
	LEAVE(done);
}
int link(const char *name, const char *name2) { return linkat(AT_FDCWD, name, AT_FDCWD, name2, 0); }

int symlinkat(const char *text, int dirfd, const char *name)
{
	char path[PATH_MAX];
	if (whole(dirfd, name, path))
		put(FOREIGN, 0, 0, path, "symlink", "", 0);
	return REAL(symlinkat)(text, dirfd, name);
}
int symlink(const char *text, const char *name) { return symlinkat(text, AT_FDCWD, name); }

/* -- data --------------------------------------------------------------------------------------------------------- */

/* *offset* below 0: where the descriptor stands. */
static ssize_t do_write(int fd, const struct iovec *parts, int number, off64_t offset, int flags)
{
	char path[PATH_MAX];
	if (!*root || !path_of(fd, path))
		return REAL(pwritev64v2)(fd, parts, number, offset, flags);
	size_t size = 0;
	for (int i = 0; i < number; i++)
		size += parts[i].iov_len;
	char *data = malloc(size ? size : 1), *end = data;
	if (!data)
		abort();
	for (int i = 0; i < number; i++)
		end = (char *)mempcpy(end, parts[i].iov_base, parts[i].iov_len);
	pthread_mutex_lock(&one);
	int trouble = fault(F_WRITE, path);
	if (trouble > 0) {
		pthread_mutex_unlock(&one);
		free(data);
		errno = trouble;
		return -1;
	}
	off64_t place = offset >= 0 ? offset : lseek64(fd, 0, SEEK_CUR);
	if (fcntl(fd, F_GETFL) & O_APPEND)
		place = size_of(fd);
	struct iovec all = { data, trouble == HALF && size > 1 ? size / 2 : size };
	ssize_t done = REAL(pwritev64v2)(fd, &all, 1, offset, flags);
	if (done > 0)
		put(WRITE, inode_of(fd), (uint64_t)place, "", "", data, (size_t)done);
	int saved = errno;
	pthread_mutex_unlock(&one);
	free(data);
	errno = saved;
	return done;
}

#define PART(buffer, size) struct iovec part = { (void *)(buffer), size }
ssize_t write(int fd, const void *buffer, size_t size)
{
	char path[PATH_MAX];
	if (!*root || !path_of(fd, path)) /* also what is no file at all */
		return syscall(SYS_write, fd, buffer, size);
	PART(buffer, size);
	return do_write(fd, &part, 1, -1, 0);
}
ssize_t pwrite(int fd, const void *buffer, size_t size, off_t offset) { PART(buffer, size); return do_write(fd, &part, 1, offset, 0); }
ssize_t pwrite64(int fd, const void *buffer, size_t size, off64_t offset) { PART(buffer, size); return do_write(fd, &part, 1, offset, 0); }
ssize_t writev(int fd, const struct iovec *parts, int number) { return do_write(fd, parts, number, -1, 0); }
ssize_t pwritev(int fd, const struct iovec *parts, int number, off_t offset) { return do_write(fd, parts, number, offset, 0); }
ssize_t pwritev64(int fd, const struct iovec *parts, int number, off64_t offset) { return do_write(fd, parts, number, offset, 0); }
ssize_t pwritev2(int fd, const struct iovec *parts, int number, off_t offset, int flags) { return do_write(fd, parts, number, offset, flags); }
ssize_t pwritev64v2(int fd, const struct iovec *parts, int number, off64_t offset, int flags) { return do_write(fd, parts, number, offset, flags); }

static int do_length(int fd, int (*action)(int, int, off64_t, off64_t), int mode, off64_t offset, off64_t length)
{
	char path[PATH_MAX];
	if (!*root || !path_of(fd, path))
		return action(fd, mode, offset, length);
	ENTER(F_LENGTH, path);
	int64_t before = size_of(fd);
	int done = action(fd, mode, offset, length);
	if (!done && mode & ~FALLOC_FL_KEEP_SIZE)
		put(FOREIGN, inode_of(fd), 0, path, "fallocate", "", 0);
	else if (!done && size_of(fd) != before)
		put(LENGTH, inode_of(fd), (uint64_t)size_of(fd), "", "", "", 0);
	LEAVE(done);
}
static int cut(int fd, int mode, off64_t offset, off64_t length)
{
	(void)mode, (void)offset;
	return (int)syscall(SYS_ftruncate, fd, length);
}
static int reserve(int fd, int mode, off64_t offset, off64_t length) { return (int)syscall(SYS_fallocate, fd, mode, offset, length); }
int ftruncate(int fd, off_t length) { return do_length(fd, cut, 0, 0, length); }
int ftruncate64(int fd, off64_t length) { return do_length(fd, cut, 0, 0, length); }
int fallocate(int fd, int mode, off_t offset, off_t length) { return do_length(fd, reserve, mode, offset, length); }
int fallocate64(int fd, int mode, off64_t offset, off64_t length) { return do_length(fd, reserve, mode, offset, length); }
int posix_fallocate(int fd, off_t offset, off_t length) { return do_length(fd, reserve, 0, offset, length) ? errno : 0; }
int posix_fallocate64(int fd, off64_t offset, off64_t length) { return do_length(fd, reserve, 0, offset, length) ? errno : 0; }

static int do_sync(int fd, long call, int kind)
{
	char path[PATH_MAX];
	if (!*root || !path_of(fd, path))
		return (int)syscall(call, fd, 0, 0, 0);
	pthread_mutex_lock(&one);
	int trouble = fault(F_SYNC, path);
	if (trouble > 0) {
		/* The kernel tells it once, and takes the pages for clean from then on (fsync(2)): they never reach the disk. */
		if (trouble != EINTR)
			put(LOST, inode_of(fd), 0, "", "", "", 0);
		pthread_mutex_unlock(&one);
		errno = trouble;
		return -1;
	}
	/* Nothing here is to outlive the machine's power: the model decides what the disk has. */
	if (kind)
		put(kind, inode_of(fd), 0, "", "", "", 0);
	LEAVE(0);
}
int fsync(int fd) { return do_sync(fd, SYS_fsync, SYNC); }
int fdatasync(int fd) { return do_sync(fd, SYS_fdatasync, SYNC); }
int syncfs(int fd) { return do_sync(fd, SYS_syncfs, SYNC_ALL); }
/* sync_file_range(2) neither flushes the disk's cache nor says where the data are: it makes nothing durable. */
int sync_file_range(int fd, off64_t offset, off64_t length, unsigned flags)
{
	(void)offset, (void)length, (void)flags;
	return do_sync(fd, SYS_sync_file_range, 0);
}

void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
	char path[PATH_MAX];
	if (*root && fd >= 0 && flags & MAP_SHARED && protection & PROT_WRITE && path_of(fd, path))
		put(FOREIGN, inode_of(fd), 0, path, "mmap", "", 0);
	return (void *)syscall(SYS_mmap, address, length, protection, flags, fd, offset);
}
void *mmap64(void *address, size_t length, int protection, int flags, int fd, off64_t offset) { return mmap(address, length, protection, flags, fd, offset); }

ssize_t copy_file_range(int from, off64_t *offset, int fd, off64_t *offset2, size_t size, unsigned flags)
{
	char path[PATH_MAX];
	if (*root && path_of(fd, path))
		put(FOREIGN, inode_of(fd), 0, path, "copy_file_range", "", 0);
	return syscall(SYS_copy_file_range, from, offset, fd, offset2, size, flags);
}

/* -- reading: faults only ----------------------------------------------------------------------------------------- */

static ssize_t do_read(int fd, const struct iovec *parts, int number, off64_t offset, int flags)
{
	char path[PATH_MAX];
	int trouble = 0;
	if (*root && wanted & F_READ && path_of(fd, path)) {
		pthread_mutex_lock(&one);
		trouble = fault(F_READ, path);
		pthread_mutex_unlock(&one);
	}
	if (trouble > 0) {
		errno = trouble;
		return -1;
	}
	if (trouble == HALF && parts[0].iov_len > 1) {
		struct iovec half = { parts[0].iov_base, parts[0].iov_len / 2 };
		return REAL(preadv64v2)(fd, &half, 1, offset, flags);
	}
	return REAL(preadv64v2)(fd, parts, number, offset, flags);
}
ssize_t read(int fd, void *buffer, size_t size)
{
	if (!*root || !(wanted & F_READ))
		return syscall(SYS_read, fd, buffer, size);
	PART(buffer, size);
	return do_read(fd, &part, 1, -1, 0);
}
ssize_t __read_chk(int fd, void *buffer, size_t size, size_t room) { return size > room ? (abort(), -1) : read(fd, buffer, size); }
ssize_t pread(int fd, void *buffer, size_t size, off_t offset) { PART(buffer, size); return do_read(fd, &part, 1, offset, 0); }
ssize_t pread64(int fd, void *buffer, size_t size, off64_t offset) { PART(buffer, size); return do_read(fd, &part, 1, offset, 0); }
ssize_t __pread64_chk(int fd, void *buffer, size_t size, off64_t offset, size_t room) { return size > room ? (abort(), -1) : pread64(fd, buffer, size, offset); }
ssize_t readv(int fd, const struct iovec *parts, int number) { return do_read(fd, parts, number, -1, 0); }
ssize_t preadv(int fd, const struct iovec *parts, int number, off_t offset) { return do_read(fd, parts, number, offset, 0); }
ssize_t preadv64(int fd, const struct iovec *parts, int number, off64_t offset) { return do_read(fd, parts, number, offset, 0); }
ssize_t preadv2(int fd, const struct iovec *parts, int number, off_t offset, int flags) { return do_read(fd, parts, number, offset, flags); }
ssize_t preadv64v2(int fd, const struct iovec *parts, int number, off64_t offset, int flags) { return do_read(fd, parts, number, offset, flags); }
