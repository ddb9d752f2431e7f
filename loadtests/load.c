/* A load generator that checks every answer: one thread, epoll, HTTP/1.1 keep-alive, whole or SSE.
 *
 * Closed loop by default: each connection sends its next request when it has its answer. With -r it
 * is an open loop: requests begin at that rate whatever the answers do, on the next idle connection;
 * the time a request waited for one counts as its latency.
 *
 * An answer is right when its status is 200 and: whole, it has a usage, the model's name and the
 * length it said; streamed, it has the number of content events asked for, the model's name in each,
 * usage in all events (-u all), in the last one (-u final) or nowhere (-u none), and [DONE] as its
 * last event. An event's delay is from the engine's send (its delta is that moment) to our read.
 *
 * Usage: load -p PORT -b BODYFILE -M MODEL [-k KEY] [-s CHUNKS -u all|final|none] [-c CONNECTIONS]
 *             [-n REQUESTS | -d SECONDS] [-w REQUESTS] [-r PER_SECOND] [-R RAMP_MS]
 *   -s  streams of so many content events      -w  requests before measuring begins
 *   -R  connections are opened over this time
 * One JSON object on standard output; exits 3 when an answer was wrong.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define READ_BYTES 262144
#define LINE_BYTES 8192

/* Latencies in ns, 64 buckets a power of two: at most 1.6 % off. */
typedef struct { uint64_t counts[4096], total, sum; } histogram;

static void record(histogram *h, uint64_t ns) {
    h->total++;
    h->sum += ns;
    if (ns < 64) { h->counts[ns]++; return; }
    int power = 63 - __builtin_clzll(ns);
    h->counts[(power - 5) * 64 + (int)((ns >> (power - 6)) & 63)]++;
}

static double quantile_us(const histogram *h, double share) {
    uint64_t wanted = (uint64_t)(share * (double)h->total), seen = 0;
    if (!h->total) return -1;
    for (int i = 0; i < 4096; i++) {
        seen += h->counts[i];
        if (seen <= wanted) continue;
        if (i < 64) return i / 1e3;
        int power = i / 64 + 5;
        return (double)((1ull << power) + ((uint64_t)(i & 63) << (power - 6))) / 1e3;
    }
    return -1;
}

enum { IDLE, CONNECTING, SENDING, HEAD, SIZED, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER };
enum { USAGE_ALL, USAGE_FINAL, USAGE_NONE };

typedef struct {
    int fd, state, status, done, wrong;
    size_t sent, head_used, line_used, left, chunk;
    long content, events, with_usage, after_done;
    uint64_t began_ns;
    char head[4096], line[LINE_BYTES];
} conn;

static histogram latencies, first_events, delays;
static conn *conns;
static int poller, port, count = 1, usage_wanted = USAGE_FINAL, finished_all;
static long chunks_wanted = -1, total, warmup, started, answered;
static double seconds, rate;
static unsigned long right, wrong, content_events, reconnects;
static char *request, first_wrong[600], model_mark[300];
static size_t request_size;
static uint64_t begun_ns, measured_ns;

static uint64_t now_ns(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * 1000000000ull + (uint64_t)at.tv_nsec;
}

static int measuring(void) { return answered >= warmup; }

static void watch(conn *c, int operation, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    epoll_ctl(poller, operation, c->fd, &event);
}

static void open_socket(conn *c) {
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (connect(c->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS) {
        perror("connect");
        exit(1);
    }
    c->state = CONNECTING;
    watch(c, EPOLL_CTL_ADD, EPOLLIN | EPOLLOUT);
}

static void send_request(conn *c) {
    while (c->sent < request_size) {
        ssize_t sent = send(c->fd, request + c->sent, request_size - c->sent, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) {
            if (c->state != SENDING) watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
            c->state = SENDING;
            return;
        }
        if (sent < 0) return; /* the read that follows says so */
        c->sent += (size_t)sent;
    }
    if (c->state != IDLE) watch(c, EPOLL_CTL_MOD, EPOLLIN);
    c->state = HEAD;
}

static void begin(conn *c, uint64_t began_ns) {
    if (finished_all || (total && started >= total + warmup)) { c->state = IDLE; return; }
    started++;
    c->sent = c->head_used = c->line_used = c->left = c->chunk = 0;
    c->status = c->done = c->wrong = 0;
    c->content = c->events = c->with_usage = c->after_done = 0;
    c->began_ns = began_ns;
    c->state = IDLE;
    if (c->fd < 0) open_socket(c);
    else send_request(c);
}

static void blame(conn *c, const char *why) {
    if (!c->wrong && !first_wrong[0])
        snprintf(first_wrong, sizeof first_wrong, "%s: status %d content %ld usage %ld of %ld head %.120s line %.200s",
                 why, c->status, c->content, c->with_usage, c->events, c->head, c->line);
    c->wrong = 1;
}

static void finish(conn *c, uint64_t now) {
    int measured = measuring();
    if (c->status != 200) blame(c, "status");
    else if (chunks_wanted < 0) {
        c->line[c->line_used] = 0;
        if (!strstr(c->line, "\"usage\":{\"prompt_tokens\":")) blame(c, "no usage");
        if (!strstr(c->line, model_mark)) blame(c, "model");
    } else {
        long usage = usage_wanted == USAGE_NONE ? 0 : usage_wanted == USAGE_FINAL ? 1 : c->events;
        if (c->content != chunks_wanted) blame(c, "content events");
        if (c->done != 1 || c->after_done) blame(c, "no [DONE] at the end");
        if (c->with_usage != usage) blame(c, "usage");
    }
    answered++;
    if (c->wrong) wrong++;
    else if (measured) {
        right++;
        record(&latencies, now - c->began_ns);
    }
    if (measured && !measured_ns) measured_ns = c->began_ns;
    c->state = IDLE;
    if (!rate) begin(c, now);
}

static void take_event(conn *c, uint64_t now, const char *line, size_t size) {
    if (size < 7 || memcmp(line, "data: ", 6)) return;
    if (c->done) c->after_done++;
    if (size >= 12 && !memcmp(line + 6, "[DONE]", 6)) { c->done++; return; }
    if (!c->events++ && measuring()) record(&first_events, now - c->began_ns);
    if (!memmem(line, size, model_mark, strlen(model_mark))) blame(c, "model in an event");
    if (memmem(line, size, "\"usage\":{", 9)) c->with_usage++;
    const char *content = memmem(line, size, "\"content\":\"", 11);
    if (!content || content[11] == '"') return;
    c->content++;
    if (!measuring()) return;
    content_events++;
    record(&delays, now - strtoull(content + 11, NULL, 10));
}

static void take_body(conn *c, uint64_t now, const char *data, size_t size) {
    if (chunks_wanted < 0 || c->status != 200) { /* its end is where usage stands */
        if (size > LINE_BYTES - 1) { data += size - (LINE_BYTES - 1); size = LINE_BYTES - 1; }
        if (c->line_used + size > LINE_BYTES - 1) c->line_used = 0;
        memcpy(c->line + c->line_used, data, size);
        c->line_used += size;
        return;
    }
    while (size) {
        const char *end = memchr(data, '\n', size);
        size_t part = end ? (size_t)(end - data) : size;
        if (!c->line_used && end) take_event(c, now, data, part);
        else {
            if (c->line_used + part >= LINE_BYTES) { blame(c, "a line too long"); c->line_used = 0; }
            memcpy(c->line + c->line_used, data, part);
            c->line_used += part;
            if (end) {
                c->line[c->line_used] = 0;
                take_event(c, now, c->line, c->line_used);
                c->line_used = 0;
            }
        }
        if (!end) return;
        size -= part + 1;
        data = end + 1;
    }
}

static size_t take_head(conn *c, uint64_t now, const char *data, size_t size) {
    size_t before = c->head_used, room = sizeof c->head - 1 - before;
    size_t part = size < room ? size : room;
    memcpy(c->head + before, data, part);
    c->head[c->head_used = before + part] = 0;
    char *end = strstr(c->head, "\r\n\r\n");
    if (!end) {
        if (part == room) { fprintf(stderr, "a head too long\n"); exit(1); }
        return size;
    }
    size_t used = (size_t)(end + 4 - c->head) - before;
    end[2] = 0;
    c->status = atoi(c->head + 9);
    char *length = strcasestr(c->head, "\r\ncontent-length:");
    c->left = length ? (size_t)atol(length + 17) : 0;
    c->state = SIZED;
    if (strcasestr(c->head, "\r\ntransfer-encoding: chunked")) c->state = CHUNK_SIZE;
    else if (!c->left) finish(c, now);
    return used;
}

static void take(conn *c, uint64_t now, const char *data, size_t size) {
    while (size) {
        size_t part = 1;
        switch (c->state) {
        case HEAD: part = take_head(c, now, data, size); break;
        case SIZED:
        case CHUNK_DATA:
            part = size < c->left ? size : c->left;
            take_body(c, now, data, part);
            c->left -= part;
            if (c->left) break;
            if (c->state == SIZED) finish(c, now);
            else c->state = CHUNK_END;
            break;
        case CHUNK_SIZE:
            if (*data == '\n') {
                c->left = c->chunk;
                c->chunk = 0;
                c->state = c->left ? CHUNK_DATA : TRAILER;
            } else if (*data != '\r') {
                c->chunk = c->chunk * 16 + (size_t)(*data <= '9' ? *data - '0' : (*data | 32) - 'a' + 10);
            }
            break;
        case CHUNK_END: if (*data == '\n') c->state = CHUNK_SIZE; break;
        case TRAILER: if (*data == '\n') finish(c, now); break;
        default: blame(c, "bytes that nobody asked for"); wrong++; return;
        }
        data += part;
        size -= part;
    }
}

static void lost(conn *c) {
    close(c->fd);
    c->fd = -1;
    if (c->state == IDLE) return;
    if (c->state == CONNECTING) { fprintf(stderr, "connection refused\n"); exit(1); }
    if (c->state <= HEAD && !c->head_used && reconnects++ < 1000) { /* a kept connection had ended */
        c->sent = 0;
        open_socket(c);
        return;
    }
    blame(c, "closed early");
    wrong++;
    answered++;
    c->state = IDLE;
    if (!rate) begin(c, now_ns());
}

static void serve(conn *c, uint32_t events) {
    static char buffer[READ_BYTES];
    if (events & EPOLLOUT && (c->state == CONNECTING || c->state == SENDING)) send_request(c);
    if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR)) || c->fd < 0) return;
    ssize_t got = recv(c->fd, buffer, sizeof buffer, 0);
    if (got > 0) take(c, now_ns(), buffer, (size_t)got);
    else if (!got || errno != EAGAIN) lost(c);
}

/* Begin what is due; the time until something else is. */
static long begin_due_ns(long ramp_ms) {
    static int opened;
    static double due;
    static int next;
    uint64_t now = now_ns();
    if (!rate) {
        while (opened < count &&
               now - begun_ns >= (uint64_t)ramp_ms * 1000000ull * (uint64_t)opened / (uint64_t)count)
            begin(&conns[opened++], now);
        return opened < count ? 200000 : 10000000;
    }
    while ((double)(now - begun_ns) / 1e9 >= due) {
        int tried = 0;
        while (tried < count && conns[next].state != IDLE) { next = (next + 1) % count; tried++; }
        if (tried == count) break;
        begin(&conns[next], begun_ns + (uint64_t)(due * 1e9));
        due += 1 / rate;
    }
    double left = due * 1e9 - (double)(now_ns() - begun_ns);
    return left < 1000 ? 0 : left > 1e7 ? 10000000 : (long)left;
}

static void make_request(const char *path, const char *key) {
    FILE *file = fopen(path, "rb");
    if (!file) { perror(path); exit(1); }
    static char body[1 << 20];
    size_t size = fread(body, 1, sizeof body, file);
    fclose(file);
    request = malloc(size + 2048);
    int head = sprintf(request,
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: application/json\r\n"
        "Accept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\nUser-Agent: OpenAI/Python 2.8.0\r\n"
        "X-Stainless-Lang: python\r\nX-Stainless-Package-Version: 2.8.0\r\n"
        "%s%s%sContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n",
        port, key ? "Authorization: Bearer " : "", key ? key : "", key ? "\r\n" : "", size);
    memcpy(request + head, body, size);
    request_size = (size_t)head + size;
}

static void report(uint64_t ended_ns) {
    double elapsed = (double)(ended_ns - (measured_ns ? measured_ns : begun_ns)) / 1e9;
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    for (char *p = first_wrong; *p; p++) if (*p == '"' || *p == '\\' || *p < 32) *p = '\'';
    printf("{\"right\":%lu,\"wrong\":%lu,\"first_wrong\":\"%s\",\"elapsed_s\":%.4f,\"content_events\":%lu,"
           "\"reconnects\":%lu,\"latency_p50_us\":%.1f,\"latency_p99_us\":%.1f,\"latency_mean_us\":%.1f,"
           "\"first_event_p50_us\":%.1f,\"delay_p50_us\":%.1f,\"delay_p99_us\":%.1f,\"client_cpu_s\":%.3f}\n",
           right, wrong, first_wrong, elapsed, content_events, reconnects, quantile_us(&latencies, .5),
           quantile_us(&latencies, .99),
           latencies.total ? (double)latencies.sum / (double)latencies.total / 1e3 : -1,
           quantile_us(&first_events, .5), quantile_us(&delays, .5), quantile_us(&delays, .99),
           (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
               (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6);
}

int main(int argc, char **argv) {
    const char *body = NULL, *key = NULL, *model = "";
    long ramp_ms = 0;
    int option;
    while ((option = getopt(argc, argv, "p:b:M:k:s:u:c:n:d:w:r:R:")) > 0) switch (option) {
        case 'p': port = atoi(optarg); break;
        case 'b': body = optarg; break;
        case 'M': model = optarg; break;
        case 'k': key = optarg; break;
        case 's': chunks_wanted = atol(optarg); break;
        case 'u': usage_wanted = *optarg == 'a' ? USAGE_ALL : *optarg == 'f' ? USAGE_FINAL : USAGE_NONE; break;
        case 'c': count = atoi(optarg); break;
        case 'n': total = atol(optarg); break;
        case 'd': seconds = atof(optarg); break;
        case 'w': warmup = atol(optarg); break;
        case 'r': rate = atof(optarg); break;
        case 'R': ramp_ms = atol(optarg); break;
        default: return 2;
        }
    if (!port || !body) return fprintf(stderr, "load: -p and -b are needed\n"), 2;
    signal(SIGPIPE, SIG_IGN);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    snprintf(model_mark, sizeof model_mark, "\"model\":\"%s\"", model);
    make_request(body, key);
    poller = epoll_create1(0);
    conns = calloc((size_t)count, sizeof *conns);
    for (int i = 0; i < count; i++) conns[i].fd = -1;
    static struct epoll_event events[512];
    begun_ns = now_ns();
    while (!(total && answered >= total + warmup)) {
        if (seconds && (double)(now_ns() - begun_ns) / 1e9 >= seconds) break;
        struct timespec wait = {0, begin_due_ns(ramp_ms)};
        int ready = epoll_pwait2(poller, events, 512, &wait, NULL);
        for (int i = 0; i < ready; i++) serve(events[i].data.ptr, events[i].events);
    }
    report(now_ns());
    return wrong ? 3 : 0;
}
