/* api/audio_reply.c - transcripts on the wire: docs/http-api.md 1.7. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/audio_inside.h"
#include "base/mem.h"

static double milli(double s) { return round(s * 1000) / 1000; }

/* ---- tokens ------------------------------------------------------------------------------------------------- */

static json_t *token_json(const struct tokenizer *t, const struct transcribe_token *k)
{
    size_t n;
    const char *bytes = tokenizer_bytes(t, k->id, &n);
    struct api_text text = { 0 };
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++) json_array_append_new(list, json_integer((unsigned char)bytes[i]));
    if (bytes) api_text_add(&text, NULL, NULL, bytes, n);
    json_t *o = json_pack("{s:o, s:f, s:o}", "token", api_text_json(&text), "logprob", (double)k->logprob, "bytes", list);
    api_text_free(&text);
    return o;
}

static json_t *logprobs_json(const struct api_audio_job *j, const struct transcript *t, size_t from)
{
    json_t *list = json_array();
    const struct tokenizer *tok = j->audio ? engine_tokenizer(service_engine(api_service(api_audio_api(j->audio)))) : NULL;
    for (size_t i = from; i < t->n_tokens; i++) json_array_append_new(list, token_json(tok, &t->token[i]));
    return list;
}

/* ---- usage and extension ------------------------------------------------------------------------------------ */

static json_t *duration_usage(const struct transcript *t)
{
    return json_pack("{s:s, s:f}", "type", "duration", "seconds", milli(t->duration_s));
}

static json_t *token_usage(const struct transcript *t)
{
    return json_pack("{s:s, s:I, s:I, s:I, s:{s:I, s:I}}", "type", "tokens", "input_tokens", (json_int_t)t->n_prompt,
                     "output_tokens", (json_int_t)t->n_output, "total_tokens", (json_int_t)(t->n_prompt + t->n_output),
                     "input_token_details", "audio_tokens", (json_int_t)t->n_audio, "text_tokens",
                     (json_int_t)(t->n_prompt - t->n_audio));
}

/* Windows, what failed, how the times of each segment were found; where it was asked for or something failed. */
static void add_extension(const struct api_audio_job *j, const struct transcript *t, json_t *reply)
{
    struct api *a = api_audio_api(j->audio);
    if (a->o.strict_openai || (!j->p.omnidrop.return_pruning && t->n_failed == 0)) return;
    json_t *all = transcript_json(t, api_model_name(a), &j->p.omnidrop.policy), *timing = json_array(), *s;
    json_t *own = json_incref(json_object_get(all, "omnidrop"));
    size_t i;
    json_array_foreach(json_object_get(all, "segments"), i, s)
        if (!t->list.s[i].gap) json_array_append(timing, json_object_get(s, "timing"));
    json_object_set_new(own, "timing", timing);
    json_object_set_new(reply, "omnidrop", own);
    json_decref(all);
}

/* ---- whole replies ------------------------------------------------------------------------------------------ */

static json_t *ids_json(const struct tokenizer *t, const char *text)
{
    struct token_list tokens = { 0 };
    struct err e;
    json_t *list = json_array();
    if (tokenizer_encode_text(t, text, strlen(text), &tokens, &e) == OK)
        for (size_t i = 0; i < tokens.n; i++) json_array_append_new(list, json_integer(tokens.token[i].id));
    token_list_free(&tokens);
    return list;
}

static json_t *segment_json(const struct tokenizer *tok, const struct transcript *t, const struct subtitle *s, int id)
{
    const struct transcribe_window *w = &t->window[s->window];
    return json_pack("{s:i, s:I, s:f, s:f, s:s, s:o, s:f, s:f, s:f, s:f}", "id", id, "seek",
                     (json_int_t)llround(w->start_s * 100), "start", (double)s->start_ms / 1000, "end",
                     (double)s->end_ms / 1000, "text", s->text, "tokens", ids_json(tok, s->text), "temperature",
                     w->temperature, "avg_logprob", s->mean_logprob, "compression_ratio",
                     transcribe_compression(s->text, strlen(s->text)), "no_speech_prob", s->unvoiced);
}

static json_t *verbose(const struct api_audio_job *j, const struct transcript *t, const char *text)
{
    const struct tokenizer *tok = engine_tokenizer(service_engine(api_service(api_audio_api(j->audio))));
    json_t *segments = json_array();
    int id = 0;
    for (size_t i = 0; i < t->list.n; i++)
        if (!t->list.s[i].gap) json_array_append_new(segments, segment_json(tok, t, &t->list.s[i], id++));
    return json_pack("{s:s, s:s, s:f, s:s, s:o, s:o}", "task", j->p.translate ? "translate" : "transcribe", "language",
                     j->p.translate ? "english" : t->language, "duration", milli(t->duration_s), "text", text, "segments",
                     segments, "usage", duration_usage(t));
}

const char *audio_content_type(enum audio_format f)
{
    return f == AUDIO_TEXT  ? "text/plain; charset=utf-8"
           : f == AUDIO_SRT ? "application/x-subrip; charset=utf-8"
           : f == AUDIO_VTT ? "text/vtt; charset=utf-8"
                            : NULL;
}

static status written(const struct api_audio_job *j, const struct transcript *t, const char *text,
                      struct api_audio_reply *out, struct err *e)
{
    const enum subtitle_format format = j->p.format == AUDIO_VTT ? SUB_VTT : SUB_SRT;
    const struct subtitle_style style = { .limits = j->o.limits };
    FILE *f = open_memstream(&out->bytes, &out->n);
    if (f == NULL) return err_set(e, E_NOMEM, "out of memory");
    if (j->p.format == AUDIO_TEXT) {
        fprintf(f, "%s\n", text);
    } else {
        subtitles_write_head(f, format);
        for (size_t i = 0; i < t->list.n; i++) subtitles_write_one(f, format, &style, &t->list, i);
        subtitles_write_tail(f, format, &style, &t->list);
    }
    out->content_type = audio_content_type(j->p.format);
    if (fclose(f) == 0) return OK;
    free(out->bytes);
    out->bytes = NULL;
    return err_set(e, E_NOMEM, "out of memory");
}

status audio_reply(const struct api_audio_job *j, const struct transcript *t, struct api_audio_reply *out, struct err *e)
{
    char *text = NULL;
    status st = OK;
    *out = (struct api_audio_reply){ 0 };
    TRY(subtitles_text(&t->list, &text, e));
    if (j->p.format == AUDIO_VERBOSE_JSON) {
        out->json = verbose(j, t, text);
    } else if (j->p.format == AUDIO_JSON) {
        out->json = json_pack("{s:s, s:o}", "text", text, "usage", duration_usage(t));
        if (j->p.logprobs) json_object_set_new(out->json, "logprobs", logprobs_json(j, t, 0));
    } else {
        st = written(j, t, text, out, e);
    }
    if (out->json) add_extension(j, t, out->json);
    free(text);
    return st;
}

void api_audio_reply_free(struct api_audio_reply *r)
{
    json_decref(r->json);
    free(r->bytes);
    *r = (struct api_audio_reply){ 0 };
}

/* ---- events ------------------------------------------------------------------------------------------------- */

static void send_segment(struct api_audio_job *j, const struct transcript *t, const struct subtitle *s)
{
    char id[32];
    snprintf(id, sizeof id, "seg_%zu", j->n_segments_sent++);
    const size_t had = j->sent.n, n = strlen(s->text);
    const char *joint = had ? stitch_joint(j->sent.text, had, s->text, n) : "";
    api_text_add(&j->sent, NULL, NULL, joint, strlen(joint));
    api_text_add(&j->sent, NULL, NULL, s->text, n);
    json_t *delta = json_pack("{s:s, s:s%, s:s}", "type", "transcript.text.delta", "delta", j->sent.text ? j->sent.text + had : "",
                              j->sent.n - had, "segment_id", id);
    if (j->p.logprobs && j->n_tokens_sent < t->n_tokens) {     /* of all that became final together */
        json_t *logprobs = logprobs_json(j, t, j->n_tokens_sent);
        j->n_tokens_sent = t->n_tokens;
        if (j->all_logprobs == NULL) j->all_logprobs = json_array();
        json_array_extend(j->all_logprobs, logprobs);
        json_object_set_new(delta, "logprobs", logprobs);
    }
    j->sink.chunk(j->sink.self, delta);
    if (!j->p.segments) return;
    j->sink.chunk(j->sink.self, json_pack("{s:s, s:s, s:f, s:f, s:s, s:s}", "type", "transcript.text.segment", "id", id,
                                          "start", (double)s->start_ms / 1000, "end", (double)s->end_ms / 1000, "text",
                                          s->text, "speaker", ""));
}

void audio_send_segments(struct api_audio_job *j, const struct transcript *t, size_t from)
{
    for (size_t i = from; i < t->list.n; i++)
        if (!t->list.s[i].gap) send_segment(j, t, &t->list.s[i]);
}

void audio_send_done(struct api_audio_job *j, const struct transcript *t)
{
    json_t *done = json_pack("{s:s, s:s, s:o}", "type", "transcript.text.done", "text", j->sent.text ? j->sent.text : "",
                             "usage", token_usage(t));
    if (j->p.logprobs) json_object_set(done, "logprobs", j->all_logprobs ? j->all_logprobs : json_null());
    add_extension(j, t, done);
    j->sink.chunk(j->sink.self, done);
}
