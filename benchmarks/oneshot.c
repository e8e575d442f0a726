/* One connection per request: a 4-byte length and the payload; the reply is what comes until end-of-file. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "load.h"

struct client {
    int fd;                 /* -1: has no request under way */
    struct request request;
};

static void prepare(void)
{
    asked.head_size = sizeof(uint32_t);
}

static void leave(struct client *c)
{
    close(c->fd);
    c->fd = -1;
}

static void send_more(struct loader *l, struct client *c)
{
    while (!is_sent(&c->request)) {
        struct iovec parts[2];
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)unsent(&c->request, parts)};
        ssize_t n = sendmsg(c->fd, &message, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EAGAIN)
                return; /* EPOLLOUT comes */
            fail_errno(l);
            leave(c);
            return;
        }
        c->request.sent += (size_t)n;
    }
}

static void receive(struct loader *l, struct client *c, uint32_t events)
{
    struct request *r = &c->request;
    bool ends = events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR);
    for (;;) {
        ssize_t n = recv(c->fd, l->scratch, SCRATCH, 0);
        if (n > 0) {
            if (!is_echo(r, l->scratch, (size_t)n)) {
                fail(l, WRONG);
                break;
            }
            r->received += (size_t)n;
            if (n < SCRATCH && !ends)
                return; /* spares a recv: the end will be an event of its own */
        } else if (n == 0) {
            if (r->received == asked.bytes && is_sent(r))
                complete(l, r);
            else
                fail(l, WRONG);
            break;
        } else if (errno == EAGAIN) {
            return;
        } else if (errno != EINTR) {
            fail_errno(l);
            break;
        }
    }
    leave(c);
}

static void ask(struct loader *l, struct client *c)
{
    uint32_t length = htonl((uint32_t)asked.bytes);
    uint64_t number;
    begin(l, &c->request);
    memcpy(c->request.head, &length, sizeof length);
    memcpy(&number, c->request.head + asked.head_size + 1, sizeof number);
    c->fd = open_client(number);
    send_more(l, c); /* over loopback the connection is there when connect() returns */
    if (c->fd >= 0)  /* else it rests: a run with a failure is worth nothing */
        watch(l, c->fd, EPOLLIN | (is_sent(&c->request) ? 0 : EPOLLOUT), c);
}

static void start(struct loader *l)
{
    struct client *clients = reserve(NULL, l->connections * sizeof *clients);
    for (size_t i = 0; i < l->connections; ++i)
        ask(l, &clients[i]);
}

static void on_event(struct loader *l, void *connection, uint32_t events)
{
    struct client *c = connection;
    if (events & EPOLLOUT)
        send_more(l, c);
    if (events != EPOLLOUT && c->fd >= 0)
        receive(l, c, events);
    if (c->fd < 0 && !l->over)
        ask(l, c);
}

const struct protocol oneshot = {"oneshot", prepare, start, on_event};
