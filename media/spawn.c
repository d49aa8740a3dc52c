/* media/spawn.c - the parent's side of child.h: starting a child, hearing it, ending it. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "media/child.h"

#define FDS_AT_ONCE 128                   /* the kernel takes 253 with one message */
#define STOP_MS 50
#define MARK "OMNIDROP_MEDIA_CHILD"       /* in a child's environment: it starts none of its own */

static const char *program = "/proc/self/exe";

void extract_set_program(const char *path) { program = path; }

/* ---- starting ------------------------------------------------------------------------------------------- */

static status io_fail(struct err *e, const char *what)
{
    return err_set(e, E_IO, "the child that decodes %s: %s", what, strerror(errno));
}

/* The program anew: control on 0, nothing on 1 (and 2, but for a sanitizer's report), all else closed, every signal as
 * it was born with, a process group of its own so that a terminal's Ctrl-C is the parent's affair. */
static int spawn(int control, pid_t *pid)
{
    static char name[] = "omnidrop", word[] = "--media-child", mark[] = MARK "=1",
                one_arena[] = "MALLOC_CONF=narenas:1";
    char *const argv[] = { name, word, NULL };
    char libraries[1024] = "", *env[4] = { mark, one_arena, NULL, NULL };
    const char *path = getenv("LD_LIBRARY_PATH");
    if (path != NULL && snprintf(libraries, sizeof libraries, "LD_LIBRARY_PATH=%s", path) < (int)sizeof libraries)
        env[2] = libraries;
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attr;
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    int rc = posix_spawn_file_actions_init(&files);
    if (rc != 0) return rc;
    rc = posix_spawnattr_init(&attr);
    if (rc != 0) goto no_attr;
    rc = posix_spawn_file_actions_adddup2(&files, control, 0);
    if (rc == 0) rc = posix_spawn_file_actions_addopen(&files, 1, "/dev/null", O_WRONLY, 0);
#if !defined(__SANITIZE_ADDRESS__)
    if (rc == 0) rc = posix_spawn_file_actions_addopen(&files, 2, "/dev/null", O_WRONLY, 0);
#endif
    if (rc == 0) rc = posix_spawn_file_actions_addclosefrom_np(&files, 3);
    if (rc == 0)
        rc = posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
    if (rc == 0) rc = posix_spawnattr_setsigmask(&attr, &none);
    if (rc == 0) rc = posix_spawnattr_setsigdefault(&attr, &all);
    if (rc == 0) rc = posix_spawnattr_setpgroup(&attr, 0);
    if (rc == 0) rc = posix_spawn(pid, program, &files, &attr, argv, env);
    posix_spawnattr_destroy(&attr);
no_attr:
    posix_spawn_file_actions_destroy(&files);
    return rc;
}

static status send_all(int fd, const void *bytes, size_t n, struct err *e)
{
    const char *p = bytes;
    while (n > 0) {
        const ssize_t put = send(fd, p, n, MSG_NOSIGNAL);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) return io_fail(e, "does not listen");
        p += put;
        n -= (size_t)put;
    }
    return OK;
}

/* Descriptors, with one byte for each load of them. */
static status send_fds(int fd, const int *fds, uint32_t n, struct err *e)
{
    for (uint32_t at = 0; at < n; ) {
        const uint32_t load = n - at < FDS_AT_ONCE ? n - at : FDS_AT_ONCE;
        union {
            struct cmsghdr head;
            char bytes[CMSG_SPACE(FDS_AT_ONCE * sizeof(int))];
        } control;
        char byte = 0;
        struct iovec io = { .iov_base = &byte, .iov_len = 1 };
        struct msghdr m = { .msg_iov = &io, .msg_iovlen = 1, .msg_control = control.bytes,
                            .msg_controllen = CMSG_SPACE(load * sizeof(int)) };
        memset(&control, 0, sizeof control);
        control.head.cmsg_level = SOL_SOCKET;
        control.head.cmsg_type = SCM_RIGHTS;
        control.head.cmsg_len = CMSG_LEN(load * sizeof(int));
        memcpy(CMSG_DATA(&control.head), fds + at, load * sizeof(int));
        const ssize_t put = sendmsg(fd, &m, MSG_NOSIGNAL);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) return io_fail(e, "does not listen");
        at += load;
    }
    return OK;
}

static status job_send(struct child *c, const struct child_job *job, const struct media_source *s, int extra,
                       struct err *e)
{
    const uint32_t n = job->n_sources, n_fds = n + (extra >= 0);
    struct child_source *source = NULL;
    int *fd = NULL;
    status st;
    TRY(mem_alloc(&source, n, sizeof *source, e));
    TRY_GOTO(st, mem_alloc(&fd, n_fds, sizeof *fd, e), done);
    for (uint32_t i = 0; i < n; i++) {
        source[i].bytes = s[i].bytes;
        memcpy(source[i].name, s[i].name, sizeof source[i].name);
        fd[i] = s[i].fd;
    }
    if (extra >= 0) fd[n] = extra;
    TRY_GOTO(st, send_all(c->fd, job, sizeof *job, e), done);
    TRY_GOTO(st, send_fds(c->fd, fd, n_fds, e), done);
    st = send_all(c->fd, source, n * sizeof *source, e);
done:
    free(source);
    free(fd);
    return st;
}

status child_start(const struct child_job *job, const struct media_source *s, int extra, const struct extract_limits *l,
                   struct child *out, struct err *e)
{
    struct child c = { .fd = -1, .name = s->name, .stop = l->stop, .started_s = clock_s(),
                       .limit_s = l->wall_s > 0 ? l->wall_s : 60, .memory_bytes = job->memory_bytes };
    int pair[2];
    if (getenv(MARK) != NULL)
        return err_set(e, E_INTERNAL, "this program does not know --media-child: extract_child_main is not called");
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) return io_fail(e, "has no control pipe");
    const int rc = spawn(pair[1], &c.pid);
    close(pair[1]);
    c.fd = pair[0];
    if (rc != 0) {
        close(c.fd);
        errno = rc;
        return io_fail(e, "does not start");
    }
    struct err lost;
    const status st = job_send(&c, job, s, extra, &lost);
    if (st != OK) {
        child_end(&c);
        if (e != NULL) *e = lost;
        return st;
    }
    *out = c;
    return OK;
}

/* ---- ending --------------------------------------------------------------------------------------------- */

/* Kills and buries; the status of its end where it came to one by itself, else of the kill. */
static int bury(struct child *c)
{
    int status_ = 0;
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
    if (c->pid <= 0) return 0;
    kill(c->pid, SIGKILL);
    while (waitpid(c->pid, &status_, 0) < 0 && errno == EINTR) continue;
    c->pid = 0;
    return status_;
}

void child_end(struct child *c) { bury(c); }

status child_lost(struct child *c, struct err *e)
{
    /* Its last descriptor is closed just before it is dead; what killed it must win against our own kill. */
    siginfo_t info;
    for (int i = 0; i < 50; i++) {
        info.si_pid = 0;
        if (waitid(P_PID, (id_t)c->pid, &info, WEXITED | WNOWAIT | WNOHANG) != 0 || info.si_pid != 0) break;
        poll(NULL, 0, 2);
    }
    const int how = bury(c);
    const int sig = WIFSIGNALED(how) ? WTERMSIG(how) : 0;
    if (sig == SIGXCPU)
        err_set(e, E_INPUT, "%s: took more processor time to decode than its length allows", c->name);
    else if (sig == SIGXFSZ)
        err_set(e, E_INPUT, "%s: decodes to more than its plan says", c->name);
    else if (sig != 0)
        err_set(e, E_INPUT,
                "%s: its decoder was ended by signal %d (%s): the file is damaged, or made to harm", c->name,
                sig, strsignal(sig));
    else
        err_set(e, E_INPUT, "%s: its decoder ended with status %d and no result", c->name, WEXITSTATUS(how));
    err_tag(e, "media_decode_failed", NULL);
    return E_INPUT;
}

/* ---- hearing -------------------------------------------------------------------------------------------- */

status child_check(const struct child *c, double spent_s, struct err *e)
{
    if (c->stop != NULL && atomic_load(c->stop)) return err_set(e, E_CANCELLED, "interrupted");
    if (spent_s < c->limit_s) return OK;
    err_set(e, E_INPUT, "%s: decoding takes longer than %.0f s, the limit for its length", c->name, c->limit_s);
    err_tag(e, "media_decode_failed", NULL);
    return E_INPUT;
}

/* Exactly n bytes; *end: the child has closed its end. */
static status hear_bytes(struct child *c, void *to, size_t n, bool *end, struct err *e)
{
    char *p = to;
    *end = false;
    while (n > 0) {
        struct pollfd wait = { .fd = c->fd, .events = POLLIN };
        TRY(child_check(c, clock_s() - c->started_s, e));
        const int ready = poll(&wait, 1, STOP_MS);
        if (ready < 0 && errno != EINTR) return io_fail(e, "cannot be heard");
        if (ready <= 0) continue;
        const ssize_t got = recv(c->fd, p, n, MSG_DONTWAIT);
        if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
        *end = got <= 0;                  /* also a reset: it died before it had read all */
        if (*end) return OK;
        p += got;
        n -= (size_t)got;
    }
    return OK;
}

/* What the child says went wrong, as our own error. */
static status failed(struct child *c, struct err *e)
{
    const struct child_fail *f = &c->message.fail;
    const status code = f->code == E_ARG || f->code == E_NOMEM || f->code == E_IO || f->code == E_INTERNAL
                      ? (status)f->code : E_INPUT;
    if (code == E_NOMEM) {
        err_set(e, E_INPUT, "%s: needs more than the %" PRIu64 " MiB that decoding may take", c->name,
                c->memory_bytes >> 20);
        err_tag(e, "media_decode_failed", NULL);
        return E_INPUT;
    }
    err_set(e, code, "%.*s", (int)sizeof f->text - 1, f->text);
    if (f->tag < CHILD_N_TAGS) err_tag(e, CHILD_TAGS[f->tag], NULL);
    else if (code == E_INPUT) err_tag(e, "media_decode_failed", NULL);
    return code;
}

/* How long each word is. */
static bool word_fits(const struct child_head *h)
{
    switch (h->word) {
    case CHILD_INFO: return h->bytes == sizeof(struct media_info);
    case CHILD_PLAN: return h->bytes == sizeof(struct child_plan);
    case CHILD_FAIL: return h->bytes == sizeof(struct child_fail);
    case CHILD_WARNING: return h->bytes > 0 && h->bytes <= CHILD_MESSAGE_MAX;
    case CHILD_DONE: return h->bytes == 0;
    default: return false;
    }
}

status child_hear(struct child *c, struct err *e)
{
    bool end;
    TRY(hear_bytes(c, &c->head, sizeof c->head, &end, e));
    if (end) return child_lost(c, e);
    if (!word_fits(&c->head)) {
        err_set(e, E_INPUT, "%s: its decoder has gone astray: the file is damaged, or made to harm", c->name);
        err_tag(e, "media_decode_failed", NULL);
        return E_INPUT;
    }
    TRY(hear_bytes(c, c->message.bytes, c->head.bytes, &end, e));
    if (end) return child_lost(c, e);
    c->message.bytes[c->head.bytes] = 0;
    if (c->head.word != CHILD_FAIL) return OK;
    c->message.fail.text[sizeof c->message.fail.text - 1] = 0;
    return failed(c, e);
}

status child_say(struct child *c, enum child_word word, struct err *e)
{
    const struct child_head h = { .word = word };
    if (send(c->fd, &h, sizeof h, MSG_NOSIGNAL) == sizeof h) return OK;
    return child_lost(c, e);
}

/* ---- what the child says of the file -------------------------------------------------------------------- */

/* A bool of any byte. */
static bool tidy(const bool *b)
{
    unsigned char byte;
    memcpy(&byte, b, 1);
    return byte != 0;
}

static double tidy_s(double s) { return isfinite(s) ? s : -1; }

/* 2 x the length and a minute; where nobody knows the length, what 64 kbit/s would give. */
static double seconds_for(const struct media_info *i, const struct extract_limits *l, uint64_t bytes)
{
    const double most = l->max_duration_s > 0 ? l->max_duration_s : 24 * 3600.0;
    double s = i->duration_s >= 0 ? i->duration_s : (double)bytes / 8000;
    if (i->has_audio && i->audio.duration_s > s) s = i->audio.duration_s;
    if (i->has_video && i->video.duration_s > s) s = i->video.duration_s;
    return 60 + 2 * fmin(s, most);
}

status child_info(struct child *c, const struct extract_limits *l, uint64_t bytes, struct media_info *out,
                  struct err *e)
{
    TRY(child_hear(c, e));
    if (c->head.word != CHILD_INFO) return child_lost(c, e);
    struct media_info i = c->message.info;
    i.has_audio = tidy(&c->message.info.has_audio);
    i.has_video = tidy(&c->message.info.has_video);
    i.is_image = tidy(&c->message.info.is_image);
    i.video.mirrored = tidy(&c->message.info.video.mirrored);
    i.container[sizeof i.container - 1] = 0;
    i.audio.codec[sizeof i.audio.codec - 1] = 0;
    i.video.codec[sizeof i.video.codec - 1] = 0;
    i.video.pixel_format[sizeof i.video.pixel_format - 1] = 0;
    i.duration_s = tidy_s(i.duration_s);
    i.audio.duration_s = tidy_s(i.audio.duration_s);
    i.video.duration_s = tidy_s(i.video.duration_s);
    i.audio.start_s = tidy_s(i.audio.start_s);
    i.video.start_s = tidy_s(i.video.start_s);
    i.video.fps = isfinite(i.video.fps) ? i.video.fps : 0;
    if (l->wall_s <= 0) c->limit_s = seconds_for(&i, l, bytes);
    *out = i;
    return OK;
}
