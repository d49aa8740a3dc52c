/* media/sound_stream.c - see sound_stream.h. The end of the samples is believed only after the child has said DONE. */
#include "media/sound_stream.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "media/child.h"

#define PIPE_BYTES (1 << 20)              /* 16 s of sound; where the system allows it */
#define STOP_MS 50

struct sound_stream {
    struct child child;
    struct media_info info;
    char name[128];                /* the child's messages name it */
    char *warning;
    int fd;                        /* samples */
    double waited_s;
    unsigned char odd[sizeof(float)];      /* [n_odd] bytes of a sample that has come in part */
    size_t n_odd;
    bool end;
};

status sound_stream_open(const struct media_source *s, double start_s, double end_s, bool keep_time,
                         const struct extract_limits *limits, struct sound_stream **out, struct err *e)
{
    struct child_job job = extract_job(CHILD_SOUND, 1, limits);
    struct sound_stream *x = mem_must(1, sizeof *x);
    int fd[2] = { -1, -1 };
    status st;
    job.parent = 0;                       /* a broken pipe ends it; the opening thread may go before the stream */
    job.keep_time = keep_time;
    job.options = (struct extract_options){ .kind = MEDIA_AUDIO, .start_s = start_s, .end_s = end_s };
    memcpy(x->name, s->name, sizeof x->name);
    x->fd = -1;
    if (pipe2(fd, O_CLOEXEC) != 0) {
        st = err_set(e, E_IO, "%s: no pipe for its sound: %s", s->name, strerror(errno));
        goto undo;
    }
    fcntl(fd[1], F_SETPIPE_SZ, PIPE_BYTES);
    x->fd = fd[0];
    st = extract_start(&job, s, fd[1], limits, &x->child, &x->info, e);
    close(fd[1]);
    if (st != OK) goto undo;
    x->child.name = x->name;
    fcntl(x->fd, F_SETFL, O_NONBLOCK);
    *out = x;
    return OK;
undo:
    sound_stream_close(&x);
    return st;
}

void sound_stream_close(struct sound_stream **s)
{
    if (*s == NULL) return;
    if ((*s)->fd >= 0) close((*s)->fd);
    child_end(&(*s)->child);
    free((*s)->warning);
    free(*s);
    *s = NULL;
}

const struct media_info *sound_stream_info(const struct sound_stream *s) { return &s->info; }

const char *sound_stream_warning(const struct sound_stream *s) { return s->warning; }

/* The child is done with the samples: is it content? */
static status outcome(struct sound_stream *s, struct err *e)
{
    s->child.started_s = clock_s() - s->waited_s;     /* its clock goes on where ours was */
    for (;;) {
        TRY(child_hear(&s->child, e));
        if (s->child.head.word == CHILD_DONE) break;
        if (s->child.head.word != CHILD_WARNING || s->warning != NULL) return child_lost(&s->child, e);
        s->warning = mem_must_strdup(s->child.message.bytes);
    }
    s->end = true;
    child_end(&s->child);
    if (s->n_odd == 0) return OK;
    err_set(e, E_INPUT, "%s: its decoder ended within a sample", s->name);
    err_tag(e, "media_decode_failed", NULL);
    return E_INPUT;
}

/* Some bytes of samples; *got 0: the end of the pipe. */
static status wait_bytes(struct sound_stream *s, void *to, size_t room, size_t *got, struct err *e)
{
    for (;;) {
        TRY(child_check(&s->child, s->waited_s, e));
        const ssize_t n = read(s->fd, to, room);
        if (n >= 0) {
            *got = (size_t)n;
            return OK;
        }
        if (errno != EAGAIN && errno != EINTR)
            return err_set(e, E_IO, "%s: its sound cannot be read: %s", s->name, strerror(errno));
        struct pollfd wait = { .fd = s->fd, .events = POLLIN };
        const double from = clock_s();
        poll(&wait, 1, STOP_MS);
        s->waited_s += clock_s() - from;
    }
}

status sound_stream_read(struct sound_stream *s, float *buf, size_t cap, size_t *n, struct err *e)
{
    *n = 0;
    if (s->end) return OK;
    unsigned char *to = (unsigned char *)buf;
    size_t have = s->n_odd;
    memcpy(to, s->odd, cap > 0 ? have : 0);
    while (*n < cap) {
        size_t got;
        TRY(wait_bytes(s, to + have, cap * sizeof *buf - have, &got, e));
        have += got;
        *n = have / sizeof *buf;
        s->n_odd = have % sizeof *buf;
        if (got > 0) continue;
        if (s->n_odd > 0) memcpy(s->odd, to + *n * sizeof *buf, s->n_odd);
        return outcome(s, e);
    }
    s->n_odd = 0;
    return OK;
}
