/*
 * The CNI plugin that the container runtime runs: hands the call to cni-node and prints its answer.
 *
 * It parses nothing and depends on nothing, so that it starts in under a millisecond on a node without Python.
 * Request:  u32 header length, u32 configuration length (big endian), then the header ("KEY=value\0" for each CNI_*
 *           variable, then DEADLINE_MS, then one more "\0"), then standard input byte for byte.
 * Answer:   u32 exit status, u32 length, then what goes to standard output.
 * The same protocol is spoken by cni/bin/__main__.py; tests/node/test_cni_bin.py examines both.
 *
 * Socket: $DPU_OFFLOAD_CNI_SOCKET, else the first line of the file "<this binary>.socket", else DEFAULT_SOCKET.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#ifndef DEFAULT_SOCKET
#define DEFAULT_SOCKET "/run/dpu-offload/cni.sock"
#endif

enum {
    PREFIX = 8,
    MAX_HEADER = 128 * 1024,
    MAX_CONFIG = 1024 * 1024,
    MAX_ANSWER = 4 * 1024 * 1024,
    CALL_MS = 110 * 1000, /* under the 2 minutes that kubelet gives a sandbox */
    STATUS_MS = 4 * 1000, /* the runtime asks every 5 s */
};

/* Codes of the CNI specification, section "Error". */
enum { BAD_ENVIRONMENT = 4, IO_FAILURE = 5, BAD_CONFIG = 7, TRY_LATER = 11, NOT_AVAILABLE = 50 };

extern char **environ;

static char config[MAX_CONFIG + 1];
static size_t config_size;
static int64_t deadline;

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* The configuration's own version, so that the runtime accepts the error; the newest when it cannot be seen. */
static const char *cni_version(char *out, size_t room)
{
    static const char key[] = "\"cniVersion\"";
    const char *at = memmem(config, config_size, key, sizeof key - 1), *end = config + config_size;
    size_t n = 0;
    if (at != NULL) {
        for (at += sizeof key - 1; at < end && strchr(" \t\r\n:\"", *at) != NULL && *at != '\0'; at++)
            ;
        while (at < end && n + 1 < room && ((*at >= '0' && *at <= '9') || *at == '.'))
            out[n++] = *at++;
    }
    if (n == 0 || at == end || *at != '"')
        return "1.1.0";
    out[n] = '\0';
    return out;
}

static void quoted(const char *text)
{
    for (; *text != '\0'; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\')
            printf("\\%c", c);
        else if (c < 0x20)
            printf("\\u%04x", c);
        else
            putchar(c);
    }
}

static _Noreturn void fail(int code, const char *message, const char *object, int error)
{
    char version[24];
    printf("{\"cniVersion\":\"%s\",\"code\":%d,\"msg\":\"", cni_version(version, sizeof version), code);
    quoted(message);
    fputs("\",\"details\":\"", stdout);
    quoted(object);
    if (error != 0) {
        fputs(": ", stdout);
        quoted(strerror(error));
    }
    puts("\"}");
    fflush(stdout);
    _exit(1);
}

/* 1 when the descriptor is ready, 0 when the deadline has passed. */
static int ready(int fd, short events)
{
    for (;;) {
        struct pollfd p = {.fd = fd, .events = events};
        int64_t left = deadline - now_ms();
        int n = left <= 0 ? 0 : poll(&p, 1, (int)left);
        if (n >= 0)
            return n > 0;
        if (errno != EINTR)
            return 0;
    }
}

static void read_config(void)
{
    while (config_size <= MAX_CONFIG) {
        if (!ready(STDIN_FILENO, POLLIN))
            fail(IO_FAILURE, "the network configuration on standard input did not end in time; the runtime must close it", "stdin", 0);
        ssize_t n = read(STDIN_FILENO, config + config_size, sizeof config - config_size);
        if (n == 0)
            return;
        if (n < 0 && errno != EINTR && errno != EAGAIN)
            fail(IO_FAILURE, "cannot read the network configuration from standard input", "stdin", errno);
        if (n > 0)
            config_size += (size_t)n;
    }
    config_size = MAX_CONFIG;
    fail(BAD_CONFIG, "the network configuration on standard input is larger than 1 MiB, which no configuration is; correct the file", "stdin", 0);
}

static const char *socket_path(char *room, size_t size)
{
    const char *given = getenv("DPU_OFFLOAD_CNI_SOCKET");
    if (given != NULL && *given != '\0')
        return given;
    ssize_t n = readlink("/proc/self/exe", room, size - sizeof ".socket");
    if (n > 0) {
        memcpy(room + n, ".socket", sizeof ".socket");
        int fd = open(room, O_RDONLY | O_CLOEXEC);
        if (fd >= 0) {
            n = read(fd, room, size - 1);
            close(fd);
            if (n > 0) {
                room[n] = '\0';
                room[strcspn(room, "\r\n")] = '\0';
                if (*room != '\0')
                    return room;
            }
        }
    }
    return DEFAULT_SOCKET;
}

static int connected(const char *path, int unavailable)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        fail(unavailable, "the path of cni-node's socket is longer than 107 bytes; set a shorter one", path, 0);
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        fail(unavailable, "cannot make a socket", path, errno);
    while (connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        /* EAGAIN: the listener's queue is full, and no event tells when it has room. */
        if (errno != EINTR && (errno != EAGAIN || now_ms() >= deadline))
            fail(unavailable, "cni-node cannot be reached on its socket; see whether it runs on this node, then try again", path, errno);
        poll(NULL, 0, 5);
    }
    return fd;
}

static void send_all(int fd, const char *data, size_t size, const char *path, int unavailable)
{
    while (size > 0) {
        if (!ready(fd, POLLOUT))
            fail(unavailable, "cni-node did not take the call in time; try again", path, ETIMEDOUT);
        ssize_t n = send(fd, data, size, MSG_NOSIGNAL);
        if (n < 0 && errno != EINTR && errno != EAGAIN)
            fail(unavailable, "cni-node closed the connection while the call was being sent; try again", path, errno);
        if (n > 0) {
            data += n;
            size -= (size_t)n;
        }
    }
}

static void receive_all(int fd, void *data, size_t size, const char *path, int unavailable)
{
    char *at = data;
    while (size > 0) {
        if (!ready(fd, POLLIN))
            fail(unavailable, "cni-node did not answer in time; its log says what it waits for", path, ETIMEDOUT);
        ssize_t n = recv(fd, at, size, 0);
        if (n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN))
            fail(unavailable, "cni-node went away during the call; try again", path, n == 0 ? ECONNRESET : errno);
        if (n > 0) {
            at += n;
            size -= (size_t)n;
        }
    }
}

static void store32(char *at, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        at[i] = (char)(value >> (24 - 8 * i));
}

static uint32_t load32(const unsigned char *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

/* Prefix and header in one block; returns its size. */
static size_t framed(char *out, long deadline_ms)
{
    size_t n = PREFIX;
    char last[40];
    int last_size = snprintf(last, sizeof last, "DEADLINE_MS=%ld", deadline_ms) + 1;
    for (char **variable = environ; *variable != NULL; variable++) {
        size_t size = strlen(*variable) + 1;
        if (strncmp(*variable, "CNI_", 4) != 0)
            continue;
        if (n + size + sizeof last + 1 > MAX_HEADER)
            fail(BAD_ENVIRONMENT, "the CNI_ variables together are larger than 128 KiB", "environment", 0);
        memcpy(out + n, *variable, size);
        n += size;
    }
    memcpy(out + n, last, (size_t)last_size);
    n += (size_t)last_size;
    out[n++] = '\0';
    store32(out, (uint32_t)(n - PREFIX));
    store32(out + 4, (uint32_t)config_size);
    return n;
}

int main(void)
{
    static char header[MAX_HEADER + 1], room[4096 + sizeof ".socket"];
    unsigned char prefix[PREFIX];
    const char *command = getenv("CNI_COMMAND"), *limit = getenv("DPU_OFFLOAD_CNI_DEADLINE_MS");
    int status_call = command != NULL && strcmp(command, "STATUS") == 0;
    int unavailable = status_call ? NOT_AVAILABLE : TRY_LATER;
    long given = limit != NULL ? atol(limit) : 0, allowed = given > 0 ? given : status_call ? STATUS_MS : CALL_MS;

    deadline = now_ms() + allowed;
    if (command == NULL || *command == '\0')
        fail(BAD_ENVIRONMENT, "CNI_COMMAND is not set; this program is a CNI plugin and is run by a container runtime", "environment", 0);
    if (strcmp(command, "VERSION") == 0) {
        puts("{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}");
        return fflush(stdout) == 0 ? 0 : 1;
    }
    read_config();
    const char *path = socket_path(room, sizeof room);
    size_t header_size = framed(header, allowed);
    int fd = connected(path, unavailable);
    send_all(fd, header, header_size, path, unavailable);
    send_all(fd, config, config_size, path, unavailable);
    receive_all(fd, prefix, sizeof prefix, path, unavailable);
    uint32_t size = load32(prefix + 4);
    char *answer = size > MAX_ANSWER ? NULL : malloc(size + 1);
    if (answer == NULL)
        fail(unavailable, "cni-node's answer is malformed; do cni-bin and cni-node have the same version?", path, 0);
    receive_all(fd, answer, size, path, unavailable);
    if (fwrite(answer, 1, size, stdout) != size || fflush(stdout) != 0)
        return 1;
    return load32(prefix) == 0 ? 0 : 1;
}
