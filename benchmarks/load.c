/*
 * Loads a one-shot server on 127.0.0.1 and checks every reply byte for byte.
 *
 *     load PORT THREADS CLIENTS BYTES WARMUP SECONDS KINDS
 *
 * A closed loop: CLIENTS requests are under way at any time, each on a connection of its own, and the next
 * begins when a reply's end-of-file is in. Each thread has an epoll and a share of the clients. The server
 * has to echo. What completes within SECONDS after WARMUP counts; what is under way then is still awaited
 * and checked, so that no server is left with work.
 *
 *     bytes of a payload   0     kind: KINDS, repeated for ever, so that each server meets the same sequence
 *                          1..8  number of the request: no reply can be taken for another's
 *                          9..   the same noise in each
 *
 * Prints one JSON object. Latencies run from before socket() to end-of-file, CLOCK_MONOTONIC.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "series.h"

enum {
    HEADER = 4,             /* the length, network byte order */
    OWN = 9,                /* payload bytes that belong to one request: kind and number */
    SCRATCH = 256 * 1024,   /* bytes read at once */
    SOURCES = 250,          /* addresses to connect from, see open_client, ... */
    FIRST_SOURCE = 0x7f010001, /* ... from 127.1.0.1 on */
    MAX_THREADS = 16,
    MAX_CLIENTS = 10000,
    MAX_REQUESTS = 5000000, /* of one run: fewer than SOURCES x 28,000 ports */
    MAX_FAILURES = 100,     /* of one thread, which then begins no further request */
    MAX_SECONDS = 120,
    DRAIN_SECONDS = 10,     /* for the replies that are outstanding at the end */
};

struct client {
    int fd;                 /* -1: has no request under way */
    uint64_t began;         /* ns */
    size_t sent;            /* of HEADER + bytes */
    size_t received;        /* of bytes */
    uint8_t head[HEADER + OWN];
};

struct loader {             /* one thread's */
    pthread_t thread;
    int epoll_fd;
    uint8_t *scratch;
    struct client *clients;
    size_t clients_count, under_way;
    uint64_t wrong, reset, refused;
    struct series latencies[256];
};

static struct {
    uint16_t port;
    size_t bytes, kinds_size;
    const char *kinds;
} asked;

static uint8_t *noise;
static uint64_t window_opens, window_closes;
static atomic_uint_fast64_t issued;

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void end_request(struct loader *l, struct client *c, uint64_t *failure)
{
    uint64_t t = now(), ns = t - c->began;
    if (failure)
        ++*failure;
    else if (t >= window_opens && t < window_closes)
        append(&l->latencies[c->head[HEADER]], &ns, 1);
    close(c->fd);
    c->fd = -1;
    --l->under_way;
}

static void end_failed(struct loader *l, struct client *c)
{
    end_request(l, c, errno == ECONNREFUSED ? &l->refused : &l->reset);
}

static void send_more(struct loader *l, struct client *c)
{
    while (c->sent < HEADER + asked.bytes) {
        struct iovec parts[2];
        int count = 0;
        size_t skip = c->sent > sizeof c->head ? c->sent - sizeof c->head : 0;
        if (c->sent < sizeof c->head)
            parts[count++] = (struct iovec){c->head + c->sent, sizeof c->head - c->sent};
        if (asked.bytes > OWN)
            parts[count++] = (struct iovec){noise + OWN + skip, asked.bytes - OWN - skip};
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)count};
        ssize_t n = sendmsg(c->fd, &message, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno != EAGAIN) /* else EPOLLOUT comes */
                end_failed(l, c);
            return;
        }
        c->sent += (size_t)n;
    }
}

static bool is_echo(const struct client *c, const uint8_t *got, size_t n)
{
    size_t own = c->received < OWN ? OWN - c->received : 0;
    if (own > n)
        own = n;
    if (c->received + n > asked.bytes || memcmp(got, c->head + HEADER + c->received, own))
        return false;
    return !memcmp(got + own, noise + c->received + own, n - own);
}

static void receive(struct loader *l, struct client *c, uint32_t events)
{
    bool ends = events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR);
    for (;;) {
        ssize_t n = recv(c->fd, l->scratch, SCRATCH, 0);
        if (n > 0) {
            if (!is_echo(c, l->scratch, (size_t)n)) {
                end_request(l, c, &l->wrong);
                return;
            }
            c->received += (size_t)n;
            if (n < SCRATCH && !ends)
                return; /* spares a recv: the end will be an event of its own */
        } else if (n == 0) {
            bool whole = c->received == asked.bytes && c->sent == HEADER + asked.bytes;
            end_request(l, c, whole ? NULL : &l->wrong);
            return;
        } else if (errno == EAGAIN) {
            return;
        } else if (errno != EINTR) {
            end_failed(l, c);
            return;
        }
    }
}

/*
 * A socket on its way to the server. One source address has 28,000 ports, a second's work: its connections
 * stay in TIME_WAIT for a minute (on the server's side, which closes first, but they hold the pair of ports).
 * So each request comes from the next of 250 addresses; all of 127.0.0.0/8 is there without set-up.
 * IP_BIND_ADDRESS_NO_PORT leaves the port to connect(), which knows the destination and so finds one faster.
 */
static int open_client(uint64_t number)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(asked.port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
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

static void begin_request(struct loader *l, struct client *c)
{
    uint64_t number = atomic_fetch_add(&issued, 1);
    uint32_t length = htonl((uint32_t)asked.bytes);
    if (number >= MAX_REQUESTS) {
        fprintf(stderr, "more than %d requests: ask for fewer seconds\n", MAX_REQUESTS);
        exit(1);
    }
    c->began = now();
    c->sent = c->received = 0;
    memcpy(c->head, &length, HEADER);
    c->head[HEADER] = (uint8_t)asked.kinds[number % asked.kinds_size];
    memcpy(c->head + HEADER + 1, &number, sizeof number);
    c->fd = open_client(number);
    ++l->under_way;
    send_more(l, c); /* over loopback the connection is there when connect() returns */
    if (c->fd < 0)
        return; /* a run with a failure is worth nothing: this client may rest */
    uint32_t out = c->sent < HEADER + asked.bytes ? EPOLLOUT : 0;
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | EPOLLET | out, .data.ptr = c};
    if (epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, c->fd, &event) < 0)
        die("epoll_ctl");
}

static void *run(void *argument)
{
    struct loader *l = argument;
    struct epoll_event events[256];
    for (size_t i = 0; i < l->clients_count; ++i)
        begin_request(l, &l->clients[i]);
    while (l->under_way && now() < window_closes + DRAIN_SECONDS * 1000000000ull) {
        int count = epoll_wait(l->epoll_fd, events, 256, 100);
        if (count < 0 && errno != EINTR)
            die("epoll_wait");
        bool over = now() >= window_closes || l->wrong + l->reset + l->refused >= MAX_FAILURES;
        for (int i = 0; i < count; ++i) {
            struct client *c = events[i].data.ptr;
            if (events[i].events & EPOLLOUT)
                send_more(l, c);
            if (events[i].events != EPOLLOUT && c->fd >= 0)
                receive(l, c, events[i].events);
            if (c->fd < 0 && !over)
                begin_request(l, c);
        }
    }
    return NULL;
}

/* Print the sum of all threads, which is gathered in the first. */
static void print_json(struct loader *l, size_t threads, double seconds)
{
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
                 (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    for (size_t i = 1; i < threads; ++i) {
        l->wrong += l[i].wrong;
        l->reset += l[i].reset;
        l->refused += l[i].refused;
        l->under_way += l[i].under_way;
        for (int kind = 0; kind < 256; ++kind)
            append(&l->latencies[kind], l[i].latencies[kind].ns, l[i].latencies[kind].count);
    }
    printf("{\"issued\": %" PRIu64 ", \"wrong\": %" PRIu64 ", \"reset\": %" PRIu64 ", \"refused\": %" PRIu64
           ", \"unanswered\": %zu, \"seconds\": %.6f, \"cpu_seconds\": %.6f, \"kinds\": {",
           (uint64_t)issued, l->wrong, l->reset, l->refused, l->under_way, seconds, cpu);
    const char *comma = "";
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

static void start(struct loader *l, size_t clients)
{
    l->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    l->scratch = reserve(NULL, SCRATCH);
    l->clients = reserve(NULL, clients * sizeof *l->clients);
    l->clients_count = clients;
    if (l->epoll_fd < 0 || pthread_create(&l->thread, NULL, run, l))
        die("start");
}

int main(int argc, char **argv)
{
    static struct loader loaders[MAX_THREADS];
    if (argc != 8) {
        fputs("usage: load PORT THREADS CLIENTS BYTES WARMUP SECONDS KINDS\n", stderr);
        return 2;
    }
    size_t threads = (size_t)atol(argv[2]), clients = (size_t)atol(argv[3]);
    double warmup = atof(argv[5]), seconds = atof(argv[6]);
    asked.port = (uint16_t)atoi(argv[1]);
    asked.bytes = (size_t)atol(argv[4]);
    asked.kinds = argv[7];
    asked.kinds_size = strlen(asked.kinds);
    if (!asked.port || !threads || threads > MAX_THREADS || clients < threads || clients > MAX_CLIENTS ||
        asked.bytes < OWN || asked.bytes >= 1u << 30 || warmup < 0 || seconds <= 0 ||
        warmup + seconds > MAX_SECONDS || !asked.kinds_size) {
        fputs("an argument is out of range\n", stderr);
        return 2;
    }
    noise = reserve(NULL, asked.bytes);
    for (size_t i = 0; i < asked.bytes; ++i)
        noise[i] = (uint8_t)((i * 2654435761u) >> 13);
    window_opens = now() + (uint64_t)(warmup * 1e9);
    window_closes = window_opens + (uint64_t)(seconds * 1e9);
    for (size_t i = 0; i < threads; ++i)
        start(&loaders[i], clients / threads + (i < clients % threads));
    for (size_t i = 0; i < threads; ++i)
        pthread_join(loaders[i].thread, NULL);
    print_json(loaders, threads, seconds);
    return 0;
}
