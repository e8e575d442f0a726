/* Latencies that were measured, and their percentiles. */
#ifndef SERIES_H
#define SERIES_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct series {
    uint64_t *ns;
    size_t count, room;
};

static inline void die(const char *what)
{
    perror(what);
    exit(1);
}

static inline void *reserve(void *old, size_t size)
{
    void *memory = realloc(old, size);
    if (!memory)
        die("realloc");
    return memory;
}

static inline void append(struct series *s, const uint64_t *ns, size_t count)
{
    if (!count)
        return;
    if (s->count + count > s->room) {
        s->room = 2 * (s->count + count);
        s->ns = reserve(s->ns, s->room * sizeof *s->ns);
    }
    memcpy(s->ns + s->count, ns, count * sizeof *ns);
    s->count += count;
}

static inline int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static inline void sort(struct series *s)
{
    qsort(s->ns, s->count, sizeof *s->ns, compare);
}

/* Of a sorted, not empty series. */
static inline double percentile_us(const struct series *s, double percent)
{
    size_t rank = (size_t)(percent / 100 * (double)s->count);
    return (double)s->ns[rank < s->count ? rank : s->count - 1] / 1e3;
}

#endif
