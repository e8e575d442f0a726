/* A request from its beginning to its reply or its failure, whatever the protocol. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <time.h>

#include "load.h"

enum { MAX_FAILURES = 100 }; /* of one thread, which then begins no further request */

uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void begin(struct loader *l, struct request *r)
{
    uint64_t number = atomic_fetch_add(&issued, 1);
    uint8_t *own = r->head + asked.head_size;
    r->began = now();
    r->sent = r->received = 0;
    own[0] = (uint8_t)asked.kinds[number % asked.kinds_size];
    memcpy(own + 1, &number, sizeof number);
    ++l->under_way;
}

void complete(struct loader *l, const struct request *r)
{
    uint64_t t = now(), ns = t - r->began;
    if (t >= window_opens && t < window_closes)
        append(&l->latencies[r->head[asked.head_size]], &ns, 1);
    --l->under_way;
}

static uint64_t sum(const uint64_t *counts, size_t size)
{
    uint64_t total = 0;
    while (size)
        total += counts[--size];
    return total;
}

void look_if_over(struct loader *l)
{
    l->over = now() >= window_closes || sum(l->failures, FAILURES) + sum(l->errors, ERRORS) >= MAX_FAILURES;
}

void fail(struct loader *l, enum failure how)
{
    ++l->failures[how];
    --l->under_way;
    look_if_over(l);
}

void fail_errno(struct loader *l)
{
    fail(l, errno == ECONNREFUSED ? REFUSED : RESET);
}

void fail_code(struct loader *l, unsigned code)
{
    ++l->errors[code < ERRORS ? code : 0];
    --l->under_way;
    look_if_over(l);
}

int unsent(const struct request *r, struct iovec parts[2])
{
    size_t head = asked.head_size + OWN, skip = r->sent > head ? r->sent - head : 0;
    int count = 0;
    if (r->sent < head)
        parts[count++] = (struct iovec){(void *)(r->head + r->sent), head - r->sent};
    if (asked.bytes > OWN)
        parts[count++] = (struct iovec){noise + OWN + skip, asked.bytes - OWN - skip};
    return count;
}

bool is_sent(const struct request *r)
{
    return r->sent == asked.head_size + asked.bytes;
}

bool is_echo(const struct request *r, const uint8_t *got, size_t n)
{
    size_t own = r->received < OWN ? OWN - r->received : 0;
    if (own > n)
        own = n;
    if (r->received + n > asked.bytes || memcmp(got, r->head + asked.head_size + r->received, own))
        return false;
    return !memcmp(got + own, noise + r->received + own, n - own);
}
