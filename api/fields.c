/* api/fields.c - see fields.h. */
#include "api/fields.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/mem.h"

#define BOTH (API_CHAT | API_COMPLETION)
#define NUMBER(lo, hi) "{'type':['number','null'],'minimum':" #lo ",'maximum':" #hi "}"
#define INTEGER(lo, hi) "{'type':['integer','null'],'minimum':" #lo ",'maximum':" #hi "}"
#define AT_LEAST(lo) "{'type':['integer','null'],'minimum':" #lo "}"
#define BOOLEAN "{'type':['boolean','null']}"

const struct api_field api_fields[] = {
    { "messages", API_CHAT, API_HONOURED, "{'type':'array','minItems':1,'maxItems':2048,'items':"
                                          "{'$ref':'#/components/schemas/ChatMessage'}}" },
    { "prompt", API_COMPLETION, API_HONOURED,
      "{'oneOf':[{'type':'string'},{'type':'array','items':{'type':'string'},'minItems':1,'maxItems':64},"
      "{'type':'array','items':{'type':'integer','minimum':0},'minItems':1},{'type':'array','minItems':1,"
      "'maxItems':64,'items':{'type':'array','items':{'type':'integer','minimum':0},'minItems':1}}]}" },
    { "model", BOTH, API_HONOURED, "{'type':['string','null']}" },
    { "max_completion_tokens", API_CHAT, API_HONOURED, AT_LEAST(1) },
    { "max_tokens", BOTH, API_HONOURED, AT_LEAST(1) },
    { "temperature", BOTH, API_HONOURED, NUMBER(0, 2) },
    { "top_p", BOTH, API_HONOURED, "{'type':['number','null'],'exclusiveMinimum':0,'maximum':1}" },
    { "seed", BOTH, API_HONOURED, "{'type':['integer','null']}" },
    { "n", BOTH, API_HONOURED, AT_LEAST(1) },
    { "stop", BOTH, API_HONOURED, "{'oneOf':[{'type':'null'},{'type':'string','minLength':1},{'type':'array',"
                                  "'maxItems':16,'items':{'type':'string','minLength':1}}]}" },
    { "presence_penalty", BOTH, API_HONOURED, NUMBER(-2, 2) },
    { "frequency_penalty", BOTH, API_HONOURED, NUMBER(-2, 2) },
    { "logit_bias", BOTH, API_HONOURED, "{'type':['object','null'],'maxProperties':1024,'additionalProperties':"
                                        "{'type':'number','minimum':-100,'maximum':100}}" },
    { "logprobs", API_CHAT, API_HONOURED, BOOLEAN },
    { "logprobs", API_COMPLETION, API_HONOURED, INTEGER(0, 20) },
    { "top_logprobs", API_CHAT, API_HONOURED, INTEGER(0, 20) },
    { "echo", API_COMPLETION, API_HONOURED, BOOLEAN },
    { "stream", BOTH, API_HONOURED, BOOLEAN },
    { "stream_options", BOTH, API_HONOURED,
      "{'type':['object','null'],'properties':{'include_usage':" BOOLEAN "}}" },
    { "response_format", API_CHAT, API_HONOURED,
      "{'type':['object','null'],'properties':{'type':{'const':'text'}},'required':['type']}" },
    { "modalities", API_CHAT, API_HONOURED, "{'type':['array','null'],'items':{'const':'text'}}" },
    { "top_k", BOTH, API_HONOURED, AT_LEAST(-1) },
    { "min_p", BOTH, API_HONOURED, NUMBER(0, 1) },
    { "repetition_penalty", BOTH, API_HONOURED, NUMBER(0.01, 10) },
    { "min_tokens", BOTH, API_HONOURED, AT_LEAST(0) },
    { "stop_token_ids", BOTH, API_HONOURED,
      "{'type':['array','null'],'maxItems':64,'items':{'type':'integer','minimum':0}}" },
    { "ignore_eos", BOTH, API_HONOURED, BOOLEAN },
    { "include_stop_str_in_output", BOTH, API_HONOURED, BOOLEAN },
    { "skip_special_tokens", BOTH, API_HONOURED, BOOLEAN },
    { "add_generation_prompt", API_CHAT, API_HONOURED, BOOLEAN },
    { "continue_final_message", API_CHAT, API_HONOURED, BOOLEAN },
    { "return_token_ids", BOTH, API_HONOURED, BOOLEAN },
    { "priority", BOTH, API_HONOURED, "{'type':['integer','null']}" },
    { "mm_processor_kwargs", API_CHAT, API_HONOURED,
      "{'type':['object','null'],'additionalProperties':false,'properties':{'use_audio_in_video':" BOOLEAN
      ",'fps':" NUMBER(0.001, 1000) ",'min_pixels':" AT_LEAST(1) ",'max_pixels':" AT_LEAST(1)
      ",'max_frames':" AT_LEAST(1) "}}" },
    { "media_io_kwargs", API_CHAT, API_HONOURED,
      "{'type':['object','null'],'additionalProperties':false,'properties':{'video':{'type':['object','null'],"
      "'additionalProperties':false,'properties':{'fps':" NUMBER(0.001, 1000) ",'num_frames':" AT_LEAST(1) "}}}}" },
    { "omnidrop", BOTH, API_HONOURED, "{'$ref':'#/components/schemas/OmnidropOptions'}" },

    /* Refused only where they ask for something: see check_tools, check_audio. */
    { "tools", API_CHAT, API_IGNORED, NULL }, { "functions", API_CHAT, API_IGNORED, NULL },
    { "tool_choice", API_CHAT, API_IGNORED, NULL }, { "function_call", API_CHAT, API_IGNORED, NULL },
    { "audio", API_CHAT, API_IGNORED, NULL }, { "best_of", API_COMPLETION, API_IGNORED, NULL },

    { "user", BOTH, API_IGNORED, NULL }, { "metadata", BOTH, API_IGNORED, NULL }, { "store", BOTH, API_IGNORED, NULL },
    { "service_tier", BOTH, API_IGNORED, NULL }, { "safety_identifier", BOTH, API_IGNORED, NULL },
    { "prompt_cache_key", BOTH, API_IGNORED, NULL }, { "prompt_cache_retention", BOTH, API_IGNORED, NULL },
    { "prompt_cache_options", BOTH, API_IGNORED, NULL }, { "verbosity", BOTH, API_IGNORED, NULL },
    { "reasoning_effort", BOTH, API_IGNORED, NULL }, { "parallel_tool_calls", BOTH, API_IGNORED, NULL },
    { "prediction", BOTH, API_IGNORED, NULL }, { "request_id", BOTH, API_IGNORED, NULL },
    { "chat_template_kwargs", BOTH, API_IGNORED, NULL }, { "cache_prompt", BOTH, API_IGNORED, NULL },
    { "cache_salt", BOTH, API_IGNORED, NULL }, { "echo", API_CHAT, API_IGNORED, NULL },

    { "moderation", BOTH, API_REFUSED, NULL }, { "web_search_options", BOTH, API_REFUSED, NULL },
    { "chat_template", BOTH, API_REFUSED, NULL }, { "structured_outputs", BOTH, API_REFUSED, NULL },
    { "guided_*", BOTH, API_REFUSED, NULL }, { "grammar", BOTH, API_REFUSED, NULL },
    { "use_beam_search", BOTH, API_REFUSED, NULL }, { "best_of", API_CHAT, API_REFUSED, NULL },
    { "truncate_prompt_tokens", BOTH, API_REFUSED, NULL }, { "prompt_logprobs", BOTH, API_REFUSED, NULL },
    { "lora*", BOTH, API_REFUSED, NULL }, { "suffix", API_COMPLETION, API_REFUSED, NULL },
    { "response_format", API_COMPLETION, API_REFUSED, NULL }, { "messages", API_COMPLETION, API_REFUSED, NULL },
    { "mm_processor_kwargs", API_COMPLETION, API_REFUSED, NULL },
    { "media_io_kwargs", API_COMPLETION, API_REFUSED, NULL },
    { NULL, 0, API_IGNORED, NULL },
};

/* ---- bodies ----------------------------------------------------------------------------------------------- */

status api_body_open(const char *body, size_t n, struct doc *d, struct doc_at *root, struct err *e)
{
    static const struct doc_limits limits = { .bytes_max = (size_t)1 << 30, .depth_max = 64, .values_max = 100000,
                                              .allow_nul = true, .code = E_ARG };
    TRY(doc_parse(body, n, "", &limits, d, e));
    doc_root(d, root);
    if (json_is_object(root->v)) return OK;
    err_set(e, E_ARG, "the body is %s, an object is needed", doc_kind(root->v));
    doc_close(d);
    return err_tag(e, "invalid_type", NULL);
}

static struct doc_at place(const struct doc_at *o, const char *key, json_t *v)
{
    return (struct doc_at){ .v = v, .up = o, .key = key, .doc = o->doc };
}

/* The member key of o for an error about it. */
static struct doc_at member(const struct doc_at *o, const char *key)
{
    return place(o, key, json_object_get(o->v, key));
}

static status refused(const struct doc_at *o, const char *key, struct err *e)
{
    const struct doc_at at = member(o, key);
    return doc_err_as(&at, "unsupported_parameter", e, "is not supported by this server");
}

static bool matches(const char *pattern, const char *name)
{
    const size_t n = strlen(pattern);
    return pattern[n - 1] == '*' ? strncmp(pattern, name, n - 1) == 0 : strcmp(pattern, name) == 0;
}

static const struct api_field *find_field(const char *name, unsigned where)
{
    for (const struct api_field *f = api_fields; f->name; f++)
        if (f->where & where && matches(f->name, name)) return f;
    return NULL;
}

status api_fields_check(struct api *a, const struct doc_at *root, unsigned where, struct err *e)
{
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)root->v, key, v)
    {
        if (json_is_null(v)) continue;
        const struct api_field *f = find_field(key, where);
        if (f != NULL && f->rule == API_REFUSED) return refused(root, key, e);
        if (f != NULL || a->o.unknown_fields == API_UNKNOWN_IGNORE) continue;
        const struct doc_at at = place(root, key, v);
        if (a->o.unknown_fields == API_UNKNOWN_REJECT)
            return doc_err_as(&at, "unsupported_parameter", e, "is an unknown field");
        api_log_unknown(a, key);
    }
    return OK;
}

status api_fields_model(const struct api *a, const struct doc_at *root, struct err *e)
{
    const char *model = NULL;
    TRY(doc_opt_string(root, "model", &model, e));
    return api_check_model(a, model, e);
}

/* ---- sampling --------------------------------------------------------------------------------------------- */

static status opt_float(const struct doc_at *root, const char *key, double lo, double hi, float *out, struct err *e)
{
    double v = (double)*out;
    TRY(doc_opt_double(root, key, lo, hi, &v, e));
    *out = (float)v;
    return OK;
}

static status read_top_p(const struct doc_at *root, float *out, struct err *e)
{
    TRY(opt_float(root, "top_p", 0, 1, out, e));
    if (*out >= 1e-6f) return OK;
    const struct doc_at at = member(root, "top_p");
    return doc_err_as(&at, "invalid_value", e, "is %g, must be above 0 and at most 1; for greedy answers set temperature to 0",
                      (double)*out);
}

/* Absent: one that nobody can foresee. */
static status read_seed(const struct doc_at *root, uint64_t *out, struct err *e)
{
    int64_t seed = 0;
    if (!doc_has(root, "seed")) {
        if (getrandom(out, sizeof *out, 0) != (ssize_t)sizeof *out)
            return err_set(e, E_INTERNAL, "the system gives no random numbers");
        return OK;
    }
    TRY(doc_int(root, "seed", INT64_MIN, INT64_MAX, &seed, e));
    *out = (uint64_t)seed;
    return OK;
}

static status read_sampling(struct api_job *j, const struct doc_at *root, struct err *e)
{
    struct sample_params *s = &j->o.sample;
    int64_t top_k = s->top_k, min_tokens = 0;
    TRY(opt_float(root, "temperature", 0, 2, &s->temperature, e));
    TRY(read_top_p(root, &s->top_p, e));
    TRY(opt_float(root, "presence_penalty", -2, 2, &s->presence_penalty, e));
    TRY(opt_float(root, "frequency_penalty", -2, 2, &s->frequency_penalty, e));
    TRY(doc_opt_int(root, "top_k", -1, INT32_MAX, &top_k, e));
    s->top_k = top_k > 0 ? (uint32_t)top_k : 0;
    TRY(opt_float(root, "min_p", 0, 1, &s->min_p, e));
    TRY(opt_float(root, "repetition_penalty", 0.01, 10, &s->repetition_penalty, e));
    TRY(doc_opt_int(root, "min_tokens", 0, UINT32_MAX, &min_tokens, e));
    s->min_tokens = (uint32_t)min_tokens;
    if (j->o.max_tokens > 0 && s->min_tokens > j->o.max_tokens) {
        const struct doc_at at = member(root, "min_tokens");
        return doc_err_as(&at, "invalid_value", e, "is %u, more than the %u tokens that the answer may have", s->min_tokens,
                          j->o.max_tokens);
    }
    return read_seed(root, &s->seed, e);
}

static status read_bias(struct api_job *j, const struct doc_at *root, struct err *e)
{
    struct doc_at o;
    if (!doc_has(root, "logit_bias")) return OK;
    TRY(doc_object(root, "logit_bias", &o, e));
    const size_t n = json_object_size(o.v);
    if (n > API_BIAS_MAX)
        return doc_err_as(&o, "invalid_value", e, "has %zu entries, at most %d are allowed", n, API_BIAS_MAX);
    TRY(mem_alloc(&j->bias, n, sizeof *j->bias, e));
    uint32_t k = 0;
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)o.v, key, v)
    {
        const struct doc_at at = place(&o, key, v);
        double bias = 0;
        char *end;
        const long id = key[0] >= '0' && key[0] <= '9' && strlen(key) < 10 ? strtol(key, &end, 10) : -1;
        if (id < 0 || *end != 0) return doc_err_as(&at, "invalid_value", e, "is no token id");
        if (id >= (long)j->api->vocab)
            return doc_err_as(&at, "invalid_value", e, "is beyond the vocabulary of %u tokens", j->api->vocab);
        TRY(doc_as_double(&at, -100, 100, &bias, e));
        for (uint32_t i = 0; i < k; i++)
            if (j->bias[i].id == id) return doc_err_as(&at, "invalid_value", e, "names a token that another key names too");
        j->bias[k++] = (struct sample_bias){ (int32_t)id, (float)bias };
    }
    j->o.sample.logit_bias = j->bias;
    j->o.sample.n_logit_bias = k;
    return OK;
}

/* ---- where an answer ends --------------------------------------------------------------------------------- */

static status add_stop(struct api_job *j, const struct doc_at *at, struct err *e)
{
    const char *s = NULL;
    TRY(doc_as_string(at, &s, NULL, e));
    const size_t n = strlen(s);
    if (n == 0 || n > API_STOP_BYTES_MAX)
        return doc_err_as(at, "invalid_value", e, "has %zu bytes, a stop string has 1 to %d", n, API_STOP_BYTES_MAX);
    j->stop[j->o.n_stop++] = mem_must_strdup(s);
    return OK;
}

static status read_stop(struct api_job *j, const struct doc_at *root, struct err *e)
{
    struct doc_at at, el;
    j->o.stop = (const char *const *)j->stop;
    if (!doc_has(root, "stop")) return OK;
    TRY(doc_any(root, "stop", &at, e));
    if (json_is_string(at.v)) return add_stop(j, &at, e);
    if (!json_is_array(at.v))
        return doc_err_as(&at, "invalid_type", e, "is %s, a string or an array of strings is needed", doc_kind(at.v));
    if (doc_count(&at) > API_STOPS_MAX)
        return doc_err_as(&at, "invalid_value", e, "has %zu strings, at most %d are allowed", doc_count(&at), API_STOPS_MAX);
    for (size_t i = 0; i < doc_count(&at); i++) {
        doc_element(&at, i, &el);
        TRY(add_stop(j, &el, e));
    }
    return OK;
}

static status read_stop_ids(struct api_job *j, const struct doc_at *root, struct err *e)
{
    struct doc_at at, el;
    if (!doc_has(root, "stop_token_ids")) return OK;
    TRY(doc_array(root, "stop_token_ids", &at, e));
    if (doc_count(&at) > API_STOP_IDS_MAX)
        return doc_err_as(&at, "invalid_value", e, "has %zu ids, at most %d are allowed", doc_count(&at), API_STOP_IDS_MAX);
    for (size_t i = 0; i < doc_count(&at); i++) {
        int64_t id = 0;
        doc_element(&at, i, &el);
        TRY(doc_as_int(&el, 0, (int64_t)j->api->vocab - 1, &id, e));
        j->stop_id[j->o.n_stop_id++] = (int32_t)id;
    }
    j->o.stop_id = j->stop_id;
    return OK;
}

static status read_stream(struct api_job *j, const struct doc_at *root, struct err *e)
{
    struct doc_at o;
    bool ignored = false;
    TRY(doc_opt_bool(root, "stream", &j->stream, e));
    if (!doc_has(root, "stream_options")) return OK;
    TRY(doc_object(root, "stream_options", &o, e));
    if (!j->stream) return doc_err_as(&o, "invalid_value", e, "is given without \"stream\": true");
    TRY(doc_opt_bool(&o, "include_obfuscation", &ignored, e));
    return doc_opt_bool(&o, "include_usage", &j->include_usage, e);
}

status api_fields_common(struct api_job *j, const struct doc_at *root, struct err *e)
{
    uint32_t n = 1;
    int64_t priority = 0;
    bool skip_special = true;
    TRY(doc_opt_u32(root, "n", 1, j->api->o.max_n, &n, e));
    j->n = n;
    TRY(read_sampling(j, root, e));
    TRY(read_bias(j, root, e));
    TRY(read_stop(j, root, e));
    TRY(read_stop_ids(j, root, e));
    TRY(read_stream(j, root, e));
    TRY(doc_opt_bool(root, "ignore_eos", &j->o.ignore_eos, e));
    TRY(doc_opt_bool(root, "include_stop_str_in_output", &j->o.keep_stop_text, e));
    TRY(doc_opt_bool(root, "skip_special_tokens", &skip_special, e));
    j->o.show_special_tokens = !skip_special;
    TRY(doc_opt_bool(root, "return_token_ids", &j->return_token_ids, e));
    if (j->api->o.strict_openai) j->return_token_ids = false;
    TRY(doc_opt_int(root, "priority", INT32_MIN, INT32_MAX, &priority, e));
    if (priority != 0 && !j->api->o.priorities) return refused(root, "priority", e);
    if (j->priority == 0) j->priority = (int)priority;
    return api_fields_omnidrop(j->api, root, &j->omnidrop, e);
}

/* ---- the extension object --------------------------------------------------------------------------------- */

static const struct prune_param *find_param(const struct policy *p, const char *key)
{
    for (uint32_t i = 0; i < p->n_param; i++)
        if (strcmp(p->param[i].name, key) == 0 || (p->param[i].alias && strcmp(p->param[i].alias, key) == 0))
            return &p->param[i];
    return NULL;
}

/* Keys of the object that are no parameters of a policy. */
static bool is_own_key(const char *key)
{
    return strcmp(key, "policy") == 0 || strcmp(key, "return_pruning") == 0 || strcmp(key, "detail") == 0;
}

static status set_list(struct policy_params *p, const struct doc_at *at, struct err *e)
{
    double v[PRUNE_LIST_MAX];
    struct doc_at one;
    char path[128];
    const size_t n = json_array_size(at->v);
    if (n > PRUNE_LIST_MAX) return doc_err_as(at, "invalid_value", e, "has %zu entries, at most %d", n, PRUNE_LIST_MAX);
    for (size_t i = 0; i < n; i++) {
        doc_element(at, i, &one);
        TRY(doc_as_double(&one, -INFINITY, INFINITY, &v[i], e));
    }
    if (prune_params_set_list(p, at->key, v, n, e) == OK) return OK;
    return err_tag(e, "invalid_value", doc_path(at, path, sizeof path));
}

static status set_param(struct policy_params *p, const struct doc_at *at, struct err *e)
{
    char path[128];
    const struct prune_param *d = find_param(p->policy, at->key);
    double number = 0;
    bool flag = false;
    const char *word = NULL;
    status st;
    if (d && d->kind == PARAM_LIST && json_is_array(at->v)) return set_list(p, at, e);
    if (d == NULL) {
        st = prune_params_set(p, at->key, 0, e);     /* says what there is */
    } else if (d->kind == PARAM_BOOL) {
        TRY(doc_as_bool(at, &flag, e));
        st = prune_params_set(p, at->key, flag, e);
    } else if (d->kind == PARAM_WORD || (d->kind == PARAM_LIST && json_is_string(at->v))) {
        TRY(doc_as_string(at, &word, NULL, e));
        st = prune_params_set_text(p, at->key, word, e);
    } else {
        TRY(doc_as_double(at, -INFINITY, INFINITY, &number, e));
        st = prune_params_set(p, at->key, number, e);
    }
    return st == OK ? OK : err_tag(e, "invalid_value", doc_path(at, path, sizeof path));
}

/* The request's own keys, then what the server was started with, then what the model says; each holds where those before it
 * give nothing, and no key that excludes it. */
static status read_policy(const struct api *a, const struct doc_at *o, struct policy_params *p, struct err *e)
{
    struct doc_at at;
    const char *name = prune_params_name(&a->policy);
    TRY(doc_opt_string(o, "policy", &name, e));
    if (prune_params_init(p, name, a->n_layers, e) != OK) {
        char path[128];
        at = member(o, "policy");
        return err_tag(e, "invalid_value", doc_path(&at, path, sizeof path));
    }
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)o->v, key, v)
    {
        if (is_own_key(key)) continue;
        at = place(o, key, v);
        bool known = false;
        for (const struct policy *const *q = prune_list(); *q; q++) known = known || find_param(*q, key) != NULL;
        if (!known) return doc_err_as(&at, "invalid_value", e, "is an unknown key");
        if (!json_is_null(v)) TRY(set_param(p, &at, e));
    }
    prune_params_under(p, &a->policy);
    model_defaults_policy(a->defaults, p);
    return prune_params_finish(p, e) == OK ? OK : err_tag(e, "invalid_value", o->key);
}

status api_fields_omnidrop(const struct api *a, const struct doc_at *root, struct api_omnidrop *out, struct err *e)
{
    struct doc_at o, at;
    const char *detail = "counts";
    *out = (struct api_omnidrop){ .policy = a->policy };
    if (!doc_has(root, "omnidrop")) return OK;
    TRY(doc_object(root, "omnidrop", &o, e));
    TRY(read_policy(a, &o, &out->policy, e));
    TRY(doc_opt_bool(&o, "return_pruning", &out->return_pruning, e));
    TRY(doc_opt_string(&o, "detail", &detail, e));
    out->reasons = strcmp(detail, "reasons") == 0;
    out->tokens = out->reasons || strcmp(detail, "tokens") == 0;
    if (!out->tokens && strcmp(detail, "counts") != 0) {
        at = member(&o, "detail");
        return doc_err_as(&at, "invalid_value", e, "is \"%.40s\", must be \"counts\", \"tokens\" or \"reasons\"", detail);
    }
    if (a->o.strict_openai) out->return_pruning = false;
    return OK;
}

status api_omnidrop_field(json_t *object, const char *key, const char *text, struct err *e)
{
    json_t *v = NULL;
    char *end;
    enum prune_param_kind kind = PARAM_WORD;
    bool known = is_own_key(key);
    if (strcmp(key, "return_pruning") == 0) kind = PARAM_BOOL;
    for (const struct policy *const *q = prune_list(); *q && !known; q++) {
        const struct prune_param *d = find_param(*q, key);
        known = d != NULL;
        if (known) kind = d->kind;
    }
    if (!known) {
        err_set(e, E_ARG, "omnidrop[%.60s]: is an unknown key", key);
        err_tag(e, "invalid_value", NULL);
        snprintf(e->param, sizeof e->param, "omnidrop.%.60s", key);
        return E_ARG;
    }
    const double number = strtod(text, &end);
    if (kind == PARAM_BOOL && (strcasecmp(text, "true") == 0 || strcmp(text, "1") == 0)) v = json_true();
    else if (kind == PARAM_BOOL && (strcasecmp(text, "false") == 0 || strcmp(text, "0") == 0)) v = json_false();
    else if ((kind == PARAM_NUMBER || kind == PARAM_INTEGER) && end != text && *end == 0 && isfinite(number))
        v = json_real(number);
    else v = json_string(text);                   /* api_fields_omnidrop says what is wrong with it */
    if (v == NULL) {
        err_set(e, E_ARG, "omnidrop[%.60s]: is no valid text", key);
        return err_tag(e, "invalid_value", "omnidrop");
    }
    json_object_set_new(object, key, v);
    return OK;
}

/* ---- media and template ----------------------------------------------------------------------------------- */

/* The first key of o that is not in the list is refused. */
static status only(const struct doc_at *o, const char *const *allowed, struct err *e)
{
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)o->v, key, v)
    {
        size_t i = 0;
        while (allowed[i] && strcmp(allowed[i], key) != 0) i++;
        if (allowed[i] == NULL && !json_is_null(v)) return refused(o, key, e);
    }
    return OK;
}

struct media_defaults { double fps; uint32_t max_frames; int64_t min_pixels, max_pixels; int use_audio; };

static status read_processor(const struct doc_at *root, struct media_defaults *m, struct err *e)
{
    static const char *const keys[] = { "use_audio_in_video", "fps", "min_pixels", "max_pixels", "max_frames", NULL };
    struct doc_at o;
    bool sound = false;
    if (!doc_has(root, "mm_processor_kwargs")) return OK;
    TRY(doc_object(root, "mm_processor_kwargs", &o, e));
    TRY(only(&o, keys, e));
    if (doc_has(&o, "use_audio_in_video")) {
        TRY(doc_bool(&o, "use_audio_in_video", &sound, e));
        m->use_audio = sound;
    }
    TRY(doc_opt_double(&o, "fps", 1e-3, 1000, &m->fps, e));
    TRY(doc_opt_u32(&o, "max_frames", 1, 1u << 24, &m->max_frames, e));
    TRY(doc_opt_int(&o, "min_pixels", 1, 1ll << 40, &m->min_pixels, e));
    TRY(doc_opt_int(&o, "max_pixels", 1, 1ll << 40, &m->max_pixels, e));
    if (m->min_pixels > 0 && m->max_pixels > 0 && m->min_pixels > m->max_pixels)
        return doc_err_as(&o, "invalid_value", e, "min_pixels %lld is more than max_pixels %lld", (long long)m->min_pixels,
                          (long long)m->max_pixels);
    return OK;
}

static status read_io(const struct doc_at *root, struct media_defaults *m, struct err *e)
{
    static const char *const kinds[] = { "video", NULL }, *const keys[] = { "fps", "num_frames", NULL };
    struct doc_at o, v;
    if (!doc_has(root, "media_io_kwargs")) return OK;
    TRY(doc_object(root, "media_io_kwargs", &o, e));
    TRY(only(&o, kinds, e));
    if (!doc_has(&o, "video")) return OK;
    TRY(doc_object(&o, "video", &v, e));
    TRY(only(&v, keys, e));
    TRY(doc_opt_double(&v, "fps", 1e-3, 1000, &m->fps, e));
    return doc_opt_u32(&v, "num_frames", 1, 1u << 24, &m->max_frames, e);
}

status api_fields_media(const struct doc_at *root, struct chat *chat, struct err *e)
{
    struct media_defaults m = { .use_audio = -1 };
    TRY(read_processor(root, &m, e));
    TRY(read_io(root, &m, e));
    for (size_t i = 0; i < chat->n_messages; i++)
        for (size_t k = 0; k < chat->message[i].n_parts; k++) {
            struct chat_part *p = &chat->message[i].part[k];
            struct chat_media_options *o = &p->options;
            if (p->kind == PART_TEXT || p->kind == PART_AUDIO) continue;
            const bool own_pixels = o->min_pixels > 0 || o->max_pixels > 0;
            if (!own_pixels) {
                o->min_pixels = (uint64_t)m.min_pixels;
                o->max_pixels = (uint64_t)m.max_pixels;
            }
            if (p->kind == PART_IMAGE) continue;
            if (o->fps <= 0) o->fps = m.fps;
            if (o->max_frames == 0) o->max_frames = m.max_frames;
            if (o->use_audio < 0) o->use_audio = m.use_audio;
        }
    return OK;
}

status api_fields_render(const struct doc_at *root, const struct chat *chat, bool closed_last, struct chat_render_options *out,
                         struct err *e)
{
    bool generation = true, go_on = false;
    struct doc_at at;
    TRY(doc_opt_bool(root, "add_generation_prompt", &generation, e));
    TRY(doc_opt_bool(root, "continue_final_message", &go_on, e));
    const bool last_is_answer = chat->message[chat->n_messages - 1].role == CHAT_ASSISTANT;
    if (go_on && generation && doc_has(root, "add_generation_prompt")) {
        at = member(root, "add_generation_prompt");
        return doc_err_as(&at, "invalid_value", e, "is true together with continue_final_message: give one of them");
    }
    if (go_on && !last_is_answer) {
        at = member(root, "continue_final_message");
        return doc_err_as(&at, "invalid_value", e, "is true, but the last message is not the assistant's");
    }
    if (last_is_answer && !go_on && (generation || !closed_last)) {
        err_set(e, E_ARG, "messages[%zu].role: the last message is the assistant's: set continue_final_message to have it "
                          "continued, or let a user's message follow", chat->n_messages - 1);
        err_tag(e, "invalid_value", NULL);
        snprintf(e->param, sizeof e->param, "messages[%zu].role", chat->n_messages - 1);
        return E_ARG;
    }
    *out = (struct chat_render_options){ .no_generation_prompt = go_on || !generation, .continue_final = go_on };
    return OK;
}

status api_check_id(const struct api *a, const struct doc_at *at, int64_t id, struct err *e)
{
    if (id < 0 || id >= (int64_t)a->vocab || !tokenizer_has(a->tok, (int32_t)id))
        return doc_err_as(at, "invalid_value", e, "%lld is no token of this model, whose ids are below %u", (long long)id,
                          a->vocab);
    for (size_t i = 0; i < 3; i++)
        if (id == a->media_id[i])
            return doc_err_as(at, "invalid_value", e, "%lld stands for media, which a bare prompt cannot have: use "
                                                      "/v1/chat/completions", (long long)id);
    return OK;
}
