/* An engine that answers as vLLM 0.32 does, fast enough never to be what is measured.
 *
 * One thread, epoll, HTTP/1.1 keep-alive. It reads whole requests and answers
 *   POST /v1/chat/completions, /v1/completions    whole, or one write an event, with usage as asked
 *   GET  /health /v1/models /metrics /version, POST /tokenize      what the gateway's probes ask
 *   GET  /ctl?chunks=N&interval_us=N&unary_us=N&pad=N    how it answers from now on (the rig's own
 *                                                  door); pad: bytes beside the time in each delta
 *   GET  /stat                                     requests, chunks and open streams so far
 * Each streamed delta is the sender's CLOCK_MONOTONIC time in 19 digits, so that whoever receives
 * it knows how long it was on its way. Streams of one setting share one interval, so that a queue
 * ordered by the time of insertion is ordered by the time that is due.
 *
 * Usage: engine PORT MODEL        (prints "ready" once it listens)
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

#define PROMPT_TOKENS 250
#define EVENTS 512
#define PAD_MAX 200000

typedef struct conn {
    int fd, waiting_out, dead;
    char *in;
    size_t in_used, in_size;
    char *out; /* what the socket did not take */
    size_t out_used, out_size;
    int answering, streaming, continuous, usage, chat, queued;
    long chunk, chunks;
    uint64_t due_ns, interval_ns;
    struct conn *before, *after; /* in the queue of those that have a next event */
    struct conn *next_dead;
} conn;

static int poller;
static const char *model;
static conn *first, *last, *dead;
static long set_chunks = 200, set_interval_us, set_unary_us, set_pad;
static unsigned long requests, chunks_sent, streams_open, serial;

static uint64_t now_ns(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * 1000000000ull + (uint64_t)at.tv_nsec;
}

static void unqueue(conn *c) {
    if (!c->queued) return;
    c->queued = 0;
    *(c->before ? &c->before->after : &first) = c->after;
    *(c->after ? &c->after->before : &last) = c->before;
}

static void queue(conn *c, uint64_t due_ns) {
    c->due_ns = due_ns;
    c->queued = 1;
    c->before = last;
    c->after = NULL;
    *(last ? &last->after : &first) = c;
    last = c;
}

static void hang_up(conn *c) {
    if (c->dead) return;
    c->dead = 1;
    unqueue(c);
    if (c->streaming) streams_open--;
    close(c->fd);
    c->next_dead = dead;
    dead = c;
}

static void watch(conn *c, int out) {
    struct epoll_event event = {.events = EPOLLIN | (out ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event);
    c->waiting_out = out;
}

static void send_bytes(conn *c, const char *data, size_t size) {
    ssize_t sent = 0;
    if (!c->out_used) {
        sent = send(c->fd, data, size, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno != EAGAIN) { hang_up(c); return; }
            sent = 0;
        }
        if ((size_t)sent == size) return;
    }
    size_t left = size - (size_t)sent;
    if (c->out_used + left > c->out_size) {
        c->out_size = (c->out_used + left) * 2;
        c->out = realloc(c->out, c->out_size);
    }
    memcpy(c->out + c->out_used, data + sent, left);
    c->out_used += left;
    if (!c->waiting_out) watch(c, 1);
}

static void send_json(conn *c, int status, const char *type, const char *body, size_t size) {
    static char answer[70000];
    int head = sprintf(answer,
        "HTTP/1.1 %d OK\r\ndate: Mon, 23 Nov 2026 05:37:31 GMT\r\nserver: uvicorn\r\n"
        "content-length: %zu\r\ncontent-type: %s\r\nvary: Origin\r\n\r\n", status, size, type);
    memcpy(answer + head, body, size);
    send_bytes(c, answer, (size_t)head + size);
}

static int usage_text(char *to, long completion, int final) {
    return sprintf(to,
        "\"usage\":{\"prompt_tokens\":%d,\"total_tokens\":%ld,\"completion_tokens\":%ld,%s"
        "\"completion_tokens_details\":null}", PROMPT_TOKENS, PROMPT_TOKENS + completion, completion,
        final ? "\"prompt_tokens_details\":{\"cached_tokens\":0,\"created_cache_tokens\":0,"
                "\"multimodal_tokens\":null}," : "");
}

static void answer_whole(conn *c) {
    char body[2048], usage[512];
    usage_text(usage, c->chunks, 1);
    int size = sprintf(body,
        "{\"id\":\"chatcmpl-%016lx\",\"object\":\"%s\",\"created\":1795412251,\"model\":\"%s\","
        "\"choices\":[{\"index\":0,%s,\"logprobs\":null,\"finish_reason\":\"length\","
        "\"stop_reason\":null,\"token_ids\":null,\"routed_experts\":null}],\"service_tier\":null,"
        "\"system_fingerprint\":\"vllm-0.32.0-6af7b5d0\",%s,\"prompt_logprobs\":null,"
        "\"prompt_token_ids\":null,\"prompt_text\":null,\"kv_transfer_params\":null,"
        "\"ec_transfer_params\":null,\"metrics\":null}", ++serial,
        c->chat ? "chat.completion" : "text_completion", model,
        c->chat ? "\"message\":{\"role\":\"assistant\",\"content\":\"The quick brown fox jumps over "
                  "the lazy dog, and the dog sleeps on.\",\"refusal\":null,\"annotations\":null,"
                  "\"audio\":null,\"function_call\":null,\"reasoning\":null}"
                : "\"text\":\"The quick brown fox jumps over the lazy dog.\"", usage);
    c->answering = 0;
    send_json(c, 200, "application/json", body, (size_t)size);
}

/* One event, framed as one HTTP chunk in one write. */
static void send_event(conn *c, const char *payload, int size) {
    static char chunk[PAD_MAX + 4096];
    int used = sprintf(chunk, "%x\r\ndata: ", size + 8);
    memcpy(chunk + used, payload, (size_t)size);
    memcpy(chunk + used + size, "\n\n\r\n", 4);
    send_bytes(c, chunk, (size_t)(used + size + 4));
}

static void send_delta(conn *c, long number) {
    static char event[PAD_MAX + 2048], delta[PAD_MAX + 128], pad[PAD_MAX + 1];
    char usage[512];
    int at;
    if (!pad[0]) memset(pad, 'x', PAD_MAX);
    if (number < 0) {
        strcpy(delta, c->chat ? "\"delta\":{\"role\":\"assistant\",\"content\":\"\"}" : "\"text\":\"\"");
    } else {
        sprintf(delta, c->chat ? "\"delta\":{\"content\":\"%019lu%.*s\"}" : "\"text\":\"%019lu%.*s\"",
                now_ns(), (int)set_pad, pad);
        chunks_sent++;
    }
    at = sprintf(event,
        "{\"id\":\"chatcmpl-%016lx\",\"object\":\"%s\",\"created\":1795412251,\"model\":\"%s\","
        "\"choices\":[{\"index\":0,%s,\"logprobs\":null,\"finish_reason\":%s,\"token_ids\":null}]",
        (unsigned long)c->fd, c->chat ? "chat.completion.chunk" : "text_completion", model, delta,
        number == c->chunks - 1 ? "\"length\"" : "null");
    if (c->continuous) {
        usage_text(usage, number + 1, 0);
        at += sprintf(event + at, ",%s", usage);
    }
    event[at++] = '}';
    send_event(c, event, at);
}

static void end_stream(conn *c) {
    char event[1024], usage[512];
    if (c->usage) {
        usage_text(usage, c->chunks, 1);
        int at = sprintf(event,
            "{\"id\":\"chatcmpl-%016lx\",\"object\":\"chat.completion.chunk\",\"created\":1795412251,"
            "\"model\":\"%s\",\"choices\":[],%s}", (unsigned long)c->fd, model, usage);
        send_event(c, event, at);
        if (c->dead) return;
    }
    send_event(c, "[DONE]", 6);
    if (c->dead) return;
    send_bytes(c, "0\r\n\r\n", 5);
    if (c->dead) return;
    c->streaming = c->answering = 0;
    streams_open--;
}

static void read_requests(conn *c);

/* The next thing this connection owes: an event of its stream, or its whole answer. */
static void step(conn *c) {
    unqueue(c);
    if (!c->streaming) {
        answer_whole(c);
    } else if (c->out_used) {
        return; /* its reader is behind: the flush puts it back */
    } else if (c->chunk < c->chunks) {
        send_delta(c, c->chunk++);
        if (!c->dead) queue(c, c->due_ns + c->interval_ns);
        return;
    } else {
        end_stream(c);
    }
    if (!c->dead) read_requests(c);
}

static long number_of(const char *text, const char *key, long otherwise) {
    const char *at = strstr(text, key);
    return at ? atol(at + strlen(key)) : otherwise;
}

static void begin_answer(conn *c, const char *body) {
    long cap = number_of(body, "\"max_tokens\":", set_chunks);
    c->answering = 1;
    c->chunk = 0;
    c->chunks = cap < set_chunks ? cap : set_chunks;
    c->usage = strstr(body, "\"include_usage\":true") || strstr(body, "\"include_usage\": true");
    c->continuous = c->usage && strstr(body, "\"continuous_usage_stats\":true") != NULL;
    c->interval_ns = (uint64_t)set_interval_us * 1000;
    if (!strstr(body, "\"stream\":true") && !strstr(body, "\"stream\": true")) {
        if (set_unary_us) queue(c, now_ns() + (uint64_t)set_unary_us * 1000);
        else answer_whole(c);
        return;
    }
    c->streaming = 1;
    streams_open++;
    static const char head[] =
        "HTTP/1.1 200 OK\r\ndate: Mon, 23 Nov 2026 05:37:31 GMT\r\nserver: uvicorn\r\n"
        "content-type: text/event-stream; charset=utf-8\r\nvary: Origin\r\n"
        "transfer-encoding: chunked\r\n\r\n";
    send_bytes(c, head, sizeof head - 1);
    if (!c->dead && c->chat) send_delta(c, -1);
    if (!c->dead) queue(c, now_ns() + c->interval_ns);
}

static void answer_get(conn *c, char *target) {
    char body[8192];
    int size = 0;
    if (!strncmp(target, "/ctl?", 5)) {
        set_chunks = number_of(target, "chunks=", set_chunks);
        set_interval_us = number_of(target, "interval_us=", set_interval_us);
        set_unary_us = number_of(target, "unary_us=", set_unary_us);
        set_pad = number_of(target, "pad=", set_pad);
        if (set_pad > PAD_MAX) set_pad = PAD_MAX;
    } else if (!strcmp(target, "/stat")) {
        size = sprintf(body, "{\"requests\":%lu,\"chunks\":%lu,\"streams_open\":%lu}", requests,
                       chunks_sent, streams_open);
    } else if (!strcmp(target, "/v1/models")) {
        size = sprintf(body,
            "{\"object\":\"list\",\"data\":[{\"id\":\"%s\",\"object\":\"model\",\"created\":1795412252,"
            "\"owned_by\":\"vllm\",\"root\":\"%s\",\"parent\":null,\"max_model_len\":131072}]}", model, model);
    } else if (!strcmp(target, "/version")) {
        size = sprintf(body, "{\"version\":\"0.32.0\"}");
    } else if (!strcmp(target, "/metrics")) {
        size = sprintf(body,
            "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{engine=\"0\",model_name="
            "\"%s\"} %lu\n# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{engine=\"0\","
            "model_name=\"%s\"} 0.0\n# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{"
            "engine=\"0\",model_name=\"%s\"} 0.1\nprocess_start_time_seconds 1795412196\n",
            model, streams_open, model, model);
        send_json(c, 200, "text/plain; version=0.0.4; charset=utf-8", body, (size_t)size);
        return;
    } else if (strcmp(target, "/health")) {
        size = sprintf(body, "{\"detail\":\"Not Found\"}");
        send_json(c, 404, "application/json", body, (size_t)size);
        return;
    }
    send_json(c, 200, "application/json", body, (size_t)size);
}

/* Requests that are whole in the buffer, one answer at a time. */
static void read_requests(conn *c) {
    while (!c->answering && !c->dead && c->in_used) {
        c->in[c->in_used] = 0;
        char *end = strstr(c->in, "\r\n\r\n");
        if (!end) return;
        *end = 0;
        char *length = strcasestr(c->in, "\r\ncontent-length:");
        size_t head = (size_t)(end - c->in) + 4;
        size_t whole = head + (length ? (size_t)atol(length + 17) : 0);
        if (c->in_used < whole) { *end = '\r'; return; }
        char method[8], target[1024], *body = c->in + head, kept = c->in[whole];
        if (sscanf(c->in, "%7s %1023s", method, target) != 2) { hang_up(c); return; }
        requests++;
        c->in[whole] = 0;
        c->chat = strcmp(target, "/v1/completions") != 0;
        if (strcmp(method, "POST")) answer_get(c, target);
        else if (!strcmp(target, "/tokenize"))
            send_json(c, 200, "application/json", "{\"count\":2,\"max_model_len\":131072}", 34);
        else begin_answer(c, body);
        if (c->dead) return;
        c->in[whole] = kept;
        memmove(c->in, c->in + whole, c->in_used - whole);
        c->in_used -= whole;
    }
}

static void receive(conn *c) {
    for (;;) {
        if (c->in_size - c->in_used < 4096) {
            c->in_size = c->in_size ? c->in_size * 2 : 8192;
            c->in = realloc(c->in, c->in_size + 1);
        }
        size_t room = c->in_size - c->in_used;
        ssize_t got = recv(c->fd, c->in + c->in_used, room, 0);
        if (got < 0 && errno == EAGAIN) break;
        if (got <= 0) { hang_up(c); return; }
        c->in_used += (size_t)got;
        if ((size_t)got < room) break;
    }
    read_requests(c);
}

static void flush(conn *c) {
    ssize_t sent = send(c->fd, c->out, c->out_used, MSG_NOSIGNAL);
    if (sent < 0) {
        if (errno != EAGAIN) hang_up(c);
        return;
    }
    c->out_used -= (size_t)sent;
    memmove(c->out, c->out + sent, c->out_used);
    if (c->out_used) return;
    watch(c, 0);
    if (c->streaming && !c->queued) queue(c, now_ns());
}

static void accept_all(int listener) {
    int one = 1, fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        conn *c = calloc(1, sizeof *c);
        c->fd = fd;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    }
}

static void run(int listener) {
    static struct epoll_event events[EVENTS];
    for (;;) {
        struct timespec wait = {1, 0};
        if (first) {
            uint64_t now = now_ns(), left = first->due_ns > now ? first->due_ns - now : 0;
            wait = (struct timespec){(time_t)(left / 1000000000), (long)(left % 1000000000)};
        }
        int ready = epoll_pwait2(poller, events, EVENTS, &wait, NULL);
        for (int i = 0; i < ready; i++) {
            conn *c = events[i].data.ptr;
            if (!c) { accept_all(listener); continue; }
            if (!c->dead && events[i].events & EPOLLOUT) flush(c);
            if (!c->dead && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(c);
        }
        uint64_t now = now_ns();
        conn *until = last; /* one turn serves each once, so that sockets are read between */
        while (first && first->due_ns <= now) {
            conn *c = first;
            step(c);
            if (c == until) break;
        }
        while (dead) {
            conn *c = dead;
            dead = c->next_dead;
            free(c->in);
            free(c->out);
            free(c);
        }
    }
}

int main(int argc, char **argv) {
    if (argc != 3) return fprintf(stderr, "usage: engine PORT MODEL\n"), 2;
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGPIPE, SIG_IGN);
    model = argv[2];
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096))
        return perror("listen"), 1;
    poller = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    puts("ready");
    fflush(stdout);
    run(listener);
}
