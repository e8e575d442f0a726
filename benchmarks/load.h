/* What the protocols share: the load that was asked for, its requests, and what becomes of them. */
#ifndef LOAD_H
#define LOAD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "series.h"

enum {
    OWN = 9,                  /* payload bytes that belong to one request: kind and number */
    HEAD_ROOM = 160,          /* bytes before the payload, of any protocol */
    SCRATCH = 256 * 1024,     /* bytes read at once */
    ERRORS = 600,             /* the codes a server may answer are below */
};

enum failure { WRONG, RESET, REFUSED, UNANSWERED, FAILURES };

struct request {
    uint64_t began;           /* ns */
    size_t sent;              /* of asked.head_size + asked.bytes */
    size_t received;          /* of asked.bytes */
    uint8_t head[HEAD_ROOM + OWN]; /* the protocol's head, then the payload's own bytes */
};

struct loader {               /* one thread's */
    pthread_t thread;
    int epoll_fd;
    uint8_t *scratch;
    size_t connections, under_way; /* under_way: requests */
    bool over;                /* begin no further request */
    uint64_t failures[FAILURES], errors[ERRORS];
    struct series latencies[256];
};

struct protocol {
    const char *name;
    void (*prepare)(void);    /* sets asked.head_size */
    void (*start)(struct loader *l);
    void (*on_event)(struct loader *l, void *connection, uint32_t events);
};

extern const struct protocol oneshot, framed, http;

extern struct asked {
    const struct protocol *protocol;
    uint16_t port;
    size_t depth, bytes, kinds_size, head_size;
    const char *kinds;
} asked;

extern uint8_t *noise;
extern uint64_t window_opens, window_closes; /* ns */
extern atomic_uint_fast64_t issued;

uint64_t now(void);           /* ns, CLOCK_MONOTONIC */
void look_if_over(struct loader *l);
/* Number and time a request, nothing of it sent; its head is the protocol's to lay out. */
void begin(struct loader *l, struct request *r);
/* All of its reply is in: keep its latency. */
void complete(struct loader *l, const struct request *r);
/* It has failed; more than a few failures end the load. */
void fail(struct loader *l, enum failure how);
void fail_errno(struct loader *l);              /* by errno */
void fail_code(struct loader *l, unsigned code); /* the server said so */

/* Point at what of a request is not sent yet; returns how many of the two parts are needed. */
int unsent(const struct request *r, struct iovec parts[2]);
bool is_sent(const struct request *r);
/* Compare the next bytes of a reply with what was sent. */
bool is_echo(const struct request *r, const uint8_t *got, size_t n);

/* A socket on its way to the server; numbers that follow each other have different source addresses. */
int open_client(uint64_t number);
void send_at_once(int fd); /* for a connection that is kept */
void watch(struct loader *l, int fd, uint32_t events, void *connection);

#endif
