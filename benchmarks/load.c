/*
 * Loads a server on 127.0.0.1 and checks every reply byte for byte.
 *
 *     load PROTOCOL PORT THREADS CONNECTIONS DEPTH BYTES WARMUP SECONDS KINDS
 *
 * PROTOCOL   oneshot   a connection for each request (oneshot.c)
 *            framed    gaspar's GSP2, DEPTH requests in flight on each connection (framed.c)
 *            http      POST, each connection kept if the server keeps it (http.c)
 *
 * A closed loop: CONNECTIONS x DEPTH requests are under way at any time, the next begins when a reply is whole.
 * Each thread has an epoll and a share of the connections. The server has to echo. What completes within
 * SECONDS after WARMUP counts; what is under way then is still awaited and checked, so that no server is
 * left with work.
 *
 *     bytes of a payload   0     kind: KINDS, repeated for ever, so that each server meets the same sequence
 *                          1..8  number of the request: no reply can be taken for another's
 *                          9..   the same noise in each
 *
 * Prints one JSON object. Latencies run, by CLOCK_MONOTONIC, from when a request could have been sent: with a
 * connection each from before socket().
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>

#include "load.h"

enum {
    MAX_THREADS = 16,
    MAX_CONNECTIONS = 10000,
    MAX_DEPTH = 10000,
    MAX_SECONDS = 120,
    DRAIN_SECONDS = 10,        /* for the replies that are outstanding at the end */
};

struct asked asked;
static const struct protocol *protocols[] = {&oneshot, &framed, &http};
uint8_t *noise;
uint64_t window_opens, window_closes;
atomic_uint_fast64_t issued;

static void *run(void *argument)
{
    struct loader *l = argument;
    struct epoll_event events[256];
    asked.protocol->start(l);
    while (l->under_way && now() < window_closes + DRAIN_SECONDS * 1000000000ull) {
        int count = epoll_wait(l->epoll_fd, events, 256, 100);
        if (count < 0 && errno != EINTR)
            die("epoll_wait");
        look_if_over(l);
        for (int i = 0; i < count; ++i)
            asked.protocol->on_event(l, events[i].data.ptr, events[i].events);
    }
    l->failures[UNANSWERED] += l->under_way;
    return NULL;
}

static void add(struct loader *to, const struct loader *from)
{
    for (size_t i = 0; i < FAILURES; ++i)
        to->failures[i] += from->failures[i];
    for (size_t i = 0; i < ERRORS; ++i)
        to->errors[i] += from->errors[i];
    for (size_t kind = 0; kind < 256; ++kind)
        append(&to->latencies[kind], from->latencies[kind].ns, from->latencies[kind].count);
}

static void print_json(struct loader *l, double seconds)
{
    static const char *const names[FAILURES] = {"wrong", "reset", "refused", "unanswered"};
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
                 (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    printf("{\"issued\": %" PRIu64 ", \"seconds\": %.6f, \"cpu_seconds\": %.6f, \"failures\": {",
           (uint64_t)issued, seconds, cpu);
    const char *comma = "";
    for (size_t i = 0; i < FAILURES; ++i)
        if (l->failures[i]) {
            printf("%s\"%s\": %" PRIu64, comma, names[i], l->failures[i]);
            comma = ", ";
        }
    for (size_t i = 0; i < ERRORS; ++i)
        if (l->errors[i]) {
            printf("%s\"error %zu\": %" PRIu64, comma, i, l->errors[i]);
            comma = ", ";
        }
    printf("}, \"kinds\": {");
    comma = "";
    for (int kind = 0; kind < 256; ++kind) {
        struct series *s = &l->latencies[kind];
        if (!s->count)
            continue;
        sort(s);
        printf("%s\"%c\": {\"count\": %zu, ", comma, kind, s->count);
        printf("\"p50_us\": %.1f, \"p95_us\": %.1f, \"p99_us\": %.1f}", percentile_us(s, 50),
               percentile_us(s, 95), percentile_us(s, 99));
        comma = ", ";
    }
    puts("}}");
}

static void start(struct loader *l, size_t connections)
{
    l->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    l->scratch = reserve(NULL, SCRATCH);
    l->connections = connections;
    if (l->epoll_fd < 0 || pthread_create(&l->thread, NULL, run, l))
        die("start");
}

int main(int argc, char **argv)
{
    static struct loader loaders[MAX_THREADS];
    if (argc != 10) {
        fputs("usage: load PROTOCOL PORT THREADS CONNECTIONS DEPTH BYTES WARMUP SECONDS KINDS\n", stderr);
        return 2;
    }
    size_t threads = (size_t)atol(argv[3]), connections = (size_t)atol(argv[4]);
    double warmup = atof(argv[7]), seconds = atof(argv[8]);
    for (size_t i = 0; i < sizeof protocols / sizeof *protocols; ++i)
        if (!strcmp(argv[1], protocols[i]->name))
            asked.protocol = protocols[i];
    asked.port = (uint16_t)atoi(argv[2]);
    asked.depth = (size_t)atol(argv[5]);
    asked.bytes = (size_t)atol(argv[6]);
    asked.kinds = argv[9];
    asked.kinds_size = strlen(asked.kinds);
    if (!asked.protocol || !asked.port || !threads || threads > MAX_THREADS || connections < threads ||
        connections > MAX_CONNECTIONS || !asked.depth || asked.depth > MAX_DEPTH ||
        (asked.depth > 1 && asked.protocol != &framed) || asked.bytes < OWN || asked.bytes >= 1u << 30 ||
        warmup < 0 || seconds <= 0 || warmup + seconds > MAX_SECONDS || !asked.kinds_size) {
        fputs("an argument is out of range\n", stderr);
        return 2;
    }
    asked.protocol->prepare();
    noise = reserve(NULL, asked.bytes);
    for (size_t i = 0; i < asked.bytes; ++i)
        noise[i] = (uint8_t)((i * 2654435761u) >> 13);
    window_opens = now() + (uint64_t)(warmup * 1e9);
    window_closes = window_opens + (uint64_t)(seconds * 1e9);
    for (size_t i = 0; i < threads; ++i)
        start(&loaders[i], connections / threads + (i < connections % threads));
    for (size_t i = 0; i < threads; ++i) {
        pthread_join(loaders[i].thread, NULL);
        if (i)
            add(&loaders[0], &loaders[i]);
    }
    print_json(&loaders[0], seconds);
    return 0;
}
