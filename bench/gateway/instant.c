/* The two ends of `make bench-gateway`, in C so that neither is what is measured.
 *
 *   instant upstream            an endpoint that answers chat completions at once; prints its port
 *   instant load PORT CONNECTIONS SECONDS COUNT json|sse FILE
 *                               sends the request in FILE until SECONDS or COUNT (0: no limit); prints figures as JSON
 *
 * What must live here: bytes in, bytes out, and the checks without which no figure counts. What must not: what is
 * compared with what (`run.py`). Linux, 127.0.0.1 only.
 *
 * Every request carries an id of its own as "user":"<16 characters>" in its body; the answer to it must carry that id and
 * no other. A stream has EVENTS events, each written by itself, in an HTTP chunk of its own, one event of each open stream in
 * turn; a request whose id begins with "flood" gets FLOOD bytes of events as fast as they are taken.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define EVENTS 100
#define FLOOD (200ull * 1000 * 1000)
#define ID 16
#define MOST_CONNECTIONS 1024
#define PLACE "@@@@@@@@@@@@@@@@" /* where the id goes */
#define GRACE 30.0               /* seconds after which a missing answer is a hung connection */

typedef struct {
    char *data;
    size_t used, room;
} Buffer;

static void give_up(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

static char *reserve(Buffer *to, size_t size) {
    if (to->used + size > to->room) {
        to->room = (to->used + size) * 2;
        to->data = realloc(to->data, to->room);
        if (!to->data) give_up("no memory");
    }
    return to->data + to->used;
}

static void append(Buffer *to, const void *data, size_t size) {
    memcpy(reserve(to, size), data, size);
    to->used += size;
}

static void appendf(Buffer *to, const char *format, ...) {
    char text[4096];
    va_list arguments;
    va_start(arguments, format);
    int size = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (size < 0 || size >= (int)sizeof text) give_up("too long a text");
    append(to, text, size);
}

/* Replace every place in what `to` got since `from` by `id`. */
static void put_id(Buffer *to, size_t from, const char *id) {
    char *at = to->data + from, *end = to->data + to->used;
    while ((at = memmem(at, end - at, PLACE, ID))) {
        memcpy(at, id, ID);
        at += ID;
    }
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

/* The value of header `name` within a message's head, or NULL. */
static const char *header(const char *head, size_t size, const char *name) {
    const char *line = head, *end = head + size;
    size_t length = strlen(name);
    while ((line = memchr(line, '\n', end - line)) && ++line + length < end) {
        if (!strncasecmp(line, name, length) && line[length] == ':') {
            line += length + 1;
            while (*line == ' ') line++;
            return line;
        }
    }
    return NULL;
}

static void watch(int poll, int how, int fd, uint32_t events, void *what) {
    struct epoll_event event = {.events = events, .data.ptr = what};
    if (epoll_ctl(poll, how, fd, &event)) give_up("epoll_ctl: %s", strerror(errno));
}

static void no_delay(int fd) {
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

/* --- the upstream -------------------------------------------------------------------------------------------------- */

typedef struct Peer {
    int fd;
    Buffer in, out;
    size_t sent;       /* of `out` */
    int events;        /* of a stream, still to be written; the last one is [DONE] */
    uint64_t flood;    /* bytes still to be written */
    bool full;         /* the socket takes no more for now */
    bool last;         /* the connection ends with this answer */
    char id[ID + 1];
    struct Peer *next; /* of those with a stream under way */
} Peer;

static Buffer answer, stream_head, event_, last_event, block;
static uint64_t served, written;

static void chunk(Buffer *to, const char *data, size_t size) {
    appendf(to, "%zx\r\n", size);
    append(to, data, size);
    append(to, "\r\n", 2);
}

static void prepare(void) {
    char words[900];
    memset(words, 0, sizeof words);
    while (strlen(words) < 640) strcat(words, "The loom weaves threads of many colours into one cloth. ");
    Buffer body = {0};
    appendf(&body,
            "{\"id\":\"chatcmpl-" PLACE "\",\"object\":\"chat.completion\",\"created\":1750000000,\"model\":\"gpt-bench\","
            "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"%s\",\"refusal\":null},\"logprobs\":null,"
            "\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":140,\"total_tokens\":152}}",
            words);
    appendf(&answer, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n", body.used);
    append(&answer, body.data, body.used);
    appendf(&stream_head,
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n");
    Buffer one = {0};
    appendf(&one, "data: {\"id\":\"chatcmpl-" PLACE "\",\"object\":\"chat.completion.chunk\",\"created\":1750000000,"
                  "\"model\":\"gpt-bench\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" cloth\"},\"logprobs\":null,"
                  "\"finish_reason\":null}]}\n\n");
    chunk(&event_, one.data, one.used);
    Buffer many = {0};
    while (many.used + one.used <= 65536) append(&many, one.data, one.used);
    chunk(&block, many.data, many.used);
    chunk(&last_event, "data: [DONE]\n\n", 14);
    append(&last_event, "0\r\n\r\n", 5);
}

/* Write what is waiting. False: the peer is gone. */
static bool flush(Peer *peer, int poll) {
    while (peer->sent < peer->out.used) {
        ssize_t size = send(peer->fd, peer->out.data + peer->sent, peer->out.used - peer->sent, MSG_NOSIGNAL);
        if (size < 0) {
            if (errno != EAGAIN) return false;
            if (!peer->full) watch(poll, EPOLL_CTL_MOD, peer->fd, EPOLLIN | EPOLLOUT, peer);
            return peer->full = true;
        }
        peer->sent += size;
        written += size;
    }
    peer->sent = peer->out.used = 0;
    if (peer->full) watch(poll, EPOLL_CTL_MOD, peer->fd, EPOLLIN, peer);
    peer->full = false;
    return true;
}

/* Answer the request that has come, if all of it has. False: it cannot be answered. */
static bool handle(Peer *peer, Peer **streams) {
    char *end = memmem(peer->in.data, peer->in.used, "\r\n\r\n", 4);
    if (!end) return peer->in.used < 65536;
    size_t head = end + 4 - peer->in.data;
    const char *length = header(peer->in.data, head, "content-length");
    size_t size = length ? strtoul(length, NULL, 10) : 0;
    if (header(peer->in.data, head, "transfer-encoding")) return false;
    if (peer->in.used < head + size) return true;
    if (!memcmp(peer->in.data, "GET /count ", 11)) {
        char text[128];
        int used = snprintf(text, sizeof text, "{\"served\":%lu,\"bytes\":%lu}", served, written);
        appendf(&peer->out, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s", used, text);
        const char *connection = header(peer->in.data, head, "connection");
        peer->last = connection && !strncasecmp(connection, "close", 5);
        peer->in.used = 0;
        return true;
    }
    char *body = peer->in.data + head, *user = memmem(body, size, "\"user\":\"", 8);
    if (!user || user + 8 + ID >= body + size || memcmp(peer->in.data, "POST /v1/chat/completions ", 26)) return false;
    memcpy(peer->id, user + 8, ID);
    served++;
    if (memmem(body, size, "\"stream\":true", 13)) {
        append(&peer->out, stream_head.data, stream_head.used);
        if (!memcmp(peer->id, "flood", 5))
            peer->flood = FLOOD;
        peer->events = peer->flood ? 1 : EVENTS + 1;
        peer->next = *streams;
        *streams = peer;
    } else {
        append(&peer->out, answer.data, answer.used);
        put_id(&peer->out, 0, peer->id);
    }
    peer->in.used = 0;
    return true;
}

/* The next event of a stream. False: the peer is gone. */
static bool go_on(Peer *peer, int poll) {
    size_t from = peer->out.used;
    if (peer->flood) {
        append(&peer->out, block.data, block.used);
        peer->flood -= peer->flood < block.used ? peer->flood : block.used;
    } else {
        Buffer *what = --peer->events ? &event_ : &last_event;
        append(&peer->out, what->data, what->used);
    }
    put_id(&peer->out, from, peer->id);
    return flush(peer, poll);
}

static void drop(Peer *peer, Peer **streams) {
    for (Peer **at = streams; *at; at = &(*at)->next)
        if (*at == peer) {
            *at = peer->next;
            break;
        }
    close(peer->fd);
    free(peer->in.data);
    free(peer->out.data);
    free(peer);
}

static void upstream(void) {
    prepare();
    int listening = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), poll = epoll_create1(0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    if (bind(listening, (void *)&address, size) || listen(listening, 1024)) give_up("listen: %s", strerror(errno));
    getsockname(listening, (void *)&address, &size);
    printf("listening 127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
    watch(poll, EPOLL_CTL_ADD, listening, EPOLLIN, NULL);
    Peer *streams = NULL;
    struct epoll_event events[64];
    for (;;) {
        bool runnable = false;
        for (Peer *peer = streams; peer; peer = peer->next) runnable |= !peer->full;
        int found = epoll_wait(poll, events, 64, runnable ? 0 : -1);
        for (int n = 0; n < found; n++) {
            Peer *peer = events[n].data.ptr;
            if (!peer) {
                int fd = accept4(listening, NULL, NULL, SOCK_NONBLOCK);
                if (fd < 0) continue;
                no_delay(fd);
                peer = calloc(1, sizeof *peer);
                peer->fd = fd;
                watch(poll, EPOLL_CTL_ADD, fd, EPOLLIN, peer);
                continue;
            }
            bool good = true;
            if (events[n].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
                ssize_t got = recv(peer->fd, reserve(&peer->in, 16384), 16384, 0);
                if (got > 0) peer->in.used += got;
                good = (got > 0 && handle(peer, &streams)) || (got < 0 && errno == EAGAIN);
            }
            if (!good || !flush(peer, poll) || (peer->last && !peer->out.used)) drop(peer, &streams);
        }
        for (Peer **at = &streams; *at;) {
            Peer *peer = *at, *next = peer->next;
            if (!peer->full && !go_on(peer, poll)) {
                drop(peer, &streams);
                continue;
            }
            if (peer->events) at = &peer->next;
            else *at = next;
        }
        if (streams) sched_yield(); /* the client shares this core: it shall see the first event when it is there */
    }
}

/* --- the load ------------------------------------------------------------------------------------------------------ */

typedef struct {
    int fd;
    Buffer in, body;
    size_t head, at;   /* where the head ends; up to where chunks are decoded */
    size_t length;     /* of the body, if it is not chunked */
    bool chunked, over, busy;
    double sent, first;
    char id[ID + 1];
} Client;

static Buffer request;
static size_t place;
static int port, poll_, clients, busy;
static bool sse;
static double deadline, own;
static uint64_t most, asked, answers, reconnects, reads;
static double *totals, *firsts;
static size_t room;
static char run_id[7];

static void connect_(Client *client) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    client->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(client->fd, (void *)&address, sizeof address)) give_up("cannot connect: %s", strerror(errno));
    no_delay(client->fd);
    watch(poll_, EPOLL_CTL_ADD, client->fd, EPOLLIN, client);
}

static void ask(Client *client, double since) {
    if ((most && asked >= most) || since >= deadline) {
        if (client->busy) busy--;
        client->busy = false;
        return;
    }
    if (!client->busy) busy++;
    client->busy = true;
    snprintf(client->id, sizeof client->id, "%s%010lu", run_id, asked++);
    memcpy(request.data + place, client->id, ID);
    client->in.used = client->body.used = client->head = client->at = client->length = 0;
    client->chunked = client->over = false;
    client->first = 0;
    client->sent = now();
    own += client->sent - since;
    for (size_t done = 0; done < request.used;) {
        ssize_t size = send(client->fd, request.data + done, request.used - done, MSG_NOSIGNAL);
        if (size < 0) give_up("cannot send: %s", strerror(errno));
        done += size;
    }
}

static uint64_t occurrences(const Buffer *in, const char *what, size_t size) {
    uint64_t found = 0;
    char *at = in->data, *end = in->data + in->used;
    for (; (at = memmem(at, end - at, what, size)); at += size) found++;
    return found;
}

static void check(Client *client) {
    Buffer *body = &client->body;
    char mine[64];
    int size = snprintf(mine, sizeof mine, "chatcmpl-%s", client->id);
    uint64_t all = occurrences(body, "chatcmpl-", 9), own_ids = occurrences(body, mine, size);
    if (all != own_ids || own_ids != (sse ? EVENTS : 1))
        give_up("the answer to %s has %lu ids, %lu of them its own: %.*s", client->id, all, own_ids, 600, body->data);
    if (sse && (occurrences(body, "data: {", 7) != EVENTS || occurrences(body, "data: [DONE]", 12) != 1))
        give_up("not %d events and [DONE]: %.*s", EVENTS, 600, body->data);
}

/* Decode what is there of the chunks. */
static void dechunk(Client *client) {
    Buffer *in = &client->in;
    for (;;) {
        char *from = in->data + client->at, *end = in->data + in->used;
        char *line = from < end ? memmem(from, end - from, "\r\n", 2) : NULL;
        if (!line) return;
        size_t size = strtoul(from, NULL, 16);
        if ((size_t)(end - line) < 2 + size + 2) return;
        if (!size) {
            client->over = true;
            return;
        }
        append(&client->body, line + 2, size);
        client->at = line + 2 + size + 2 - in->data;
    }
}

static void readable(Client *client) {
    ssize_t got = recv(client->fd, reserve(&client->in, 65536), 65536, 0);
    if (got <= 0) {
        if (client->busy) give_up("the connection broke in the middle of an answer");
        close(client->fd);
        connect_(client);
        reconnects++;
        return;
    }
    reads++;
    if (!client->busy) give_up("an answer to no request");
    Buffer *in = &client->in;
    in->used += got;
    if (!client->head) {
        char *end = memmem(in->data, in->used, "\r\n\r\n", 4);
        if (!end) return;
        client->head = client->at = end + 4 - in->data;
        const char *length = header(in->data, client->head, "content-length");
        client->length = length ? strtoul(length, NULL, 10) : 0;
        client->chunked = header(in->data, client->head, "transfer-encoding") != NULL;
        if (in->used < 12 || memcmp(in->data + 9, "200", 3)) give_up("not a 200: %.*s", (int)in->used, in->data);
        if (!length && !client->chunked) give_up("an answer without a length");
    }
    if (client->chunked) {
        dechunk(client);
    } else if (in->used - client->head >= client->length) {
        append(&client->body, in->data + client->head, client->length);
        client->at = client->head + client->length;
        client->over = true;
    }
    if (sse && !client->first && client->body.used) client->first = now() - client->sent;
    if (!client->over) return;
    double arrived = now();
    check(client);
    if (answers == room) {
        room = room ? room * 2 : 1 << 16;
        totals = realloc(totals, room * sizeof *totals);
        firsts = realloc(firsts, room * sizeof *firsts);
    }
    firsts[answers] = client->first;
    totals[answers++] = arrived - client->sent;
    const char *connection = header(in->data, client->head, "connection");
    if (connection && !strncasecmp(connection, "close", 5)) {
        close(client->fd);
        connect_(client);
        reconnects++;
    }
    ask(client, arrived);
}

static int ascending(const void *one, const void *other) {
    double a = *(const double *)one, b = *(const double *)other;
    return (a > b) - (a < b);
}

static double quantile(double *sorted, double share) { return sorted[(size_t)(share * (answers - 1))] * 1e3; }

static void load(char **given) {
    port = atoi(given[0]);
    clients = atoi(given[1]);
    double seconds = atof(given[2]);
    most = strtoul(given[3], NULL, 10);
    sse = !strcmp(given[4], "sse");
    if (clients < 1 || clients > MOST_CONNECTIONS) give_up("not a number of connections: %d", clients);
    FILE *file = fopen(given[5], "rb");
    if (!file) give_up("cannot read %s", given[5]);
    for (size_t got = 1; got; request.used += got) got = fread(reserve(&request, 4096), 1, 4096, file);
    char *found = memmem(request.data, request.used, PLACE, ID);
    if (!found) give_up("no place for an id in the request");
    place = found - request.data;
    snprintf(run_id, sizeof run_id, "%06x", (unsigned)((uint64_t)(now() * 1e6) & 0xffffff));
    poll_ = epoll_create1(0);
    Client *all = calloc(clients, sizeof *all);
    for (int n = 0; n < clients; n++) connect_(&all[n]);
    double began = now();
    deadline = began + seconds;
    for (int n = 0; n < clients; n++) ask(&all[n], began);
    struct epoll_event events[256];
    while (busy) {
        int count = epoll_wait(poll_, events, 256, 1000);
        if (now() > deadline + GRACE) give_up("%d of %d connections hang", busy, clients);
        for (int n = 0; n < count; n++) readable(events[n].data.ptr);
    }
    double wall = now() - began, sum = 0;
    if (!answers || answers != asked) give_up("%lu requests, %lu answers", asked, answers);
    for (uint64_t n = 0; n < answers; n++) sum += totals[n];
    qsort(totals, answers, sizeof *totals, ascending);
    qsort(firsts, answers, sizeof *firsts, ascending);
    /* Little's law: what was under way, on average. At the end a connection rests while the others finish. */
    double little = (sum + own) / wall / clients, rest = totals[answers - 1] / wall;
    if (little > 1.05 || little < 0.95 - rest) give_up("rate x mean latency is %.3f of the %d connections", little, clients);
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu = used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1e-6;
    printf("{\"connections\":%d,\"answers\":%lu,\"wall\":%.4f,\"rate\":%.2f,\"mean\":%.5f,\"p50\":%.5f,\"p99\":%.5f,"
           "\"first_p50\":%.5f,\"first_p99\":%.5f,\"little\":%.4f,\"reconnects\":%lu,\"reads\":%.2f,\"own_cpu\":%.3f}\n",
           clients, answers, wall, answers / wall, sum / answers * 1e3, quantile(totals, 0.5), quantile(totals, 0.99),
           quantile(firsts, 0.5), quantile(firsts, 0.99), little, reconnects, (double)reads / answers, cpu);
}

int main(int count, char **given) {
    if (count == 2 && !strcmp(given[1], "upstream")) upstream();
    else if (count == 8 && !strcmp(given[1], "load")) load(given + 2);
    else give_up("usage: instant upstream | instant load PORT CONNECTIONS SECONDS COUNT json|sse FILE");
    return 0;
}
