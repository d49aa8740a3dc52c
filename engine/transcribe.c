/* engine/transcribe.c - see transcribe.h. Windows pass through a queue of slots in their order; those that need the
 * model are run together, `jobs` at a time, and a slot leaves the queue when its right neighbour is done, as only
 * then the seam between them is known. */
#include "engine/transcribe.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "base/mem.h"
#include "engine/languages.h"
#include "engine/version.h"

#define FRAME_S ((double)WINDOWS_FRAME / MEDIA_RATE)
#define LOGPROB_MIN (-1.2)
#define TOKENS_A_SECOND 12
#define TOKENS_MIN 64
#define PAD_SAMPLES 3200           /* shorter pieces get silence behind them: the tower wants 321 samples */
#define PREVIOUS_BYTES 200
#define QUEUE_MAX 256
#define MIN_HALF_S 1.0
#define EDGE_FRAMES 10             /* 200 ms of the silence at either end of a window are heard, not more: models
                                      invent words on silence */

/* ---- how to ask ------------------------------------------------------------------------------------------- */

static status read_profile(const struct doc_at *t, struct transcribe_profile *out, struct err *e)
{
    static const char *const known[] = { "instruction", "language", "window_s", "overlap_s", NULL };
    const char *instruction = "", *language = "";
    TRY(doc_only(t, known, e));
    TRY(doc_opt_string(t, "instruction", &instruction, e));
    TRY(doc_opt_string(t, "language", &language, e));
    TRY(doc_opt_double(t, "window_s", 1, 600, &out->window_s, e));
    TRY(doc_opt_double(t, "overlap_s", 0, 60, &out->overlap_s, e));
    if (strlen(instruction) >= sizeof out->instruction)
        return doc_err(t, e, "instruction: longer than %zu bytes", sizeof out->instruction - 1);
    const char *name = *language ? language_name(language) : "";
    if (name == NULL) return doc_err(t, e, "language: \"%s\" is no ISO 639 code or English name", language);
    snprintf(out->instruction, sizeof out->instruction, "%s", instruction);
    snprintf(out->language, sizeof out->language, "%s", name);
    return OK;
}

status transcribe_profile_load(const char *model_dir, struct transcribe_profile *out, struct err *e)
{
    char path[1200];
    struct doc d;
    struct doc_at root, t;
    *out = (struct transcribe_profile){ .overlap_s = -1 };
    snprintf(path, sizeof path, "%s/omnidrop.json", model_dir);
    if (access(path, F_OK) != 0) return OK;
    TRY(doc_load(path, &doc_config_limits, &d, e));
    doc_root(&d, &root);
    status st = OK;
    if (doc_has(&root, "transcribe")) {
        st = doc_object(&root, "transcribe", &t, e);
        if (st == OK) st = read_profile(&t, out, e);
    }
    doc_close(&d);
    return st;
}

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

struct slot {
    struct window w;
    bool done;                     /* else it waits for the model          */
    char *text;                    /* owned, n_text bytes; NULL where failed or silent */
    size_t n_text;
    size_t keep_from, keep_to;     /* bytes between the seams              */
};

struct run {
    struct engine *en;
    const struct transcribe_options *o;
    struct transcript *out;
    struct media_audio *audio;
    struct windows *windows;
    struct slot *queue;            /* [n_queue] in order; queue[0] may be done already and waits for its neighbour */
    size_t n_queue, cap_queue;
    char instruction[1024];
    bool asked;                    /* the language is settled              */
    char previous[PREVIOUS_BYTES + 1];
};

/* One piece of sound to ask about, and what came of it. */
struct ask {
    const float *x;                /* borrowed */
    size_t n;
    double voiced_s;
    uint32_t max_tokens;           /* 0: by the voiced time */
    float *padded;                 /* owned */
    struct eng_pcm pcm;
    struct chat chat;
    struct eng_request *req;
    char *text;                    /* owned; set where code == NULL */
    size_t n_text;
    uint32_t n_tokens;
    double mean_logprob;
    const char *code;              /* why not; NULL: fine */
    char reason[160];
    bool again;                    /* another try may help */
};

static void ask_free(struct run *r, struct ask *a)
{
    eng_request_destroy(r->en, &a->req);
    chat_free(&a->chat);
    free(a->padded);
    free(a->text);
    a->padded = NULL;
    a->text = NULL;
}

bool transcribe_repeats(const int32_t *ids, uint32_t n)
{
    for (uint32_t k = 1; k <= 12 && k < n; k++) {
        uint32_t same = 0;         /* ids[i] == ids[i - k], in a row */
        for (uint32_t i = k; i < n; i++) {
            same = ids[i] == ids[i - k] ? same + 1 : 0;
            const uint32_t length = same + k;
            if (length >= 4 * k && length >= 12 && length > 0.4 * n) return true;
        }
    }
    return false;
}

static bool same_text(const char *a, size_t n, const char *b)
{
    if (b == NULL) return false;
    const size_t m = strlen(b);
    while (n > 0 && (unsigned char)a[n - 1] <= 32) n--;
    while (n > 0 && (unsigned char)*a <= 32) a++, n--;
    return n == m && n > 0 && strncasecmp(a, b, n) == 0;
}

/* What the guards say of an answer. */
static status judge(struct run *r, struct ask *a, struct err *e)
{
    const struct eng_result *res = eng_request_result(a->req);
    a->n_tokens = res->n_ids;
    a->mean_logprob = res->n_ids ? res->logprob_sum / res->n_ids : 0;
    a->code = NULL;
    a->again = true;
    switch (res->finish) {
    case ENG_CANCELLED: return err_set(e, E_CANCELLED, "interrupted");
    case ENG_STOP: break;
    case ENG_LENGTH:
        a->code = "length";
        snprintf(a->reason, sizeof a->reason, "the text ran to %u tokens without an end", res->n_ids);
        return OK;
    default:
        a->code = "engine_error";
        a->again = false;
        snprintf(a->reason, sizeof a->reason, "%.150s", res->error.text);
        return OK;
    }
    if (transcribe_repeats(res->ids, res->n_ids)) {
        a->code = "repetition";
        snprintf(a->reason, sizeof a->reason, "the text goes in circles");
        return OK;
    }
    if (a->mean_logprob < LOGPROB_MIN) {
        a->code = "low_logprob";
        snprintf(a->reason, sizeof a->reason, "the model is unsure: mean log probability %.2f", a->mean_logprob);
        return OK;
    }
    free(a->text);
    const bool echo = same_text(res->text, res->n_text, r->instruction) ||
                      same_text(res->text, res->n_text, r->o->context);
    a->n_text = echo ? 0 : res->n_text;
    TRY(mem_alloc(&a->text, a->n_text + 1, 1, e));
    memcpy(a->text, res->text, a->n_text);
    return OK;
}

static status build_chat(const struct run *r, struct ask *a, const char *instruction, struct err *e)
{
    const char *context = r->o->context, *previous = r->o->condition_on_previous ? r->previous : "";
    chat_init(&a->chat);
    TRY(chat_add_message(&a->chat, CHAT_USER, e));
    if (context && *context) {
        TRY(chat_add_text(&a->chat, context, strlen(context), e));
        TRY(chat_add_text(&a->chat, "\n", 1, e));
    }
    if (*previous) {
        TRY(chat_add_text(&a->chat, previous, strlen(previous), e));
        TRY(chat_add_text(&a->chat, "\n", 1, e));
    }
    TRY(chat_add_media(&a->chat, PART_AUDIO, "pcm:0", e));
    return chat_add_text(&a->chat, instruction, strlen(instruction), e);
}

static status create(struct run *r, struct ask *a, const char *instruction, double temperature, uint64_t seed,
                     struct err *e)
{
    a->pcm = (struct eng_pcm){ a->x, a->n };
    if (a->n < PAD_SAMPLES && a->padded == NULL) {
        TRY(mem_alloc(&a->padded, PAD_SAMPLES, sizeof *a->padded, e));
        memcpy(a->padded, a->x, a->n * sizeof *a->x);
    }
    if (a->padded) a->pcm = (struct eng_pcm){ a->padded, PAD_SAMPLES };
    chat_free(&a->chat);
    TRY(build_chat(r, a, instruction, e));
    const double by_voice = ceil(TOKENS_A_SECOND * a->voiced_s);
    struct eng_request_options o = eng_request_defaults();
    o.pcm = &a->pcm;
    o.n_pcm = 1;
    o.policy = r->o->policy;
    o.max_tokens = a->max_tokens ? a->max_tokens : by_voice > TOKENS_MIN ? (uint32_t)by_voice : TOKENS_MIN;
    o.sample.temperature = (float)temperature;
    o.sample.seed = seed;
    const status st = eng_request_create(r->en, &a->chat, &o, &a->req, e);
    if (st == E_ARG)
        err_prefix(e, "a window of %.1f s does not fit; give a shorter --window or a larger --max-model-len",
                   (double)a->n / MEDIA_RATE);
    return st;
}

/* Ask about all of a[n], together as far as the page pool holds them, and judge the answers. */
static status ask_all(struct run *r, struct ask **a, size_t n, const char *instruction, double temperature, uint64_t seed,
                      struct err *e)
{
    struct eng_request **req;
    TRY(mem_alloc(&req, n, sizeof *req, e));
    status st = OK;
    for (size_t at = 0; at < n && st == OK;) {
        size_t k = 0;
        for (; at + k < n; k++) {
            st = create(r, a[at + k], instruction, temperature, seed, e);
            if (st != OK) break;
            req[k] = a[at + k]->req;
        }
        if (st == E_FULL && k > 0) st = OK;        /* the rest waits for this lot's pages */
        if (st == OK) st = eng_run(r->en, req, (uint32_t)k, e);
        for (size_t i = 0; i < k && st == OK; i++) st = judge(r, a[at + i], e);
        for (size_t i = 0; i < n; i++) eng_request_destroy(r->en, &a[i]->req);
        at += k;
    }
    free(req);
    return st;
}

/* The part of a window that is handed to the model. */
static struct ask ask_of(const struct run *r, const struct window *w)
{
    uint32_t first = 0, last = w->n_frames;
    while (first < w->n_frames && !w->voiced[first]) first++;
    while (last > first && !w->voiced[last - 1]) last--;
    struct ask a = { .x = w->samples, .n = w->n_samples, .voiced_s = w->voiced_s };
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
    snprintf(r->out->language, sizeof r->out->language, "%s", name ? name : "unknown");
    if (r->o->instruction) snprintf(r->instruction, sizeof r->instruction, "%s", r->o->instruction);
    else transcribe_instruction(r->instruction, sizeof r->instruction, r->o->translate, name);
    r->asked = true;
}

/* One short question on the first voiced window; undecided answers leave the language open. */
static status ask_language(struct run *r, const struct window *w, struct err *e)
{
    static const char question[] = "Which language is spoken in the audio? Answer with its English name only.";
    const char *name = NULL;
    if (r->o->journal && journal_language(r->o->journal)) {
        set_language(r, language_name(journal_language(r->o->journal)));
        return OK;
    }
    struct ask a = ask_of(r, w);
    a.max_tokens = 8;
    chat_init(&a.chat);
    status st = create(r, &a, question, 0, r->o->seed, e);
    if (st == OK) st = eng_run(r->en, &a.req, 1, e);
    if (st == OK) {
        const struct eng_result *res = eng_request_result(a.req);
        if (res->finish == ENG_CANCELLED) st = err_set(e, E_CANCELLED, "interrupted");
        else if (res->finish != ENG_FAILED) name = language_in_text(res->text, res->n_text);
    }
    ask_free(r, &a);
    if (st != OK) return st;
    set_language(r, name);
    return r->o->journal ? journal_add_language(r->o->journal, r->out->language, e) : OK;
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

static void samples_done(struct slot *s)
{
    free(s->w.samples);
    s->w.samples = NULL;
    s->done = true;
}

/* The answer is the window's text: into the journal at once. Moves a->text. */
static status take_answer(struct run *r, struct slot *s, struct ask *a, uint32_t attempts, double temperature, bool split,
                          struct err *e)
{
    struct transcribe_window *w = info_of(r, s);
    w->attempts = attempts;
    w->n_tokens = a->n_tokens;
    w->mean_logprob = a->mean_logprob;
    w->temperature = temperature;
    w->split = split;
    s->text = a->text;
    s->n_text = s->keep_to = a->n_text;
    a->text = NULL;
    samples_done(s);
    if (r->o->journal == NULL) return OK;
    const struct journal_entry t = { .window = s->w.index, .from = s->w.from, .to = s->w.to, .text = s->text,
                                     .n_tokens = w->n_tokens, .attempts = attempts, .mean_logprob = w->mean_logprob,
                                     .temperature = temperature, .split = split };
    return journal_add(r->o->journal, &t, e);
}

/* The last way: both halves on their own. */
static status ask_halves(struct run *r, struct slot *s, struct ask *whole, uint32_t attempts, struct err *e)
{
    const size_t n = whole->n, cut = windows_middle(whole->x, n);
    struct ask half[2] = { { .x = whole->x, .n = cut, .voiced_s = whole->voiced_s },
                           { .x = whole->x + cut, .n = n - cut, .voiced_s = whole->voiced_s } };
    struct ask *both[2] = { &half[0], &half[1] };
    chat_init(&half[0].chat);
    chat_init(&half[1].chat);
    status st = ask_all(r, both, 2, r->instruction, r->o->temperature, r->o->seed, e);
    if (st == OK && half[0].code == NULL && half[1].code == NULL) {
        const char *joint = stitch_joint(half[0].text, half[0].n_text, half[1].text, half[1].n_text);
        const uint32_t tokens = half[0].n_tokens + half[1].n_tokens;
        char *text;
        st = mem_alloc(&text, half[0].n_text + half[1].n_text + 2, 1, e);
        if (st == OK) {
            whole->n_text = (size_t)sprintf(text, "%s%s%s", half[0].text, joint, half[1].text);
            free(whole->text);
            whole->text = text;
            whole->mean_logprob = tokens ? (half[0].mean_logprob * half[0].n_tokens +
                                            half[1].mean_logprob * half[1].n_tokens) / tokens : 0;
            whole->n_tokens = tokens;
            whole->code = NULL;
            note(r, s, false, "transcribed in two halves", "");
            st = take_answer(r, s, whole, attempts + 1, r->o->temperature, true, e);
        }
    }
    ask_free(r, &half[0]);
    ask_free(r, &half[1]);
    return st;
}

static status give_up(struct run *r, struct slot *s, const struct ask *a, uint32_t attempts, struct err *e)
{
    struct transcribe_window *w = info_of(r, s);
    w->status = WINDOW_FAILED;
    w->attempts = attempts;
    w->code = a->code;
    memcpy(w->reason, a->reason, sizeof w->reason);
    r->out->n_failed++;
    note(r, s, true, "not transcribed", a->reason);
    samples_done(s);
    if (!r->o->fail_on_gap) return OK;
    return err_set(e, E_DEVICE, "%.2f-%.2f s could not be transcribed: %s", w->start_s, w->end_s, a->reason);
}

/* All tries of the waiting slots s[n]; each is done after it. */
static status transcribe_slots(struct run *r, struct slot **s, struct ask *a, size_t n, struct err *e)
{
    const double first = r->o->temperature;
    const double temperature[] = { first, first < 0.2 ? 0.2 : first, first < 0.4 ? 0.4 : first };
    struct ask *some[64];
    size_t which[64];
    uint32_t attempts = 0;
    for (size_t t = 0; t < 3; t++) {
        size_t k = 0;
        for (size_t i = 0; i < n; i++)
            if (!s[i]->done && (t == 0 || a[i].again)) {
                some[k] = &a[i];
                which[k++] = i;
            }
        if (k == 0) break;
        attempts++;
        TRY(ask_all(r, some, k, r->instruction, temperature[t], r->o->seed + t, e));
        for (size_t i = 0; i < k; i++) {
            struct slot *one = s[which[i]];
            if (some[i]->code == NULL) TRY(take_answer(r, one, some[i], attempts, temperature[t], false, e));
            else note(r, one, false, t < 2 && some[i]->again ? "another try" : "no good text", some[i]->reason);
        }
    }
    for (size_t i = 0; i < n; i++) {
        if (s[i]->done) continue;
        if (a[i].again && a[i].n >= 2 * MIN_HALF_S * MEDIA_RATE)
            TRY(ask_halves(r, s[i], &a[i], attempts, e));
        if (!s[i]->done) TRY(give_up(r, s[i], &a[i], attempts, e));
    }
    return OK;
}

static status transcribe_waiting(struct run *r, struct err *e)
{
    struct slot *waiting[64];
    struct ask *a;
    size_t n = 0;
    for (size_t i = 0; i < r->n_queue; i++)
        if (!r->queue[i].done) waiting[n++] = &r->queue[i];
    if (n == 0) return OK;
    if (!r->asked) TRY(ask_language(r, &waiting[0]->w, e));
    TRY(mem_alloc(&a, n, sizeof *a, e));
    for (size_t i = 0; i < n; i++) {
        a[i] = ask_of(r, &waiting[i]->w);
        chat_init(&a[i].chat);
    }
    const status st = transcribe_slots(r, waiting, a, n, e);
    for (size_t i = 0; i < n; i++) ask_free(r, &a[i]);
    free(a);
    return st;
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
    }
    if (last) subtitles_end(&t->list, from, end);
    t->duration_s = (double)w->to / MEDIA_RATE;
    if (r->o->on_segments && t->list.n > from && !r->o->on_segments(r->o->self, &t->list, from))
        return err_set(e, E_CANCELLED, "nobody reads the output");
    return OK;
}

static void slot_free(struct slot *s)
{
    window_free(&s->w);
    free(s->text);
    s->text = NULL;
}

/* Emit what has a done right neighbour; with `all` the last one too. */
static status settle(struct run *r, bool all, struct err *e)
{
    status st = OK;
    size_t k = 0;
    while (st == OK && k < r->n_queue && r->queue[k].done) {
        const bool last = k + 1 == r->n_queue;
        if (last && !all) break;
        if (!last && !r->queue[k + 1].done) break;
        if (!last) st = seam(r, &r->queue[k], &r->queue[k + 1], e);
        if (st == OK) st = emit(r, &r->queue[k], last, e);
        k++;
    }
    for (size_t i = 0; i < k; i++) slot_free(&r->queue[i]);
    r->n_queue -= k;
    memmove(r->queue, r->queue + k, r->n_queue * sizeof *r->queue);
    return st;
}

/* ---- the loop --------------------------------------------------------------------------------------------- */

static status read_audio(void *self, float *buf, size_t cap, size_t *n, struct err *e)
{
    return media_audio_read(self, buf, cap, n, e);
}

/* A window enters the queue: silent, known to the journal, or waiting. Moves *w. */
static status enter(struct run *r, struct window *w, struct err *e)
{
    struct transcript *t = r->out;
    status st = mem_grow(&r->queue, &r->cap_queue, r->n_queue + 1, sizeof *r->queue, e);
    if (st == OK) st = mem_grow(&t->window, &t->cap, t->n_windows + 1, sizeof *t->window, e);
    if (st != OK) {
        window_free(w);
        return st;
    }
    struct slot *s = &r->queue[r->n_queue++];
    *s = (struct slot){ .w = *w };
    t->window[t->n_windows++] = (struct transcribe_window){ .start_s = file_time(r, w->from),
                                                            .end_s = file_time(r, w->to) };
    struct transcribe_window *info = info_of(r, s);
    if (w->silent) {
        info->status = WINDOW_SILENT;
        t->n_silent++;
        samples_done(s);
        return OK;
    }
    const struct journal_entry *known = r->o->journal ? journal_find(r->o->journal, w->index, w->from, w->to) : NULL;
    if (known == NULL) return OK;
    info->replayed = true;
    info->attempts = known->attempts;
    info->n_tokens = known->n_tokens;
    info->mean_logprob = known->mean_logprob;
    info->temperature = known->temperature;
    info->split = known->split;
    s->n_text = s->keep_to = strlen(known->text);
    s->text = mem_must_strdup(known->text);
    t->n_replayed++;
    samples_done(s);
    return OK;
}

static size_t n_waiting(const struct run *r)
{
    size_t n = 0;
    for (size_t i = 0; i < r->n_queue; i++) n += !r->queue[i].done;
    return n;
}

/* The end of the last window's text, for the next one's context; whole characters. */
static void remember(struct run *r)
{
    for (size_t i = 0; i < r->n_queue; i++) {
        const struct slot *s = &r->queue[i];
        if (!s->done || s->text == NULL || s->n_text == 0) continue;
        size_t from = s->n_text > PREVIOUS_BYTES ? s->n_text - PREVIOUS_BYTES : 0;
        while (from < s->n_text && ((unsigned char)s->text[from] & 0xc0) == 0x80) from++;
        snprintf(r->previous, sizeof r->previous, "%s", s->text + from);
    }
}

/* What was not begun is not part of the result. */
static void drop_waiting(struct run *r)
{
    struct transcript *t = r->out;
    while (n_waiting(r) > 0) {
        slot_free(&r->queue[--r->n_queue]);
        const struct transcribe_window *w = &t->window[--t->n_windows];
        t->n_silent -= w->status == WINDOW_SILENT;
        t->n_replayed -= w->replayed;
    }
}

static status loop(struct run *r, struct err *e)
{
    const uint32_t jobs = r->o->condition_on_previous ? 1 : r->o->jobs;
    for (bool end = false; !end;) {
        while (!end && n_waiting(r) < jobs && r->n_queue < QUEUE_MAX) {
            struct window w;
            TRY(windows_next(r->windows, &w, e));
            end = w.n_samples == 0;
            if (!end) TRY(enter(r, &w, e));
            if (r->o->condition_on_previous) remember(r);
            if (n_waiting(r) == 0) TRY(settle(r, false, e));
        }
        if (r->o->stop && *r->o->stop && (n_waiting(r) > 0 || !end)) {
            drop_waiting(r);
            break;
        }
        TRY(transcribe_waiting(r, e));
        if (r->o->condition_on_previous) remember(r);
        TRY(settle(r, end, e));
        r->out->complete = end;
        if (r->o->on_progress && r->out->n_windows)
            r->o->on_progress(r->o->self, r->out->window[r->out->n_windows - 1].end_s - r->out->start_s,
                              r->out->n_failed);
    }
    return settle(r, true, e);
}

static status check(const struct transcribe_options *o, struct err *e)
{
    if (o->jobs < 1 || o->jobs > 64) return err_set(e, E_ARG, "%u windows at once: give 1 to 64", o->jobs);
    if (!(o->temperature >= 0 && o->temperature <= 1))
        return err_set(e, E_ARG, "temperature %g: give 0 to 1", o->temperature);
    if (!(o->limits.max_segment_s >= 0.5))
        return err_set(e, E_ARG, "segments of at most %g s: give 0.5 s or more", o->limits.max_segment_s);
    return OK;
}

status transcribe_run(struct engine *en, struct media *m, const struct transcribe_options *o, struct transcript *out,
                      struct err *e)
{
    struct run r = { .en = en, .o = o, .out = out };
    const struct media_audio_options ao = { .start_s = o->start_s, .end_s = o->end_s, .keep_time = true };
    *out = (struct transcript){ .start_s = o->start_s };
    TRY(check(o, e));
    if (o->language || o->instruction) set_language(&r, o->language);
    else set_language(&r, NULL), r.asked = false;
    status st = media_audio_open(m, &ao, &r.audio, e);
    if (st == OK) st = windows_create(&o->windows, read_audio, r.audio, &r.windows, e);
    if (st == OK) st = loop(&r, e);
    for (size_t i = 0; i < r.n_queue; i++) slot_free(&r.queue[i]);
    free(r.queue);
    windows_destroy(&r.windows);
    media_audio_close(&r.audio);
    if (st != OK) out->complete = false;
    return st;
}

void transcript_free(struct transcript *t)
{
    subtitles_free(&t->list);
    free(t->window);
    *t = (struct transcript){ 0 };
}

/* ---- JSON ------------------------------------------------------------------------------------------------- */

static json_t *span_json(double start_s, double end_s)
{
    return json_pack("{s:f, s:f}", "start", round(start_s * 1000) / 1000, "end", round(end_s * 1000) / 1000);
}

static json_t *window_json(const struct transcribe_window *w)
{
    static const char *const status_name[] = { "ok", "skipped_silence", "failed" };
    static const char *const seam_name[] = { "clean", "matched", "unmatched" };
    json_t *o = span_json(w->start_s, w->end_s);
    json_object_set_new(o, "status", json_string(status_name[w->status]));
    if (w->status == WINDOW_SILENT) return o;
    json_object_set_new(o, "seam", json_string(seam_name[w->seam]));
    json_object_set_new(o, "attempts", json_integer(w->attempts));
    if (w->status == WINDOW_FAILED) return o;
    json_object_set_new(o, "tokens", json_integer(w->n_tokens));
    json_object_set_new(o, "avg_logprob", json_real(w->mean_logprob));
    json_object_set_new(o, "temperature", json_real(w->temperature));
    if (w->split) json_object_set_new(o, "split", json_true());
    return o;
}

json_t *transcript_json(const struct transcript *t, const char *model, const struct policy_params *policy)
{
    json_t *segments = json_array(), *windows = json_array(), *failed = json_array(), *silent = json_array();
    char *text = NULL;
    struct err e;
    for (size_t i = 0; i < t->list.n; i++) json_array_append_new(segments, subtitle_json(&t->list, i));
    double from = 0;
    for (size_t i = 0; i < t->n_windows; i++) {
        const struct transcribe_window *w = &t->window[i];
        json_array_append_new(windows, window_json(w));
        if (w->status == WINDOW_FAILED) {
            json_t *o = span_json(w->start_s, w->end_s);
            json_object_set_new(o, "code", json_string(w->code));
            json_object_set_new(o, "reason", json_string(w->reason));
            json_array_append_new(failed, o);
        }
        if (w->status != WINDOW_SILENT) continue;
        if (i == 0 || t->window[i - 1].status != WINDOW_SILENT) from = w->start_s;
        if (i + 1 == t->n_windows || t->window[i + 1].status != WINDOW_SILENT)
            json_array_append_new(silent, span_json(from, w->end_s));
    }
    if (subtitles_text(&t->list, &text, &e) != OK) text = NULL;
    json_t *o = json_pack("{s:s, s:s, s:f, s:o, s:{s:s, s:s, s:s, s:b, s:o, s:o, s:o}}", "text", text ? text : "",
                          "language", t->language, "duration", t->duration_s, "segments", segments, "omnidrop", "version",
                          OMNIDROP_VERSION, "model", model, "policy", policy ? prune_params_name(policy) : "none",
                          "complete", t->complete, "windows", windows, "failed_windows", failed, "skipped_silence",
                          silent);
    free(text);
    return o;
}
