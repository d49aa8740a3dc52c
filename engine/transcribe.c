/* engine/transcribe.c - see transcribe.h. Windows pass through a queue of slots in their order; up to `jobs` of them are
 * being asked about, each goes through its tries on its own, and a slot leaves the queue when its right neighbour is done,
 * as only then the seam between them is known. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "engine/languages.h"
#include "engine/transcribe_inside.h"

#define FRAME_S ((double)WINDOWS_FRAME / MEDIA_RATE)
#define QUEUE_MAX (4 * TRANSCRIBE_JOBS_MAX)
#define MIN_HALF_S 1.0
#define TRIES 3
#define EDGE_FRAMES 10             /* 200 ms of the silence at either end of a window are heard, not more: models
                                      invent words on silence */

/* ---- how to ask ------------------------------------------------------------------------------------------- */

static void capital(char *s)
{
    if (*s >= 'a' && *s <= 'z') *s = (char)(*s - 32);
}

void transcribe_instruction(char *out, size_t cap, bool translate, const char *language)
{
    char name[64] = "";
    if (language) snprintf(name, sizeof name, "%s ", language);
    capital(name);
    if (translate) snprintf(out, cap, "Translate the %saudio into English text, with punctuation.", name);
    else snprintf(out, cap, "Transcribe the %saudio, verbatim, with punctuation.", name);
}

/* ---- a run ------------------------------------------------------------------------------------------------ */

/* A window on its way: three tries of the whole, then both halves. */
struct slot {
    struct window w;
    bool done;                     /* else it waits for the model          */
    char *text;                    /* owned, n_text bytes; NULL where failed or silent */
    size_t n_text;
    size_t keep_from, keep_to;     /* bytes between the seams              */
    struct answer_token *token;    /* owned: [n_token] */
    size_t n_token;
    bool halved;                   /* half[] are asked, else whole         */
    uint32_t tries;
    struct ask whole, half[2];
};

struct run {
    struct asker asker;
    const struct transcribe_options *o;
    struct transcript *out;
    struct journal *journal;
    struct windows *windows;
    struct slot **queue;           /* [n_queue] in order; queue[0] may be done already and waits for its neighbour */
    size_t n_queue, cap_queue;
    uint32_t n_entered;            /* windows whose place (asker.by.enter) was not given back */
    bool asked;                    /* the language is settled              */
    double told_s;                 /* of on_progress */
};

/* The part of a window that is handed to the model. */
static struct ask ask_of(struct run *r, const struct window *w)
{
    uint32_t first = 0, last = w->n_frames;
    while (first < w->n_frames && !w->voiced[first]) first++;
    while (last > first && !w->voiced[last - 1]) last--;
    struct ask a = { .asker = &r->asker, .x = w->samples, .n = w->n_samples, .voiced_s = w->voiced_s,
                     .instruction = r->asker.instruction };
    if (r->o->windows.keep_silence || first == last) return a;
    const size_t from = (size_t)(first > EDGE_FRAMES ? first - EDGE_FRAMES : 0) * WINDOWS_FRAME;
    const size_t to = (size_t)(last + EDGE_FRAMES) * WINDOWS_FRAME;
    a.x += from;
    a.n = (to < w->n_samples ? to : w->n_samples) - from;
    return a;
}

/* ---- language --------------------------------------------------------------------------------------------- */

static void set_language(struct run *r, const char *name)
{
    char *words = r->asker.instruction;
    const size_t cap = sizeof r->asker.instruction;
    snprintf(r->out->language, sizeof r->out->language, "%s", name ? name : "unknown");
    if (r->o->instruction) snprintf(words, cap, "%s", r->o->instruction);
    else transcribe_instruction(words, cap, r->o->translate, name);
    r->asked = true;
}

/* The journal cannot be written: the end of the run, or of the journal. */
static status journal_failed(struct run *r, status st)
{
    if (!r->o->journal_may_fail) return st;
    r->journal = NULL;
    return OK;
}

/* A short question on the first voiced window, before any other; undecided answers leave the language open. */
static status settle_language(struct run *r, const struct window *w, struct err *e)
{
    const char *name = NULL;
    if (r->journal && journal_language(r->journal)) {
        set_language(r, language_name(journal_language(r->journal)));
        return OK;
    }
    struct ask a = ask_of(r, w);
    const status st = ask_language(&a, &name, e);
    ask_free(&a);
    if (st != OK) return st;
    set_language(r, name);
    if (r->journal == NULL) return OK;
    const status noted = journal_add_language(r->journal, r->out->language, e);
    return noted == OK ? OK : journal_failed(r, noted);
}

/* ---- windows ---------------------------------------------------------------------------------------------- */

static struct transcribe_window *info_of(struct run *r, const struct slot *s) { return &r->out->window[s->w.index]; }

static void note(struct run *r, const struct slot *s, bool failed, const char *what, const char *reason)
{
    if (r->o->on_note == NULL) return;
    const struct transcribe_window *w = info_of(r, s);
    char text[320];
    snprintf(text, sizeof text, "%.2f-%.2f s: %s%s%s", w->start_s, w->end_s, what, *reason ? ": " : "", reason);
    r->o->on_note(r->o->self, failed, text);
}

static void asks_free(struct slot *s)
{
    if (s->whole.asker) ask_free(&s->whole);
    for (int i = 0; i < 2; i++)
        if (s->half[i].asker) ask_free(&s->half[i]);
}

static void leave(struct run *r)
{
    const struct questioned *by = &r->asker.by;
    if (r->n_entered == 0) return;
    r->n_entered--;
    by->leave(by->self);
}

static void samples_done(struct run *r, struct slot *s)
{
    asks_free(s);
    free(s->w.samples);
    s->w.samples = NULL;
    s->done = true;
    leave(r);
}

static double temperature_of(const struct run *r, uint32_t tries)
{
    static const double least[] = { 0, 0.2, 0.4 };
    return fmax(r->o->temperature, least[tries]);
}

static status start_try(struct run *r, struct slot *s, struct err *e)
{
    s->whole.temperature = temperature_of(r, s->tries);
    s->whole.seed = r->o->seed + s->tries;
    s->tries++;
    return ask_start(&s->whole, e);
}

/* The last way: both halves on their own. */
static status start_halves(struct run *r, struct slot *s, struct err *e)
{
    const struct ask *whole = &s->whole;
    const size_t n = whole->n, cut = windows_middle(whole->x, n);
    s->half[0] = s->half[1] = (struct ask){ .asker = &r->asker, .voiced_s = whole->voiced_s, .seed = r->o->seed,
                                            .instruction = whole->instruction, .temperature = r->o->temperature };
    s->half[0].x = whole->x;
    s->half[0].n = cut;
    s->half[1].x = whole->x + cut;
    s->half[1].n = n - cut;
    s->halved = true;
    TRY(ask_start(&s->half[0], e));
    return ask_start(&s->half[1], e);
}

static void count(struct transcript *t, uint32_t n_prompt, uint32_t n_audio, uint32_t n_output)
{
    t->n_prompt += n_prompt;
    t->n_audio += n_audio;
    t->n_output += n_output;
}

/* The answer is the window's text: into the journal at once. Moves a's text and tokens. */
static status take_answer(struct run *r, struct slot *s, struct ask *a, double temperature, struct err *e)
{
    struct transcribe_window *w = info_of(r, s);
    w->attempts = s->tries + s->halved;
    w->n_tokens = a->n_tokens;
    w->mean_logprob = a->mean_logprob;
    w->temperature = temperature;
    w->split = s->halved;
    count(r->out, a->n_prompt, a->n_audio, a->n_tokens);
    s->text = a->text;
    s->n_text = s->keep_to = a->n_text;
    s->token = a->token;
    s->n_token = a->n_token;
    a->text = NULL;
    a->token = NULL;
    a->cap_token = a->n_token = 0;
    samples_done(r, s);
    if (r->journal == NULL) return OK;
    const struct journal_entry t = { .window = s->w.index, .from = s->w.from, .to = s->w.to, .text = s->text,
                                     .n_tokens = w->n_tokens, .attempts = w->attempts, .mean_logprob = w->mean_logprob,
                                     .temperature = temperature, .split = s->halved, .n_prompt = a->n_prompt,
                                     .n_audio = a->n_audio };
    const status st = journal_add(r->journal, &t, e);
    return st == OK ? OK : journal_failed(r, st);
}

static status give_up(struct run *r, struct slot *s, struct err *e)
{
    struct transcribe_window *w = info_of(r, s);
    w->status = WINDOW_FAILED;
    w->attempts = s->tries;
    w->code = s->whole.code;
    memcpy(w->reason, s->whole.reason, sizeof w->reason);
    r->out->n_failed++;
    note(r, s, true, "not transcribed", w->reason);
    samples_done(r, s);
    if (!r->o->fail_on_gap) return OK;
    err_set(e, E_DEVICE, "%.2f-%.2f s could not be transcribed: %s", w->start_s, w->end_s, w->reason);
    return err_tag(e, "transcription_incomplete", NULL);
}

/* Both halves are good: one answer, in place of the whole's. */
static status join_halves(struct slot *s, struct err *e)
{
    struct ask *a = &s->half[0], *b = &s->half[1], *whole = &s->whole;
    const char *joint = stitch_joint(a->text, a->n_text, b->text, b->n_text);
    const uint32_t tokens = a->n_tokens + b->n_tokens;
    const size_t shift = a->n_text + strlen(joint);
    char *text;
    TRY(mem_grow(&a->token, &a->cap_token, a->n_token + b->n_token, sizeof *a->token, e));
    TRY(mem_alloc(&text, shift + b->n_text + 1, 1, e));
    sprintf(text, "%s%s%s", a->text, joint, b->text);
    for (size_t i = 0; i < b->n_token; i++) {
        a->token[a->n_token] = b->token[i];
        a->token[a->n_token++].end += shift;
    }
    free(a->text);
    a->text = text;
    a->n_text = shift + b->n_text;
    a->mean_logprob = tokens ? (a->mean_logprob * a->n_tokens + b->mean_logprob * b->n_tokens) / tokens : 0;
    a->n_tokens = tokens;
    a->n_prompt += b->n_prompt;
    a->n_audio += b->n_audio;
    whole->code = NULL;
    return OK;
}

static status step_halves(struct run *r, struct slot *s, struct err *e)
{
    bool over = true;
    for (int i = 0; i < 2; i++) {
        if (s->half[i].state == ASK_WANTED) TRY(ask_start(&s->half[i], e));
        if (s->half[i].state != ASK_IDLE && !ask_over(&s->half[i])) over = false;
    }
    if (!over) return OK;
    for (int i = 0; i < 2; i++) TRY(ask_judge(&s->half[i], e));
    if (s->half[0].code || s->half[1].code) return give_up(r, s, e);
    TRY(join_halves(s, e));
    note(r, s, false, "transcribed in two halves", "");
    return take_answer(r, s, &s->half[0], r->o->temperature, e);
}

/* What has come for a window that is not done: take it, ask again, or give up. */
static status step(struct run *r, struct slot *s, struct err *e)
{
    struct ask *a = &s->whole;
    if (s->halved) return step_halves(r, s, e);
    if (a->state == ASK_WANTED) return ask_start(a, e);
    if (!ask_over(a)) return OK;
    TRY(ask_judge(a, e));
    if (a->code == NULL) return take_answer(r, s, a, a->temperature, e);
    note(r, s, false, s->tries < TRIES && a->again ? "another try" : "no good text", a->reason);
    if (s->tries < TRIES && a->again) return start_try(r, s, e);
    if (a->again && a->n >= 2 * MIN_HALF_S * MEDIA_RATE) return start_halves(r, s, e);
    return give_up(r, s, e);
}

/* ---- seams and segments ----------------------------------------------------------------------------------- */

/* Voiced seconds of a window in samples [from, to); plain seconds where it has no voice at all. */
static double voice_in(const struct window *w, uint64_t from, uint64_t to)
{
    double sum = 0;
    for (uint32_t i = 0; i < w->n_frames; i++) {
        const double a = fmax((double)(w->begin + (uint64_t)i * WINDOWS_FRAME), (double)from);
        const double b = fmin((double)(w->begin + (uint64_t)(i + 1) * WINDOWS_FRAME), (double)to);
        if ((w->voiced[i] || w->voiced_s <= 0) && b > a) sum += b - a;
    }
    return sum / MEDIA_RATE;
}

static status seam(struct run *r, struct slot *left, struct slot *right, struct err *e)
{
    const struct window *l = &left->w, *n = &right->w;
    if (n->clean_from || left->text == NULL || right->text == NULL || n->begin >= l->end) return OK;
    const double l_all = voice_in(l, l->begin, l->end), n_all = voice_in(n, n->begin, n->end);
    const struct stitch_side ls = { left->text, left->n_text, voice_in(l, l->begin, l->to) / fmax(l_all, FRAME_S),
                                    voice_in(l, n->begin, l->end) / fmax(l_all, FRAME_S) };
    const struct stitch_side rs = { right->text, right->n_text, voice_in(n, n->begin, n->from) / fmax(n_all, FRAME_S),
                                    voice_in(n, n->begin, l->end) / fmax(n_all, FRAME_S) };
    struct stitch_cut cut;
    TRY(stitch_hard(&ls, &rs, &cut, e));
    left->keep_to = cut.left_keep;
    right->keep_from = cut.right_from;
    info_of(r, right)->seam = cut.seam;
    return OK;
}

/* Share of [from, to) seconds of the file without voice, as far as the window heard it. */
static double unvoiced(const struct run *r, const struct window *w, double from, double to)
{
    uint32_t heard = 0, voice = 0;
    for (uint32_t i = 0; i < w->n_frames; i++) {
        const double at = r->out->start_s + (double)w->begin / MEDIA_RATE + (i + 0.5) * FRAME_S;
        if (at < from || at >= to) continue;
        heard++;
        voice += w->voiced[i];
    }
    return heard ? 1 - (double)voice / heard : 0;
}

/* The tokens whose text lies between the seams. */
static status keep_tokens(struct run *r, const struct slot *s, struct err *e)
{
    struct transcript *t = r->out;
    size_t from = 0;
    for (size_t i = 0; i < s->n_token; i++) {
        const size_t end = s->token[i].end;
        if (end > s->keep_from && from < s->keep_to && end > from) {
            TRY(mem_grow(&t->token, &t->cap_tokens, t->n_tokens + 1, sizeof *t->token, e));
            t->token[t->n_tokens++] = (struct transcribe_token){ s->token[i].id, s->token[i].logprob, s->w.index };
        }
        from = end;
    }
    return OK;
}

static double file_time(const struct run *r, uint64_t sample) { return r->out->start_s + (double)sample / MEDIA_RATE; }

/* The slot's seams are settled: its segments. */
static status emit(struct run *r, struct slot *s, bool last, struct err *e)
{
    struct transcript *t = r->out;
    const struct window *w = &s->w;
    const size_t from = t->list.n;
    const double begin = file_time(r, w->from), end = file_time(r, w->to);
    if (info_of(r, s)->status == WINDOW_FAILED) {
        TRY(subtitles_add_gap(&t->list, begin, end, w->index, e));
    } else if (s->text && s->keep_to > s->keep_from) {
        const struct subtitle_source src = {
            .text = s->text + s->keep_from, .n = s->keep_to - s->keep_from, .from_s = begin, .to_s = end,
            .exact_from = w->clean_from, .exact_to = w->clean_to, .voiced = w->voiced, .n_frames = w->n_frames,
            .frame0_s = file_time(r, w->begin), .window = w->index, .mean_logprob = info_of(r, s)->mean_logprob };
        TRY(subtitles_add(&t->list, &src, &r->o->limits, e));
        TRY(keep_tokens(r, s, e));
    }
    for (size_t i = from; i < t->list.n; i++) {
        struct subtitle *one = &t->list.s[i];
        one->unvoiced = unvoiced(r, w, (double)one->start_ms / 1000, (double)one->end_ms / 1000);
    }
    if (last) subtitles_end(&t->list, from, end);
    t->duration_s = (double)w->to / MEDIA_RATE;
    if (r->o->on_segments && t->list.n > from && !r->o->on_segments(r->o->self, &t->list, from))
        return err_set(e, E_CANCELLED, "nobody reads the output");
    return OK;
}

static void slot_free(struct slot *s)
{
    asks_free(s);
    window_free(&s->w);
    free(s->text);
    free(s->token);
    free(s);
}

/* Emit what has a done right neighbour; with `all` the last one too. */
static status settle(struct run *r, bool all, struct err *e)
{
    status st = OK;
    size_t k = 0;
    while (st == OK && k < r->n_queue && r->queue[k]->done) {
        const bool last = k + 1 == r->n_queue;
        if (last && !all) break;
        if (!last && !r->queue[k + 1]->done) break;
        if (!last) st = seam(r, r->queue[k], r->queue[k + 1], e);
        if (st == OK) st = emit(r, r->queue[k], last, e);
        k++;
    }
    for (size_t i = 0; i < k; i++) slot_free(r->queue[i]);
    r->n_queue -= k;
    memmove(r->queue, r->queue + k, r->n_queue * sizeof *r->queue);
    return st;
}

/* ---- the loop --------------------------------------------------------------------------------------------- */

static void replay(struct run *r, struct slot *s, const struct journal_entry *known)
{
    struct transcribe_window *info = info_of(r, s);
    info->replayed = true;
    info->attempts = known->attempts;
    info->n_tokens = known->n_tokens;
    info->mean_logprob = known->mean_logprob;
    info->temperature = known->temperature;
    info->split = known->split;
    s->n_text = s->keep_to = strlen(known->text);
    s->text = mem_must_strdup(known->text);
    r->out->n_replayed++;
    count(r->out, known->n_prompt, known->n_audio, known->n_tokens);
    samples_done(r, s);
}

/* A window enters the queue: silent, known to the journal, or asked about from now on. Moves *w. */
static status enter(struct run *r, struct window *w, struct err *e)
{
    struct transcript *t = r->out;
    struct slot *s = NULL;
    status st = mem_grow(&r->queue, &r->cap_queue, r->n_queue + 1, sizeof *r->queue, e);
    if (st == OK) st = mem_grow(&t->window, &t->cap, t->n_windows + 1, sizeof *t->window, e);
    if (st == OK) st = mem_alloc(&s, 1, sizeof *s, e);
    if (st != OK) {
        window_free(w);
        return st;
    }
    r->queue[r->n_queue++] = s;
    s->w = *w;
    t->window[t->n_windows++] = (struct transcribe_window){ .start_s = file_time(r, w->from),
                                                            .end_s = file_time(r, w->to) };
    if (w->silent) {
        info_of(r, s)->status = WINDOW_SILENT;
        t->n_silent++;
        samples_done(r, s);
        return OK;
    }
    const struct journal_entry *known = r->journal ? journal_find(r->journal, w->index, w->from, w->to) : NULL;
    if (known) {
        replay(r, s, known);
        return OK;
    }
    if (!r->asked) TRY(settle_language(r, &s->w, e));
    s->whole = ask_of(r, &s->w);
    return start_try(r, s, e);
}

static size_t n_waiting(const struct run *r)
{
    size_t n = 0;
    for (size_t i = 0; i < r->n_queue; i++) n += !r->queue[i]->done;
    return n;
}

/* The end of the last window's text, for the next one's context; whole characters. */
static void remember(struct run *r)
{
    for (size_t i = 0; i < r->n_queue; i++) {
        const struct slot *s = r->queue[i];
        if (!s->done || s->text == NULL || s->n_text == 0) continue;
        size_t from = s->n_text > TRANSCRIBE_PREVIOUS_BYTES ? s->n_text - TRANSCRIBE_PREVIOUS_BYTES : 0;
        while (from < s->n_text && ((unsigned char)s->text[from] & 0xc0) == 0x80) from++;
        snprintf(r->asker.previous, sizeof r->asker.previous, "%s", s->text + from);
    }
}

/* The sound up to the first window that is not done. */
static void tell_progress(struct run *r)
{
    double done_s = r->told_s;
    for (size_t i = 0; i < r->n_queue && r->queue[i]->done; i++)
        done_s = info_of(r, r->queue[i])->end_s - r->out->start_s;
    if (done_s <= r->told_s || r->o->on_progress == NULL) return;
    r->told_s = done_s;
    r->o->on_progress(r->o->self, done_s, r->out->n_failed);
}

/* A window more, where one may begin. *idle false: one did, and another may. */
static status feed(struct run *r, bool *end, bool *idle, struct err *e)
{
    const uint32_t jobs = r->o->condition_on_previous ? 1 : r->o->jobs;
    const bool stopped = r->o->stop && *r->o->stop;
    struct window w;
    *idle = true;
    if (*end || stopped || n_waiting(r) >= jobs || r->n_queue >= QUEUE_MAX) return OK;
    const struct questioned *by = &r->asker.by;
    if (by->enter && !by->enter(by->self)) return OK;
    r->n_entered += by->enter != NULL;
    *idle = false;
    TRY(windows_next(r->windows, &w, e));
    *end = w.n_samples == 0;
    if (*end) {
        leave(r);
        return OK;
    }
    if (r->o->condition_on_previous) remember(r);
    return enter(r, &w, e);
}

static status loop(struct run *r, struct err *e)
{
    for (bool end = false, idle = false;;) {
        TRY(asker_cancelled(&r->asker, e));
        TRY(feed(r, &end, &idle, e));
        for (size_t i = 0; i < r->n_queue; i++)
            if (!r->queue[i]->done) TRY(step(r, r->queue[i], e));
        tell_progress(r);
        const bool stopped = r->o->stop && *r->o->stop, over = n_waiting(r) == 0 && (end || stopped);
        TRY(settle(r, over, e));
        r->out->complete = end;
        if (over) return OK;
        if (idle) asker_wait(&r->asker);
    }
}

static status check(const struct transcribe_options *o, struct err *e)
{
    if (o->jobs < 1 || o->jobs > TRANSCRIBE_JOBS_MAX)
        return err_set(e, E_ARG, "%u windows at once: give 1 to %u", o->jobs, TRANSCRIBE_JOBS_MAX);
    if (!(o->temperature >= 0 && o->temperature <= 1))
        return err_set(e, E_ARG, "temperature %g: give 0 to 1", o->temperature);
    if (!(o->limits.max_segment_s >= 0.5))
        return err_set(e, E_ARG, "segments of at most %g s: give 0.5 s or more", o->limits.max_segment_s);
    return OK;
}

status transcribe_run(struct service *s, windows_read read, void *source, const struct transcribe_options *o,
                      struct transcript *out, struct err *e)
{
    struct run r = { .o = o, .out = out, .journal = o->journal };
    *out = (struct transcript){ .start_s = o->start_s };
    TRY(check(o, e));
    asker_init(&r.asker, s, o);
    if (o->language || o->instruction) set_language(&r, o->language);
    else set_language(&r, NULL), r.asked = false;
    status st = windows_create(&o->windows, read, source, &r.windows, e);
    if (st == OK) st = loop(&r, e);
    for (size_t i = 0; i < r.n_queue; i++)         /* all at once, before the first is waited for */
        for (int k = 0; k < 3; k++) {
            struct ask *a = k ? &r.queue[i]->half[k - 1] : &r.queue[i]->whole;
            if (a->asker) ask_cancel(a);
        }
    for (size_t i = 0; i < r.n_queue; i++) slot_free(r.queue[i]);
    while (r.n_entered) leave(&r);
    free(r.queue);
    windows_destroy(&r.windows);
    asker_fini(&r.asker);
    if (st != OK) out->complete = false;
    return st;
}
