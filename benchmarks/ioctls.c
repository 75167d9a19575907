/* The floor of a handover: the bare ioctls of /dev/liveupdate.
 *
 *     ioctls preserve SESSION COUNT BYTES    makes COUNT memfds and preserves them, again and again; prints the
 *                                            nanoseconds of each time, and stays with the last
 *     ioctls retrieve SESSION COUNT          takes them out in the next kernel, and prints nanoseconds
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

/* include/uapi/linux/liveupdate.h, which no distribution has yet */
struct session { uint32_t size; int32_t fd; uint8_t name[64]; };
struct file { uint32_t size; int32_t fd; uint64_t token; };
enum { TIMES = 4 };
enum { CREATE = 0xBA00, RETRIEVE = 0xBA01, PRESERVE_FD = 0xBA40, RETRIEVE_FD = 0xBA41 };

static void check(int result, const char *what) {
    if (result >= 0) return;
    perror(what);
    exit(1);
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static int open_session(unsigned request, const char *name) {
    int device = open("/dev/liveupdate", O_RDWR | O_CLOEXEC);
    check(device, "/dev/liveupdate");
    struct session session = {.size = sizeof session};
    strncpy((char *)session.name, name, sizeof session.name - 1);
    check(ioctl(device, request, &session), "the session");
    close(device);
    return session.fd;
}

static int filled(size_t bytes) {
    int fd = memfd_create("floor", MFD_CLOEXEC);
    check(fd, "memfd_create");
    check(ftruncate(fd, bytes), "ftruncate");
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) check(-1, "mmap");
    memset(memory, 0x5a, bytes);
    munmap(memory, bytes);
    return fd;
}

int main(int argc, char **argv) {
    struct rlimit many = {1 << 20, 1 << 20};
    setrlimit(RLIMIT_NOFILE, &many);
    long count = atol(argv[3]);
    int preserving = !strcmp(argv[1], "preserve");
    int *fds = calloc(count, sizeof *fds);
    if (preserving)
        for (long i = 0; i < count; i++) fds[i] = filled(strtoull(argv[4], NULL, 0));
    for (int times = preserving ? TIMES : 1; times; times--) {
        int session = open_session(preserving ? CREATE : RETRIEVE, argv[2]);
        int64_t begin = now();
        for (long i = 0; i < count; i++) {
            struct file file = {.size = sizeof file, .fd = preserving ? fds[i] : -1, .token = i + 1};
            check(ioctl(session, preserving ? PRESERVE_FD : RETRIEVE_FD, &file), argv[1]);
            fds[i] = file.fd;
        }
        printf("%lld\n", (long long)(now() - begin));
        fflush(stdout);
        if (times > 1) close(session);
    }
    if (preserving) pause();
    return 0;
}
