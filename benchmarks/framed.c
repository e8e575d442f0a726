/*
 * gaspar's framed protocol (docs/protocol.rst), as much of it as a load needs: kept connections with several
 * requests in flight on each. An id is 1 + slot + depth x how often the slot was used, so that a reply that
 * comes twice or to nobody is seen.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "load.h"

enum { HEADER = 20, REQUEST = 1, HELLO = 16, REPLY = 17, ERROR = 18, GOAWAY = 21, AT_ONCE = 64 };
static const char MAGIC[] = "GSP2";

struct slot {
    uint32_t id;            /* of the request that is under way; 0: none */
    uint32_t uses;
    struct slot *next;      /* to be sent after it */
    struct request request;
};

struct connection {
    int fd;                 /* -1: lost */
    bool greeted;           /* HELLO has come */
    struct slot *slots, *first, *last; /* first ... last are to be sent */
    uint8_t header[HEADER]; /* of the frame that is coming */
    size_t have, skip, left; /* of it: bytes of header; bytes to pass over, then bytes of a reply, to come */
    struct slot *answered;  /* whose reply it is */
};

static void prepare(void)
{
    asked.head_size = HEADER;
}

static void lose(struct loader *l, struct connection *c, bool is_wrong)
{
    int error = errno;
    for (size_t i = 0; i < asked.depth; ++i) {
        errno = error;
        if (c->slots[i].id && is_wrong)
            fail(l, WRONG);
        else if (c->slots[i].id)
            fail_errno(l);
        c->slots[i].id = 0;
    }
    close(c->fd);
    c->fd = -1;
}

static void ask(struct loader *l, struct connection *c, struct slot *s)
{
    uint32_t words[2] = {htonl((uint32_t)asked.bytes)};
    begin(l, &s->request);
    s->id = 1 + (uint32_t)(s - c->slots) + (uint32_t)asked.depth * (s->uses++ % (UINT32_MAX / (uint32_t)asked.depth));
    words[1] = htonl(s->id);
    memset(s->request.head, 0, HEADER);
    memcpy(s->request.head, words, sizeof words);
    s->request.head[8] = REQUEST;
    s->next = NULL;
    if (c->first)
        c->last->next = s;
    else
        c->first = s;
    c->last = s;
}

static void send_more(struct loader *l, struct connection *c)
{
    while (c->first) {
        struct iovec parts[2 * AT_ONCE];
        size_t count = 0;
        for (struct slot *s = c->first; s && count <= 2 * (AT_ONCE - 1); s = s->next)
            count += (size_t)unsent(&s->request, parts + count);
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = count};
        ssize_t n = sendmsg(c->fd, &message, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno != EAGAIN) /* else EPOLLOUT comes */
                lose(l, c, false);
            return;
        }
        for (size_t sent = (size_t)n; sent;) {
            struct request *r = &c->first->request;
            size_t rest = HEADER + asked.bytes - r->sent, part = sent < rest ? sent : rest;
            r->sent += part;
            sent -= part;
            if (is_sent(r))
                c->first = c->first->next;
        }
    }
}

/* Look at a whole header; false if it is none that should come. */
static bool open_frame(struct loader *l, struct connection *c)
{
    uint32_t size, id;
    uint16_t meta;
    unsigned kind = c->header[8];
    memcpy(&size, c->header, 4);
    memcpy(&id, c->header + 4, 4);
    memcpy(&meta, c->header + 10, 2);
    size = ntohl(size);
    id = ntohl(id);
    c->skip = ntohs(meta);
    c->left = 0;
    c->answered = NULL;
    if (c->greeted == (kind == HELLO))
        return false;
    c->greeted = true;
    if (kind != REPLY && kind != ERROR) {
        c->skip += size;
        return kind == HELLO || kind == GOAWAY;
    }
    struct slot *s = id ? &c->slots[(id - 1) % asked.depth] : NULL;
    if (kind == ERROR) {
        c->skip += size;
        if (!s)
            ++l->errors[c->header[9]]; /* about the connection, which is about to end */
        else if (s->id == id) {
            s->id = 0; /* and rests: a run with a failure is worth nothing */
            fail_code(l, c->header[9]);
        } else
            return false;
        return true;
    }
    c->left = size;
    c->answered = s;
    return s && s->id == id && is_sent(&s->request) && size == asked.bytes;
}

/* Take what has come; false if it is not what should have. */
static bool take(struct loader *l, struct connection *c, const uint8_t *data, size_t size)
{
    while (size) {
        size_t part = size;
        if (c->have < HEADER) {
            part = size < HEADER - c->have ? size : HEADER - c->have;
            memcpy(c->header + c->have, data, part);
            c->have += part;
            if (c->have == HEADER && !open_frame(l, c))
                return false;
        } else if (c->skip) {
            part = size < c->skip ? size : c->skip;
            c->skip -= part;
        } else {
            part = size < c->left ? size : c->left;
            if (!is_echo(&c->answered->request, data, part))
                return false;
            c->answered->request.received += part;
            c->left -= part;
        }
        data += part;
        size -= part;
        if (c->have < HEADER || c->skip || c->left)
            continue;
        c->have = 0;
        if (c->answered) {
            c->answered->id = 0;
            complete(l, &c->answered->request);
            if (!l->over)
                ask(l, c, c->answered);
        }
    }
    return true;
}

static void receive(struct loader *l, struct connection *c, uint32_t events)
{
    bool ends = events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR);
    for (;;) {
        ssize_t n = recv(c->fd, l->scratch, SCRATCH, 0);
        if (n > 0) {
            if (!take(l, c, l->scratch, (size_t)n)) {
                lose(l, c, true);
                return;
            }
            if (n < SCRATCH && !ends)
                return;
        } else if (n == 0) {
            errno = 0;
            lose(l, c, false);
            return;
        } else if (errno == EAGAIN) {
            return;
        } else if (errno != EINTR) {
            lose(l, c, false);
            return;
        }
    }
}

static void start(struct loader *l)
{
    struct connection *connections = calloc(l->connections, sizeof *connections);
    struct slot *slots = calloc(l->connections * asked.depth, sizeof *slots);
    if (!connections || !slots)
        die("calloc");
    for (size_t i = 0; i < l->connections; ++i) {
        struct connection *c = &connections[i];
        c->slots = slots + i * asked.depth;
        c->fd = open_client(i);
        send_at_once(c->fd);
        for (size_t slot = 0; slot < asked.depth; ++slot)
            ask(l, c, &c->slots[slot]);
        /* over loopback the connection is there when connect() returns */
        if (send(c->fd, MAGIC, sizeof MAGIC - 1, MSG_NOSIGNAL) == sizeof MAGIC - 1)
            send_more(l, c);
        else
            lose(l, c, false);
        if (c->fd >= 0)
            watch(l, c->fd, EPOLLIN | EPOLLOUT, c);
    }
}

static void on_event(struct loader *l, void *connection, uint32_t events)
{
    struct connection *c = connection;
    if (c->fd >= 0 && events & ~(uint32_t)EPOLLOUT)
        receive(l, c, events);
    if (c->fd >= 0)
        send_more(l, c);
}

const struct protocol framed = {"framed", prepare, start, on_event};
