/* Offer runs of a program to the peer that listens on a unix socket.
 *
 *     stdio-bridge <socket path> <file with the greeting> -- <command> [<argument> ...]
 *
 * The bridge connects and sends the greeting, which tells the peer whose program it is. One such connection is on offer at
 * all times; the peer takes it up by sending one byte, 1. That is one run of the command in a process group of its own;
 * several can be open at once. What the peer sends behind the byte is the command's stdin, raw. What the peer gets is
 * frames: 1 byte kind, 4 bytes big-endian length, payload.
 *
 *     1  stdout
 *     2  stderr
 *     3  exit, always the last: {"exitCode": n}, {"signal": n} or {"error": "could not start: ..."}
 *
 * The peer's end of stream closes the command's stdin; 2 s later the group gets TERM, after 2 s more KILL. TERM to the
 * bridge is passed on to every group, and the bridge ends when the last run has. As process 1 it reaps orphans.
 *
 * One thread, one poll loop. A run owns two buffers of fixed size and reads only into an empty one, so a slow peer
 * stops the command's output, a slow command stops the peer, and memory does not grow.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { FRAME_STDOUT = 1, FRAME_STDERR = 2, FRAME_EXIT = 3 };
enum {
    HEADER_BYTES = 5,
    PAYLOAD_BYTES = 64 * 1024,
    GREETING_BYTES = 256,
    TAKEN_UP = 1,
    MAX_RUNS = 64, /* as many open, nothing is on offer */
    OFFER_AGAIN_MS = 25,
    GRACE_MS = 2000,
};

extern char **environ;

/* One of the command's two output pipes. */
struct output {
    int fd;     /* -1 once nothing more will be read */
    int left;   /* bytes still to be read after the command's end; -1 while it runs */
};

struct run {
    int peer;
    pid_t pid;
    bool peer_done;    /* end of stream from the peer */
    bool peer_hung_up; /* it has closed the connection; what it had sent before may still be unread */
    bool peer_gone;    /* frames can no longer be delivered */
    bool exited;
    bool exit_framed;
    int status;
    int next_signal; /* what the group gets at `deadline`; 0 before the end has begun */
    int64_t deadline;
    int stdin_fd; /* -1 once closed */
    size_t stdin_start, stdin_end;
    size_t frame_start, frame_end;
    struct output out, err;
    bool err_first; /* take turns, so that neither output starves the other */
    unsigned char stdin_bytes[PAYLOAD_BYTES];
    unsigned char frame[HEADER_BYTES + PAYLOAD_BYTES];
};

#define NEVER INT64_MAX

static struct run *runs[MAX_RUNS];
static size_t run_count;
static char **command;
static struct sockaddr_un peer_address = {.sun_family = AF_UNIX};
static char greeting[GREETING_BYTES];
static size_t greeting_length;
static int offer = -1;          /* the connection that is on offer */
static int64_t offer_again_at;  /* when the next one is made where there is none */
static int64_t give_up_at = NEVER; /* set by TERM: when the bridge ends even if a peer does not take its last frames */

static void die(const char *what) {
    fprintf(stderr, "stdio-bridge: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void close_fd(int *fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

static void set_nonblocking(int fd) { fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); }

static bool would_block(void) { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

/* ---- frames ---- */

static bool frame_pending(const struct run *run) { return run->frame_start < run->frame_end; }

/* Make a frame of the `length` bytes that already lie behind the header. */
static void begin_frame(struct run *run, int kind, size_t length) {
    run->frame[0] = (unsigned char)kind;
    for (int i = 0; i < 4; i++) run->frame[1 + i] = (unsigned char)(length >> (24 - 8 * i));
    run->frame_start = 0;
    run->frame_end = HEADER_BYTES + length;
}

static void send_frame(struct run *run) {
    while (frame_pending(run)) {
        if (run->peer_gone) {
            run->frame_start = run->frame_end;
            return;
        }
        ssize_t sent = send(run->peer, run->frame + run->frame_start, run->frame_end - run->frame_start, MSG_NOSIGNAL);
        if (sent > 0) run->frame_start += (size_t)sent;
        else if (would_block()) return;
        else run->peer_gone = run->peer_done = true;
    }
}

static void frame_exit(struct run *run) {
    char *text = (char *)run->frame + HEADER_BYTES;
    bool signalled = WIFSIGNALED(run->status);
    int value = signalled ? WTERMSIG(run->status) : WEXITSTATUS(run->status);
    int length = snprintf(text, PAYLOAD_BYTES, "{\"%s\": %d}", signalled ? "signal" : "exitCode", value);
    begin_frame(run, FRAME_EXIT, (size_t)length);
    run->exit_framed = true;
}

/* Copy `text` into a JSON string; returns where it ended. */
static char *put_json(char *at, const char *end, const char *text) {
    for (; *text && end - at > 8; text++) {
        unsigned char c = (unsigned char)*text;
        if (c < 0x20 || c == '"' || c == '\\') at += sprintf(at, "\\u%04x", c);
        else *at++ = (char)c;
    }
    return at;
}

static void frame_start_failure(struct run *run, int error) {
    char *text = (char *)run->frame + HEADER_BYTES, *end = text + 4096, *at = text;
    at += sprintf(at, "{\"error\": \"could not start: ");
    at = put_json(at, end, command[0]);
    at = put_json(at, end, ": ");
    at = put_json(at, end, strerror(error));
    at += sprintf(at, "\"}");
    begin_frame(run, FRAME_EXIT, (size_t)(at - text));
    run->exited = run->exit_framed = true;
}

/* ---- the command ---- */

/* Start the command with `fds` as its stdin, stdout and stderr, leading a group of its own. Returns 0 or an errno. */
static int spawn(pid_t *pid, const int fds[3]) {
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none, defaults;
    posix_spawn_file_actions_init(&actions);
    for (int i = 0; i < 3; i++) posix_spawn_file_actions_adddup2(&actions, fds[i], i);
    sigemptyset(&none);
    sigemptyset(&defaults);
    sigaddset(&defaults, SIGPIPE);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &defaults);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    int error = posix_spawnp(pid, command[0], &actions, &attributes, command, environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return error;
}

static void start_command(struct run *run) {
    int in[2] = {-1, -1}, out[2] = {-1, -1}, err[2] = {-1, -1};
    int error = 0;
    if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC)) error = errno;
    if (!error) error = spawn(&run->pid, (int[]){in[0], out[1], err[1]});
    close_fd(&in[0]);
    close_fd(&out[1]);
    close_fd(&err[1]);
    if (error) {
        close_fd(&in[1]);
        close_fd(&out[0]);
        close_fd(&err[0]);
        frame_start_failure(run, error);
        return;
    }
    set_nonblocking(in[1]);
    set_nonblocking(out[0]);
    set_nonblocking(err[0]);
    run->stdin_fd = in[1];
    run->out.fd = out[0];
    run->err.fd = err[0];
}

/* Begin the orderly end: stdin is closed, TERM follows after `delay_ms`, KILL GRACE_MS later. */
static void begin_end(struct run *run, int64_t delay_ms) {
    if (run->exited || run->next_signal == SIGKILL) return;
    if (run->next_signal == SIGTERM && run->deadline <= now_ms() + delay_ms) return;
    run->next_signal = SIGTERM;
    run->deadline = now_ms() + delay_ms;
}

static void signal_when_due(struct run *run) {
    if (run->exited || !run->next_signal || now_ms() < run->deadline) return;
    kill(-run->pid, run->next_signal);
    run->deadline = run->next_signal == SIGTERM ? now_ms() + GRACE_MS : NEVER;
    run->next_signal = SIGKILL;
}

/* What the command wrote before its end is still delivered; what a process that outlived it writes later is not. */
static void limit_to_pipe_content(struct output *output) {
    if (output->fd >= 0 && ioctl(output->fd, FIONREAD, &output->left)) output->left = 0;
    if (output->left == 0) close_fd(&output->fd);
}

static void reap(void) {
    for (;;) {
        siginfo_t info = {0};
        if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) || info.si_pid == 0) return;
        struct run *run = NULL;
        for (size_t i = 0; i < run_count; i++)
            if (!runs[i]->exited && runs[i]->pid == info.si_pid) run = runs[i];
        /* The group's number is the command's, so it is safe to use only until the command is reaped. */
        if (run) kill(-run->pid, SIGKILL);
        int status;
        waitpid(info.si_pid, &status, 0);
        if (!run) continue;
        run->exited = true;
        run->status = status;
        close_fd(&run->stdin_fd);
        limit_to_pipe_content(&run->out);
        limit_to_pipe_content(&run->err);
    }
}

/* ---- moving bytes ---- */

static void read_peer(struct run *run) {
    ssize_t got = recv(run->peer, run->stdin_bytes, sizeof run->stdin_bytes, 0);
    if (got < 0 && would_block()) return;
    if (got <= 0) {
        run->peer_done = true;
        if (got < 0) run->peer_gone = true;
    } else if (run->stdin_fd >= 0) {
        run->stdin_start = 0;
        run->stdin_end = (size_t)got;
    } /* else the command has closed its stdin, and the bytes are nobody's */
}

static void write_stdin(struct run *run) {
    while (run->stdin_fd >= 0 && run->stdin_start < run->stdin_end) {
        ssize_t put = write(run->stdin_fd, run->stdin_bytes + run->stdin_start, run->stdin_end - run->stdin_start);
        if (put > 0) run->stdin_start += (size_t)put;
        else if (would_block()) return;
        else close_fd(&run->stdin_fd);
    }
    if (run->stdin_fd < 0) run->stdin_start = run->stdin_end;
}

static void read_output(struct run *run, struct output *output, int kind) {
    if (output->fd < 0 || frame_pending(run)) return;
    size_t most = output->left >= 0 && output->left < PAYLOAD_BYTES ? (size_t)output->left : PAYLOAD_BYTES;
    ssize_t got = read(output->fd, run->frame + HEADER_BYTES, most);
    if (got < 0 && would_block()) return;
    if (got <= 0) {
        close_fd(&output->fd);
        return;
    }
    begin_frame(run, kind, (size_t)got);
    if (output->left >= 0 && (output->left -= (int)got) == 0) close_fd(&output->fd);
}

static void read_outputs(struct run *run) {
    run->err_first = !run->err_first;
    if (run->err_first) read_output(run, &run->err, FRAME_STDERR);
    read_output(run, &run->out, FRAME_STDOUT);
    read_output(run, &run->err, FRAME_STDERR);
}

/* Do what can be done without waiting. */
static void advance(struct run *run) {
    if (!run->peer_done && run->stdin_start == run->stdin_end) read_peer(run);
    write_stdin(run);
    if (run->peer_done && run->stdin_start == run->stdin_end) close_fd(&run->stdin_fd);
    if (run->peer_done || run->peer_hung_up) begin_end(run, GRACE_MS);
    signal_when_due(run);
    send_frame(run);
    read_outputs(run);
    send_frame(run);
    if (run->exited && !run->exit_framed && run->out.fd < 0 && run->err.fd < 0 && !frame_pending(run)) {
        frame_exit(run);
        send_frame(run);
    }
}

static bool is_over(const struct run *run) { return run->exit_framed && !frame_pending(run); }

/* ---- connections ---- */

static void start_run(int peer) {
    struct run *run = calloc(1, sizeof *run);
    if (!run) {
        close(peer);
        return;
    }
    run->peer = peer;
    run->stdin_fd = -1;
    run->out = run->err = (struct output){.fd = -1, .left = -1};
    runs[run_count++] = run;
    start_command(run);
}

static void end_run(size_t index) {
    struct run *run = runs[index];
    close_fd(&run->peer);
    free(run);
    runs[index] = runs[--run_count];
}

static bool may_offer(void) { return give_up_at == NEVER && run_count < MAX_RUNS; }

static void withdraw_offer(void) {
    close_fd(&offer);
    offer_again_at = now_ms() + OFFER_AGAIN_MS;
}

/* The peer may not be there yet, or be starting again. */
static void make_offer(void) {
    offer = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (offer < 0 || connect(offer, (struct sockaddr *)&peer_address, sizeof peer_address) ||
        send(offer, greeting, greeting_length, MSG_NOSIGNAL) != (ssize_t)greeting_length)
        withdraw_offer();
}

/* Do what can be done without waiting. */
static void advance_offer(void) {
    if (offer < 0 && may_offer() && now_ms() >= offer_again_at) make_offer();
    if (offer < 0) return;
    unsigned char byte;
    ssize_t got = recv(offer, &byte, 1, 0);
    if (got < 0 && would_block()) return;
    if (got == 1 && byte == TAKEN_UP) {
        start_run(offer);
        offer = -1;
        if (may_offer()) make_offer();
    } else {
        withdraw_offer();
    }
}

static void set_peer(const char *path) {
    if (strlen(path) >= sizeof peer_address.sun_path) {
        errno = ENAMETOOLONG;
        die(path);
    }
    strcpy(peer_address.sun_path, path);
}

static void read_greeting(const char *path) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = file < 0 ? -1 : read(file, greeting, sizeof greeting);
    if (got < 0) die(path);
    close(file);
    greeting_length = (size_t)got;
}

static void handle_signals(int signals) {
    struct signalfd_siginfo got;
    while (read(signals, &got, sizeof got) == sizeof got) {
        if (got.ssi_signo == SIGCHLD) continue;
        if (give_up_at == NEVER) give_up_at = now_ms() + 3 * GRACE_MS;
        close_fd(&offer);
        for (size_t i = 0; i < run_count; i++) begin_end(runs[i], 0);
    }
    reap();
}

/* What to wait for on `fd`; -1 where there is nothing, for a hung-up descriptor would wake the loop without end. */
static struct pollfd wait_for(int fd, bool input, bool output) {
    short events = (short)((input ? POLLIN : 0) | (output ? POLLOUT : 0));
    return (struct pollfd){.fd = events ? fd : -1, .events = events};
}

static void wait_for_events(int signals) {
    struct pollfd fds[2 + 4 * MAX_RUNS];
    size_t count = 0;
    int64_t deadline = give_up_at;
    fds[count++] = wait_for(signals, true, false);
    fds[count++] = wait_for(offer, offer >= 0, false);
    if (offer < 0 && may_offer() && offer_again_at < deadline) deadline = offer_again_at;
    for (size_t i = 0; i < run_count; i++) {
        const struct run *run = runs[i];
        bool stdin_pending = run->stdin_start < run->stdin_end, pending = frame_pending(run);
        fds[count] = wait_for(run->peer, !run->peer_done && !stdin_pending, pending);
        /* Even where nothing can be moved: a peer may leave a command that does not read. */
        if (!run->peer_hung_up) fds[count].fd = run->peer;
        count++;
        fds[count++] = wait_for(run->stdin_fd, false, stdin_pending);
        fds[count++] = wait_for(run->out.fd, !pending, false);
        fds[count++] = wait_for(run->err.fd, !pending, false);
        if (!run->exited && run->next_signal && run->deadline < deadline) deadline = run->deadline;
    }
    int64_t left = deadline - now_ms();
    poll(fds, count, deadline == NEVER ? -1 : left > 0 ? (int)left : 0);
    for (size_t i = 0; i < run_count; i++)
        if (fds[2 + 4 * i].revents & (POLLHUP | POLLERR)) runs[i]->peer_hung_up = true;
}

int main(int argc, char **argv) {
    if (argc < 5 || strcmp(argv[3], "--") != 0) {
        fprintf(stderr, "usage: stdio-bridge <socket path> <file with the greeting> -- <command> [<argument> ...]\n");
        return 2;
    }
    set_peer(argv[1]);
    read_greeting(argv[2]);
    command = argv + 4;

    sigset_t handled;
    sigemptyset(&handled);
    sigaddset(&handled, SIGCHLD);
    sigaddset(&handled, SIGINT);
    sigaddset(&handled, SIGTERM);
    sigprocmask(SIG_BLOCK, &handled, NULL);
    signal(SIGPIPE, SIG_IGN);
    int signals = signalfd(-1, &handled, SFD_NONBLOCK | SFD_CLOEXEC);
    if (signals < 0) die("signalfd");

    while (give_up_at == NEVER || (run_count > 0 && now_ms() < give_up_at)) {
        advance_offer();
        wait_for_events(signals);
        handle_signals(signals);
        for (size_t i = run_count; i-- > 0;) {
            advance(runs[i]);
            if (is_over(runs[i])) end_run(i);
        }
    }
    return 0;
}
