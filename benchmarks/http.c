/* HTTP/1.1, as much of it as a load needs: POST, a reply with Content-Length, each connection kept if it is. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "load.h"

enum { MAX_HEAD = 4096 };

struct client {
    int fd;                   /* -1: not connected */
    bool asks;                /* a request is under way */
    bool closes;              /* the server does not keep the connection */
    bool has_head;            /* of the reply */
    size_t have;              /* bytes of head */
    char head[MAX_HEAD + 1];
    struct request request;
};

static char first_lines[HEAD_ROOM];

static void prepare(void)
{
    int size = snprintf(first_lines, sizeof first_lines,
                        "POST /inference HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
                        "Content-Length: %zu\r\n\r\n", asked.bytes);
    asked.head_size = (size_t)size;
}

static void leave(struct client *c)
{
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    c->asks = false;
}

static void send_more(struct loader *l, struct client *c)
{
    while (c->asks && !is_sent(&c->request)) {
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

/* Read a whole head; returns the status, 0 if it is none that is understood or announces another size. */
static unsigned read_head(struct client *c)
{
    unsigned status = 0;
    const char *length = strcasestr(c->head, "\r\ncontent-length:");
    if (sscanf(c->head, "HTTP/1.%*c %u", &status) != 1)
        return 0;
    c->closes = strcasestr(c->head, "\r\nconnection: close") != NULL;
    if (status == 200 && (!length || strtoul(length + 17, NULL, 10) != asked.bytes))
        return 0;
    return status;
}

/* Take what has come; false if the request has failed, which is counted. */
static bool take(struct loader *l, struct client *c, const uint8_t *data, size_t size)
{
    if (!c->has_head) {
        size_t part = size < MAX_HEAD - c->have ? size : MAX_HEAD - c->have, before = c->have;
        memcpy(c->head + c->have, data, part);
        c->have += part;
        c->head[c->have] = 0;
        char *end = strstr(c->head, "\r\n\r\n");
        if (!end) {
            if (c->have == MAX_HEAD)
                fail(l, WRONG);
            return c->have < MAX_HEAD;
        }
        end[2] = 0;
        size_t used = (size_t)(end + 4 - c->head) - before;
        data += used;
        size -= used;
        c->has_head = true;
        unsigned status = read_head(c);
        if (status != 200) {
            if (status)
                fail_code(l, status);
            else
                fail(l, WRONG);
            return false;
        }
    }
    if (!c->asks || !is_echo(&c->request, data, size)) {
        fail(l, WRONG);
        return false;
    }
    c->request.received += size;
    if (c->request.received == asked.bytes) {
        complete(l, &c->request);
        c->asks = false;
    }
    return true;
}

static void receive(struct loader *l, struct client *c)
{
    while (c->asks) {
        ssize_t n = recv(c->fd, l->scratch, SCRATCH, 0);
        if (n > 0) {
            if (!take(l, c, l->scratch, (size_t)n)) {
                leave(c);
                return;
            }
        } else if (n < 0 && errno == EAGAIN) {
            return;
        } else if (n == 0 || errno != EINTR) {
            errno = n ? errno : 0;
            fail_errno(l);
            leave(c);
            return;
        }
    }
    if (c->closes)
        leave(c);
}

static void ask(struct loader *l, struct client *c)
{
    uint64_t number;
    memcpy(c->request.head, first_lines, asked.head_size);
    begin(l, &c->request);
    c->asks = true;
    c->has_head = c->closes = false;
    c->have = 0;
    if (c->fd < 0) {
        memcpy(&number, c->request.head + asked.head_size + 1, sizeof number);
        c->fd = open_client(number);
        send_at_once(c->fd);
        watch(l, c->fd, EPOLLIN | EPOLLOUT, c); /* whose first event, soon, sends */
    } else {
        send_more(l, c);
    }
}

static void start(struct loader *l)
{
    struct client *clients = reserve(NULL, l->connections * sizeof *clients);
    for (size_t i = 0; i < l->connections; ++i) {
        clients[i].fd = -1;
        ask(l, &clients[i]);
    }
}

static void on_event(struct loader *l, void *connection, uint32_t events)
{
    struct client *c = connection;
    if (events & EPOLLOUT)
        send_more(l, c);
    if (c->asks && events & ~(uint32_t)EPOLLOUT)
        receive(l, c);
    if (!c->asks && !l->over)
        ask(l, c);
}

const struct protocol http = {"http", prepare, start, on_event};
