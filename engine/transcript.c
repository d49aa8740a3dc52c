/* engine/transcript.c - see transcribe.h: what a run leaves behind, and as JSON. */
#include <math.h>
#include <stdlib.h>

#include "engine/transcribe.h"
#include "engine/version.h"

void transcript_free(struct transcript *t)
{
    subtitles_free(&t->list);
    free(t->window);
    free(t->token);
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
