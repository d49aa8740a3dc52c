/* engine/accept.c - a sampled token becomes text: detokenizing, stop strings, ends, and who is told. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "engine/inside.h"

bool choice_open(const struct eng_choice *c) { return c->result.finish == ENG_UNFINISHED; }

void choice_end(struct engine *en, struct eng_choice *c, enum eng_finish how, const struct err *why)
{
    struct eng_request *r = c->r;
    struct eng_result *res = &c->result;
    if (!choice_open(c)) return;
    res->finish = how;
    if (why) res->error = *why;
    res->text = c->text ? c->text : "";
    res->n_text = c->n_text_bytes;
    res->ids = c->ids;
    res->n_ids = (uint32_t)c->n_ids;
    res->token_s = c->token_s;
    res->n_prompt = r->prompt.n;
    res->n_layers = decoder_shape(en->dec)->L;
    res->alive = (const uint32_t(*)[4])r->alive;
    res->pages = r->pages;
    res->survivors = (const uint32_t *const *)r->survivors;
    res->why = r->why;
    res->n_why = (uint32_t)r->n_why;
    memcpy(res->n_av, r->n_av, sizeof res->n_av);
    res->mean_retention = r->mean_retention;
    res->media_s = r->media_s;
    res->tower_s = r->tower_s;
    res->prefill_s = r->prefill_s;
    res->select_s = r->select_s;
    res->decode_s = r->decode_s;
    r->n_open--;
    /* Its own pages go now; the last choice's go with the request. */
    if (r->n_open > 0) choice_drop_pages(en, c);
}

static bool is_stop_id(const struct engine *en, const struct eng_request *r, int32_t id)
{
    for (uint32_t i = 0; i < r->o.n_stop_id; i++)
        if (r->o.stop_id[i] == id) return true;
    for (uint32_t i = 0; i < en->config.n_stop && !r->o.ignore_eos; i++)
        if (en->config.stop[i] == id) return true;
    return false;
}

/* Bytes at the end of the text that may be the beginning of a stop string; *at: where one stands whole, *end: behind it. */
static size_t held_back(const struct eng_choice *c, bool *found, size_t *at, size_t *end)
{
    const struct eng_request_options *o = &c->r->o;
    size_t hold = 0;
    *found = false;
    for (uint32_t i = 0; i < o->n_stop; i++) {
        const size_t len = strlen(o->stop[i]);
        if (len == 0) continue;
        const char *p = memmem(c->text + c->n_sent, c->n_text_bytes - c->n_sent, o->stop[i], len);
        if (p && (!*found || (size_t)(p - c->text) < *at)) {
            *found = true;
            *at = (size_t)(p - c->text);
            *end = *at + len;
        }
        for (size_t k = len - 1; k > hold; k--)
            if (k <= c->n_text_bytes - c->n_sent && memcmp(c->text + c->n_text_bytes - k, o->stop[i], k) == 0) {
                hold = k;
                break;
            }
    }
    return hold;
}

/* Hand out text that no stop string can take back. Returns false where the receiver wants no more. */
static bool send_text(struct eng_choice *c, size_t upto, int32_t id, float logprob)
{
    const struct eng_request *r = c->r;
    const size_t n = upto - c->n_sent;
    const char *from = c->text + c->n_sent;
    c->n_sent = upto;
    if (r->watch.token) return r->watch.token(r->watch.self, c, from, n, id, logprob);
    return n == 0 || r->o.on_text == NULL || r->o.on_text(r->o.on_text_self, from, n);
}

status token_logits(struct engine *en, struct token_row *row, struct err *e)
{
    if (row->logits) return OK;
    TRY(team_tops_row(en->team, row->row, row->whole, e));
    row->logits = row->whole;
    return OK;
}

status accept_token(struct engine *en, struct eng_choice *c, struct token_row *row, struct err *e)
{
    struct eng_request *r = c->r;
    float logprob;
    int32_t id;
    if (row->top == NULL || !sampler_next_top(c->sampler, row->top, &id, &logprob)) {
        TRY(token_logits(en, row, e));
        id = sampler_next(c->sampler, row->logits, &logprob);
    }
    TRY(mem_grow(&c->ids, &c->ids_cap, c->n_ids + 1, sizeof *c->ids, e));
    TRY(mem_grow(&c->token_s, &c->token_cap, c->n_ids + 1, sizeof *c->token_s, e));
    c->token_s[c->n_ids] = clock_s() - r->started;
    c->ids[c->n_ids++] = id;
    c->result.logprob_sum += (double)logprob;
    const size_t room = detok_room(en->tok);
    TRY(mem_grow(&c->text, &c->text_cap, c->n_text_bytes + 2 * room + 1, 1, e));
    const bool stop_id = is_stop_id(en, r, id);
    const bool full = c->n_ids >= r->n_new_max;
    if (!stop_id) c->n_text_bytes += detok_push(&c->detok, id, c->text + c->n_text_bytes);
    if (stop_id || full) c->n_text_bytes += detok_flush(&c->detok, c->text + c->n_text_bytes);
    c->text[c->n_text_bytes] = 0;
    bool stop_text = false;
    size_t at = 0, end = 0;
    const size_t hold = held_back(c, &stop_text, &at, &end);
    if (stop_text) c->n_text_bytes = r->o.keep_stop_text ? end : at;
    const bool ends = stop_id || stop_text || full;
    const bool more = send_text(c, ends ? c->n_text_bytes : c->n_text_bytes - hold, id, logprob);
    c->text[c->n_text_bytes] = 0;
    if (ends) {
        choice_end(en, c, stop_id || stop_text ? ENG_STOP : ENG_LENGTH, NULL);
        if (r->watch.choice) r->watch.choice(r->watch.self, c);
    } else if (!more) {
        for (uint32_t i = 0; i < r->n_choices; i++) choice_end(en, &r->choice[i], ENG_CANCELLED, NULL);
    }
    return OK;
}
