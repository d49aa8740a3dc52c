/* Fuzz target: any bytes as the input of a batch, as its output and as the journal of its states. Whatever they are:
 * every line is counted once or told of, what is kept is whole lines, and what is read from it reads the same again. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "api/batch_state.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define PROMISE(x)                                                                                           \
    do {                                                                                                     \
        if (!(x)) abort();                                                                                   \
    } while (0)

static int file_of(const uint8_t *data, size_t size)
{
    const int fd = memfd_create("lines", 0);
    PROMISE(fd >= 0 && write(fd, data, size) == (ssize_t)size);
    return fd;
}

struct seen { struct batch_plan *plan; uint64_t n, have; };

static bool answer(void *self, const json_t *line)
{
    struct seen *s = self;
    s->n++;
    s->have += batch_plan_have(s->plan, line) == BATCH_HAVE;
    return true;
}

static void output(const uint8_t *data, size_t size, struct batch_plan *plan)
{
    struct seen s = { .plan = plan };
    struct batch_counts c;
    struct err e;
    uint64_t valid = 0;
    const int fd = file_of(data, size);
    PROMISE(jsonl_read(fd, answer, &s, &valid, &e) == OK && valid <= size && (valid == 0 || data[valid - 1] == '\n'));
    batch_plan_counts(plan, &c);
    PROMISE(c.completed + c.failed + c.never == s.have && s.have <= c.total && c.cost_done <= c.cost * 1.001);
    close(fd);
}

static bool state(void *self, const json_t *line)
{
    (void)self;
    struct batch_state s = { 0 }, again = { 0 };
    if (!batch_state_read(line, &s)) return false;
    json_t *first = batch_state_line(&s);
    PROMISE(first && batch_state_read(first, &again));
    json_t *second = batch_state_line(&again);
    PROMISE(second && json_equal(first, second));
    json_decref(first);
    json_decref(second);
    batch_state_free(&s);
    batch_state_free(&again);
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct err e;
    struct batch_plan *plan;
    struct batch_counts c;
    size_t n, all, lines = 1;
    const struct batch_rules r = { .endpoint = size % 2 ? "/v1/completions" : NULL,
                                   .media_root = "/",
                                   .lines_max = 50 };
    /* The input, then behind a line of '=' an output and a journal. */
    const uint8_t *cut = memmem(data, size, "\n=\n", 3);
    const size_t n_input = cut ? (size_t)(cut - data) : size;
    const int fd = file_of(data, n_input);
    PROMISE(batch_scan(fd, &r, &plan, &e) == OK);
    close(fd);
    batch_plan_counts(plan, &c);
    const struct batch_problem *p = batch_plan_problems(plan, &n, &all);
    for (size_t i = 0; i < n_input; i++) lines += data[i] == '\n';
    PROMISE(c.total <= r.lines_max && c.total <= lines && n <= BATCH_PROBLEMS && n <= all && c.cost >= 0);
    for (size_t i = 0; i < n; i++) PROMISE(p[i].line <= lines && p[i].message[0] && p[i].code);
    if (cut) output(cut + 3, size - n_input - 3, plan);
    batch_plan_free(&plan);
    const uint8_t *from = cut ? cut + 3 : data;
    const int journal = file_of(from, size - (size_t)(from - data));
    PROMISE(jsonl_read(journal, state, NULL, NULL, &e) == OK);
    close(journal);
    return 0;
}
