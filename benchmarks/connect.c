/* Sockets to the server. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "load.h"

enum {
    SOURCES = 250,             /* addresses to connect from, see open_client, ... */
    FIRST_SOURCE = 0x7f010001, /* ... from 127.1.0.1 on */
    MAX_OPENED = 5000000,      /* connections of one run: fewer than SOURCES x 28,000 ports */
};

static atomic_uint_fast64_t opened;

/*
 * One source address has 28,000 ports, a second's work with a connection each: they stay in TIME_WAIT for a
 * minute (on the side that closes first, but they hold the pair of ports). So each comes from the next of 250
 * addresses; all of 127.0.0.0/8 is there without set-up. IP_BIND_ADDRESS_NO_PORT leaves the port to connect(),
 * which knows the destination and so finds one faster.
 */
int open_client(uint64_t number)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(asked.port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (atomic_fetch_add(&opened, 1) >= MAX_OPENED) {
        fprintf(stderr, "more than %d connections: ask for fewer seconds\n", MAX_OPENED);
        exit(1);
    }
    for (uint64_t attempt = 0; attempt < SOURCES; ++attempt) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
        if (fd < 0)
            die("socket");
        struct sockaddr_in from = {.sin_family = AF_INET};
        from.sin_addr.s_addr = htonl(FIRST_SOURCE + (uint32_t)((number + attempt) % SOURCES));
        setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
        if (bind(fd, (struct sockaddr *)&from, sizeof from) == 0 &&
            (connect(fd, (struct sockaddr *)&to, sizeof to) == 0 || errno == EINPROGRESS))
            return fd;
        if (errno != EADDRNOTAVAIL && errno != EADDRINUSE)
            die("connect");
        close(fd);
    }
    fprintf(stderr, "no local port is left on any of %d addresses\n", SOURCES);
    exit(1);
}

void send_at_once(int fd)
{
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

void watch(struct loader *l, int fd, uint32_t events, void *connection)
{
    struct epoll_event event = {.events = events | EPOLLRDHUP | EPOLLET, .data.ptr = connection};
    if (epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
        die("epoll_ctl");
}
