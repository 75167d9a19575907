/* The floor: an epoll loop that takes descriptors with a message, keeps them, and gives them back for the next one. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { MOST = 253, BYTES = 1 << 16 };

static int held[MOST], count;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void let_go(void) {
    while (count) close(held[--count]);
}

/* Returns 0 at the end of the stream. */
static int answer(int connection) {
    static char data[BYTES];
    union { struct cmsghdr head; char room[CMSG_SPACE(MOST * sizeof(int))]; } control;
    struct iovec bytes = {data, sizeof data};
    struct msghdr message = {.msg_iov = &bytes, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t length = recvmsg(connection, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (length <= 0) return 0;
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    struct iovec reply = {"ok", 3};
    struct msghdr back = {.msg_iov = &reply, .msg_iovlen = 1};
    if (rights) {
        let_go();
        count = (rights->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        memcpy(held, CMSG_DATA(rights), count * sizeof(int));
    } else {
        back.msg_control = &control;
        back.msg_controllen = CMSG_SPACE(count * sizeof(int));
        control.head = (struct cmsghdr){.cmsg_len = CMSG_LEN(count * sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(&control.head), held, count * sizeof(int));
    }
    return sendmsg(connection, &back, MSG_NOSIGNAL) > 0;
}

int main(int argc, char **argv) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, argv[argc - 1], sizeof address.sun_path - 1);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), poll = epoll_create1(EPOLL_CLOEXEC);
    if (listener < 0 || poll < 0) fail("socket");
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 8)) fail("bind");
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int ready = epoll_wait(poll, &event, 1, -1);
        if (ready < 0 && errno == EINTR) continue;
        if (ready < 0) fail("epoll_wait");
        if (event.data.fd == listener) {
            struct epoll_event fresh = {.events = EPOLLIN};
            fresh.data.fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
            epoll_ctl(poll, EPOLL_CTL_ADD, fresh.data.fd, &fresh);
        } else if (!answer(event.data.fd)) {
            close(event.data.fd);
        }
    }
}
