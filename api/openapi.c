/* api/openapi.c - the OpenAPI 3.1 description of everything that is served: tables of routes and of schemas, the request
 * fields of api/fields.c and the parameters of the policies, put together. A test validates replies against it. */
#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/fields.h"
#include "base/mem.h"
#include "engine/version.h"

#define REF(name) "{'$ref':'#/components/schemas/" name "'}"
#define STRING "{'type':'string'}"
#define STRING_OR_NULL "{'type':['string','null']}"
#define INT "{'type':'integer'}"
#define INT_OR_NULL "{'type':['integer','null']}"
#define COUNT "{'type':'integer','minimum':0}"
#define COUNTS "{'type':'array','items':" COUNT "}"
#define REAL "{'type':'number'}"
#define BOOL "{'type':'boolean'}"
#define OF(type) "{'type':'array','items':" type "}"
#define OBJECT(required, properties) "{'type':'object','required':[" required "],'properties':{" properties "}}"
#define FINISH "{'enum':['stop','length']}"
#define FINISH_OR_NULL "{'enum':['stop','length',null]}"
#define ANY_OF(a, b) "{'anyOf':[" a "," b "]}"
#define NIL "{'type':'null'}"

json_t *api_schema(const char *text)
{
    char *json = mem_must_strdup(text);
    json_error_t je;
    for (char *p = json; *p; p++)
        if (*p == '\'') *p = '"';
    json_t *o = json_loads(json, JSON_REJECT_DUPLICATES, &je);
    free(json);
    assert(o != NULL);                             /* our own text; the tests read all of it */
    return o;
}

/* ---- schemas ---------------------------------------------------------------------------------------------- */

static const struct { const char *name, *text; } SCHEMAS[] = {
    { "Error", OBJECT("'error'", "'error':" OBJECT("'message','type','param','code'", "'message':" STRING ",'type':" STRING
                                                   ",'param':" STRING_OR_NULL ",'code':" STRING_OR_NULL)) },
    { "Model", OBJECT("'id','object','created','owned_by'",
                      "'id':" STRING ",'object':{'const':'model'},'created':" INT ",'owned_by':" STRING
                      ",'max_model_len':" COUNT ",'architecture':" OBJECT("'input_modalities','output_modalities'",
                      "'input_modalities':" OF(STRING) ",'output_modalities':" OF(STRING))) },
    { "ModelList", OBJECT("'object','data'", "'object':{'const':'list'},'data':" OF(REF("Model"))) },
    { "ContentPart",
      "{'oneOf':[{'type':'string'},{'type':'object','properties':{'type':{'enum':['text','refusal','image_url','image',"
      "'input_audio','audio_url','audio','video_url','video','input_video','file']},'text':" STRING ",'image_url':{},"
      "'input_audio':{},'audio_url':{},'video_url':{},'input_video':{},'video':{},'audio':{},'image':{},'file':{},"
      "'start':{},'end':{},'fps':" REAL ",'max_frames':" COUNT ",'min_pixels':" COUNT ",'max_pixels':" COUNT
      ",'use_audio':" BOOL "}}]}" },
    { "ChatMessage",
      OBJECT("'role'", "'role':{'enum':['system','developer','user','assistant']},'content':{'oneOf':[{'type':'null'},"
                       "{'type':'string'},{'type':'array','minItems':1,'maxItems':1024,'items':" REF("ContentPart") "}]}") },
    { "Usage", OBJECT("'prompt_tokens','completion_tokens','total_tokens','prompt_tokens_details'",
                      "'prompt_tokens':" COUNT ",'completion_tokens':" COUNT ",'total_tokens':" COUNT
                      ",'prompt_tokens_details':" OBJECT("'cached_tokens','audio_tokens'",
                      "'cached_tokens':" COUNT ",'audio_tokens':" COUNT ",'text_tokens':" COUNT ",'image_tokens':" COUNT
                      ",'video_tokens':" COUNT)) },
    { "ByModality", OBJECT("'audio','video','image'", "'audio':" COUNT ",'video':" COUNT ",'image':" COUNT) },
    { "Pruning", OBJECT("'policy','resolved','av_tokens_in','layers','kept_per_layer','kept_last','mean_retention',"
                        "'cached_layers','kv_bytes','kv_bytes_unpruned','encode_ms','prefill_ms'",
                        "'policy':" STRING ",'resolved':{'type':'object'},'av_tokens_in':" REF("ByModality") ",'layers':" COUNT
                        ",'kept_per_layer':" COUNTS ",'kept_last':" REF("ByModality") ",'mean_retention':{'type':['number','null']}"
                        ",'cached_layers':" COUNT ",'kv_bytes':" COUNT ",'kv_bytes_unpruned':" COUNT ",'encode_ms':" REAL
                        ",'prefill_ms':" REAL ",'tokens':" OBJECT("'chunks','seconds_per_chunk','audio','video','audio_in','video_in'",
                        "'chunks':" COUNT ",'seconds_per_chunk':" REAL ",'audio':" OF(COUNTS) ",'video':" OF(COUNTS)
                        ",'audio_in':" COUNTS ",'video_in':" COUNTS)
                        ",'dropped':" OBJECT("'token','kind','chunk','layer','why','score','rank'",
                        "'token':" COUNTS ",'kind':" OF("{'enum':['audio','video','image']}") ",'chunk':" OF(INT)
                        ",'layer':" OF(INT) ",'why':" OF("{'enum':['score','likeness','draw','place','merge','layer']}")
                        ",'score':" OF("{'type':['number','null']}") ",'rank':" COUNTS)) },
    { "TokenLogprob", OBJECT("'token','logprob','bytes'", "'token':" STRING ",'logprob':" REAL ",'bytes':{'type':'array',"
                             "'items':{'type':'integer','minimum':0,'maximum':255}},'top_logprobs':" OF(REF("TokenLogprob"))) },
    { "ChatLogprobs", OBJECT("'content','refusal'", "'content':" OF(REF("TokenLogprob")) ",'refusal':" NIL) },
    { "TextLogprobs", OBJECT("'tokens','token_logprobs','top_logprobs','text_offset'",
                             "'tokens':" OF(STRING) ",'token_logprobs':" OF(REAL) ",'top_logprobs':{'type':'array','items':"
                             "{'type':['object','null'],'additionalProperties':" REAL "}},'text_offset':" COUNTS) },
    { "ChatReply",
      OBJECT("'id','object','created','model','choices','usage','system_fingerprint'",
             "'id':" STRING ",'object':{'const':'chat.completion'},'created':" INT ",'model':" STRING ",'choices':"
             OF(OBJECT("'index','message','logprobs','finish_reason'",
                "'index':" COUNT ",'message':" OBJECT("'role','content','refusal'",
                "'role':{'const':'assistant'},'content':" STRING ",'refusal':" NIL) ",'logprobs':" ANY_OF(NIL, REF("ChatLogprobs"))
                ",'finish_reason':" FINISH ",'token_ids':" COUNTS))
             ",'usage':" REF("Usage") ",'system_fingerprint':" STRING ",'prompt_token_ids':" COUNTS ",'omnidrop':" REF("Pruning")) },
    { "ChatChunk",
      OBJECT("'id','object','created','model','choices','system_fingerprint'",
             "'id':" STRING ",'object':{'const':'chat.completion.chunk'},'created':" INT ",'model':" STRING ",'choices':"
             OF(OBJECT("'index','delta','logprobs','finish_reason'",
                "'index':" COUNT ",'delta':{'type':'object','additionalProperties':false,'properties':{'role':"
                "{'const':'assistant'},'content':" STRING "}},'logprobs':" ANY_OF(NIL, REF("ChatLogprobs"))
                ",'finish_reason':" FINISH_OR_NULL ",'token_ids':" COUNTS))
             ",'usage':" ANY_OF(NIL, REF("Usage")) ",'system_fingerprint':" STRING ",'prompt_token_ids':" COUNTS
             ",'omnidrop':" REF("Pruning")) },
    { "CompletionReply",
      OBJECT("'id','object','created','model','choices','system_fingerprint'",
             "'id':" STRING ",'object':{'const':'text_completion'},'created':" INT ",'model':" STRING ",'choices':"
             OF(OBJECT("'index','text','logprobs','finish_reason'",
                "'index':" COUNT ",'text':" STRING ",'logprobs':" ANY_OF(NIL, REF("TextLogprobs")) ",'finish_reason':"
                FINISH_OR_NULL ",'token_ids':" COUNTS ",'prompt_token_ids':" COUNTS))
             ",'usage':" ANY_OF(NIL, REF("Usage")) ",'system_fingerprint':" STRING ",'omnidrop':" REF("Pruning")) },
    { "TokenizeRequest", OBJECT("", "'model':" STRING_OR_NULL ",'prompt':" STRING ",'content':" STRING ",'messages':"
                                OF(REF("ChatMessage")) ",'add_special_tokens':" BOOL ",'add_generation_prompt':" BOOL
                                ",'continue_final_message':" BOOL ",'return_token_strs':" BOOL) },
    { "TokenizeReply", OBJECT("'count','max_model_len','tokens','token_strs'",
                              "'count':" COUNT ",'max_model_len':" COUNT ",'tokens':" COUNTS
                              ",'token_strs':{'type':['array','null'],'items':" STRING "},'omnidrop':"
                              OBJECT("'text_tokens','audio_tokens','video_tokens','image_tokens'",
                                     "'text_tokens':" COUNT ",'audio_tokens':" COUNT ",'video_tokens':" COUNT
                                     ",'image_tokens':" COUNT)) },
    { "DetokenizeRequest", OBJECT("'tokens'", "'model':" STRING_OR_NULL ",'tokens':" COUNTS) },
    { "DetokenizeReply", OBJECT("'prompt'", "'prompt':" STRING) },
    { "TranscriptionForm",
      "{'type':'object','description':'One of file, file_id, file_url.','properties':{'file':{'type':'string',"
      "'contentMediaType':'application/octet-stream'},'file_id':" STRING ",'file_url':" STRING ",'model':" STRING
      ",'language':" STRING ",'prompt':" STRING ",'response_format':{'enum':['json','text','srt','vtt','verbose_json']},"
      "'temperature':{'type':'number','minimum':0,'maximum':1},'seed':" INT ",'top_p':" REAL ",'stream':" BOOL
      ",'timestamp_granularities[]':{'type':'array','items':{'const':'segment'}},'languages[]':" OF(STRING)
      ",'keywords[]':" OF(STRING) ",'include[]':" OF(STRING) ",'chunking_strategy':{},'omnidrop':{}}}" },
    { "Seconds", OBJECT("'type','seconds'", "'type':{'const':'duration'},'seconds':" REAL) },
    { "Transcription", OBJECT("'text'", "'text':" STRING ",'usage':" REF("Seconds") ",'logprobs':{'type':'array'},'omnidrop':"
                                        "{'type':'object'}") },
    { "Segment", OBJECT("'id','seek','start','end','text','tokens','temperature','avg_logprob','compression_ratio',"
                        "'no_speech_prob'",
                        "'id':" INT ",'seek':" INT ",'start':" REAL ",'end':" REAL ",'text':" STRING ",'tokens':" OF(INT)
                        ",'temperature':" REAL ",'avg_logprob':" REAL ",'compression_ratio':" REAL ",'no_speech_prob':" REAL) },
    { "VerboseTranscription", OBJECT("'language','duration','text','segments'",
                                     "'task':{'enum':['transcribe','translate']},'language':" STRING ",'duration':" REAL
                                     ",'text':" STRING ",'segments':" OF(REF("Segment")) ",'usage':" REF("Seconds")
                                     ",'omnidrop':{'type':'object'}") },
    { "TranscriptionEvent",
      "{'oneOf':[" OBJECT("'type','delta'", "'type':{'const':'transcript.text.delta'},'delta':" STRING ",'segment_id':{}") ","
      OBJECT("'type','id','start','end','text','speaker'", "'type':{'const':'transcript.text.segment'},'id':{},'start':" REAL
             ",'end':" REAL ",'text':" STRING ",'speaker':" STRING) ","
      OBJECT("'type','text','usage'", "'type':{'const':'transcript.text.done'},'text':" STRING ",'usage':"
             OBJECT("'type','input_tokens','output_tokens','total_tokens'",
                    "'type':{'const':'tokens'},'input_tokens':" COUNT ",'output_tokens':" COUNT ",'total_tokens':" COUNT
                    ",'input_token_details':" OBJECT("'audio_tokens','text_tokens'",
                    "'audio_tokens':" COUNT ",'text_tokens':" COUNT))) "]}" },
    { "FileForm", OBJECT("'file','purpose'", "'file':{'type':'string','contentMediaType':'application/octet-stream'},"
                         "'purpose':{'enum':['batch','user_data','vision']},'expires_after[anchor]':{'const':'created_at'},"
                         "'expires_after[seconds]':{'type':'integer','minimum':3600,'maximum':2592000}") },
    { "File", OBJECT("'id','object','bytes','created_at','filename','purpose','status'",
                     "'id':" STRING ",'object':{'const':'file'},'bytes':" COUNT ",'created_at':" INT ",'expires_at':" INT_OR_NULL
                     ",'filename':" STRING ",'purpose':{'enum':['batch','user_data','vision','batch_output']},'status':"
                     "{'enum':['processed','error']},'status_details':" STRING_OR_NULL) },
    { "FileList", OBJECT("'object','data','first_id','last_id','has_more'",
                         "'object':{'const':'list'},'data':" OF(REF("File")) ",'first_id':" STRING_OR_NULL ",'last_id':"
                         STRING_OR_NULL ",'has_more':" BOOL) },
    { "FileDeleted", OBJECT("'id','object','deleted'", "'id':" STRING ",'object':{'const':'file'},'deleted':{'const':true}") },
    { "BatchRequest", OBJECT("'input_file_id','endpoint','completion_window'",
                             "'input_file_id':" STRING ",'endpoint':{'enum':['/v1/chat/completions','/v1/completions',"
                             "'/v1/audio/transcriptions','/v1/audio/translations']},'completion_window':{'const':'24h'},"
                             "'metadata':{'type':['object','null']},'output_expires_after':{'type':['object','null']}") },
    { "Batch",
      OBJECT("'id','object','endpoint','input_file_id','completion_window','status','created_at','request_counts'",
             "'id':" STRING ",'object':{'const':'batch'},'endpoint':" STRING ",'errors':" ANY_OF(NIL,
             OBJECT("'object','data'", "'object':{'const':'list'},'data':" OF(OBJECT("'code','line','message','param'",
             "'code':" STRING ",'line':" INT_OR_NULL ",'message':" STRING ",'param':" STRING_OR_NULL))))
             ",'input_file_id':" STRING ",'completion_window':" STRING ",'status':{'enum':['validating','failed','in_progress',"
             "'finalizing','completed','expired','cancelling','cancelled']},'output_file_id':" STRING_OR_NULL
             ",'error_file_id':" STRING_OR_NULL ",'created_at':" INT ",'in_progress_at':" INT_OR_NULL ",'expires_at':" INT_OR_NULL
             ",'finalizing_at':" INT_OR_NULL ",'completed_at':" INT_OR_NULL ",'failed_at':" INT_OR_NULL ",'expired_at':" INT_OR_NULL
             ",'cancelling_at':" INT_OR_NULL ",'cancelled_at':" INT_OR_NULL ",'request_counts':"
             OBJECT("'total','completed','failed'", "'total':" COUNT ",'completed':" COUNT ",'failed':" COUNT)
             ",'usage':{'type':['object','null']},'metadata':{'type':['object','null']}") },
    { "BatchList", OBJECT("'object','data','first_id','last_id','has_more'",
                          "'object':{'const':'list'},'data':" OF(REF("Batch")) ",'first_id':" STRING_OR_NULL ",'last_id':"
                          STRING_OR_NULL ",'has_more':" BOOL) },
    { "Group", OBJECT("'group','state','jobs','given','pages','requests'",
                      "'group':" COUNT ",'state':{'enum':['loading','ready','gone']},'jobs':" COUNT ",'given':" COUNT ",'pages':"
                      OBJECT("'total','free'", "'total':" COUNT ",'free':" COUNT) ",'requests':"
                      OBJECT("'waiting','running'", "'waiting':" COUNT ",'running':" COUNT) ",'why':" STRING) },
    { "Health", OBJECT("'status'", "'status':" STRING ",'groups':" OF(REF("Group"))) },
    { "State", OBJECT("'state','version','uptime_s','policies','model'",
                      "'state':{'enum':['loading','ready','draining','dead']},'version':" STRING ",'uptime_s':" REAL
                      ",'policies':{'type':'array'},'model':" STRING_OR_NULL ",'engine':{'type':'object'},'pages':"
                      OBJECT("'total','free','reserved','cached'", "'total':" COUNT ",'free':" COUNT ",'reserved':" COUNT
                             ",'cached':" COUNT) ",'requests':{'type':'object','additionalProperties':" COUNT "},'counters':"
                      "{'type':'object','additionalProperties':" COUNT "},'list':{'type':'array','items':{'type':'object'}},"
                      "'groups':" OF(REF("Group"))) },
    { "Version", OBJECT("'version','commit','backend','policies','libevent','ffmpeg'",
                        "'version':" STRING ",'commit':" STRING ",'backend':" STRING_OR_NULL ",'policies':" OF(STRING) ",'libevent':"
                        STRING ",'ffmpeg':" STRING) },
};

/* The request body of an endpoint, from its table of fields. */
static json_t *request_schema(unsigned where, const char *required)
{
    json_t *properties = json_object();
    for (const struct api_field *f = api_fields; f->name; f++)
        if (f->where & where && f->schema) json_object_set_new(properties, f->name, api_schema(f->schema));
    return json_pack("{s:s,s:[s],s:o}", "type", "object", "required", required, "properties", properties);
}

static json_t *param_schema(const struct prune_param *d)
{
    if (d->kind == PARAM_BOOL) return json_pack("{s:s,s:s}", "type", "boolean", "description", d->help);
    if (d->kind == PARAM_LIST) /* one number is a list too */
        return json_pack("{s:[{s:s,s:i,s:{s:s,s:f,s:f}},{s:s,s:f,s:f}],s:s}", "anyOf", "type", "array", "maxItems", PRUNE_LIST_MAX,
                         "items", "type", "number", "minimum", d->lo, "maximum", d->hi, "type", "number", "minimum", d->lo,
                         "maximum", d->hi, "description", d->help);
    if (d->kind != PARAM_WORD)
        return json_pack("{s:s,s:f,s:f,s:s}", "type", d->kind == PARAM_INTEGER ? "integer" : "number", "minimum", d->lo,
                         "maximum", d->hi, "description", d->help);
    json_t *words = json_array();
    for (int i = 0; i <= (int)d->hi; i++) json_array_append_new(words, json_string(d->word[i]));
    return json_pack("{s:o,s:s}", "enum", words, "description", d->help);
}

/* The keys of every policy together; which policy has which is said by the error. */
static json_t *omnidrop_schema(void)
{
    json_t *names = json_array();
    json_t *p = api_schema("{'return_pruning':" BOOL ",'detail':{'enum':['counts','tokens','reasons']}}");
    for (const struct policy *const *q = prune_list(); *q; q++) {
        json_array_append_new(names, json_string((*q)->name));
        for (uint32_t i = 0; i < (*q)->n_param; i++) {
            const struct prune_param *d = &(*q)->param[i];
            if (json_object_get(p, d->name) == NULL || d->kind == PARAM_LIST) json_object_set_new(p, d->name, param_schema(d));
            if (d->alias && json_object_get(p, d->alias) == NULL) json_object_set_new(p, d->alias, param_schema(d));
        }
    }
    json_object_set_new(p, "policy", json_pack("{s:o}", "enum", names));
    return json_pack("{s:s,s:b,s:o}", "type", "object", "additionalProperties", 0, "properties", p);
}

static json_t *all_schemas(void)
{
    json_t *o = json_object();
    for (size_t i = 0; i < sizeof SCHEMAS / sizeof *SCHEMAS; i++) json_object_set_new(o, SCHEMAS[i].name, api_schema(SCHEMAS[i].text));
    json_object_set_new(o, "ChatRequest", request_schema(API_CHAT, "messages"));
    json_object_set_new(o, "CompletionRequest", request_schema(API_COMPLETION, "prompt"));
    json_object_set_new(o, "OmnidropOptions", omnidrop_schema());
    return o;
}

/* ---- routes ----------------------------------------------------------------------------------------------- */

#define JSON "application/json"
#define FORM "multipart/form-data"
#define STREAM "text/event-stream"

struct content { const char *type, *schema; };     /* schema NULL: any bytes */

static const struct route {
    const char *path, *method, *id, *summary;
    bool open;                                     /* needs no key */
    struct content body[2], reply[5];              /* end with type NULL */
} ROUTES[] = {
    { "/v1/models", "get", "listModels", "The served names", false, { { 0 } }, { { JSON, "ModelList" } } },
    { "/models", "get", "listModelsShort", "As /v1/models", false, { { 0 } }, { { JSON, "ModelList" } } },
    { "/v1/models/{id}", "get", "retrieveModel", "One served name", false, { { 0 } }, { { JSON, "Model" } } },
    { "/v1/chat/completions", "post", "createChatCompletion", "Answer a conversation with text, images, sound and film", false,
      { { JSON, "ChatRequest" } }, { { JSON, "ChatReply" }, { STREAM, "ChatChunk" } } },
    { "/v1/completions", "post", "createCompletion", "Continue a raw prompt", false, { { JSON, "CompletionRequest" } },
      { { JSON, "CompletionReply" }, { STREAM, "CompletionReply" } } },
    { "/v1/audio/transcriptions", "post", "createTranscription", "Sound or film to text", false,
      { { FORM, "TranscriptionForm" }, { JSON, "TranscriptionForm" } },
      { { JSON, "Transcriptions" }, { "text/plain", NULL }, { "application/x-subrip", NULL }, { "text/vtt", NULL },
        { STREAM, "TranscriptionEvent" } } },
    { "/v1/audio/translations", "post", "createTranslation", "Sound or film to English text", false,
      { { FORM, "TranscriptionForm" }, { JSON, "TranscriptionForm" } },
      { { JSON, "Transcriptions" }, { "text/plain", NULL }, { "application/x-subrip", NULL }, { "text/vtt", NULL },
        { STREAM, "TranscriptionEvent" } } },
    { "/v1/files", "post", "createFile", "Upload a file", false, { { FORM, "FileForm" } }, { { JSON, "File" } } },
    { "/v1/files", "get", "listFiles", "The files of this key", false, { { 0 } }, { { JSON, "FileList" } } },
    { "/v1/files/{id}", "get", "retrieveFile", "What is known of a file", false, { { 0 } }, { { JSON, "File" } } },
    { "/v1/files/{id}", "delete", "deleteFile", "Delete a file", false, { { 0 } }, { { JSON, "FileDeleted" } } },
    { "/v1/files/{id}/content", "get", "downloadFile", "The bytes of a file", false, { { 0 } },
      { { "*/*", NULL } } },
    { "/v1/batches", "post", "createBatch", "Run the requests of a file", false, { { JSON, "BatchRequest" } }, { { JSON, "Batch" } } },
    { "/v1/batches", "get", "listBatches", "The batches of this key", false, { { 0 } }, { { JSON, "BatchList" } } },
    { "/v1/batches/{id}", "get", "retrieveBatch", "Where a batch is", false, { { 0 } }, { { JSON, "Batch" } } },
    { "/v1/batches/{id}/cancel", "post", "cancelBatch", "Cancel a batch", false, { { 0 } }, { { JSON, "Batch" } } },
    { "/tokenize", "post", "tokenize", "Count the tokens of a prompt", false, { { JSON, "TokenizeRequest" } },
      { { JSON, "TokenizeReply" } } },
    { "/detokenize", "post", "detokenize", "The text of tokens", false, { { JSON, "DetokenizeRequest" } },
      { { JSON, "DetokenizeReply" } } },
    { "/v1/tokenize", "post", "tokenizeV1", "As /tokenize", false, { { JSON, "TokenizeRequest" } }, { { JSON, "TokenizeReply" } } },
    { "/v1/detokenize", "post", "detokenizeV1", "As /detokenize", false, { { JSON, "DetokenizeRequest" } },
      { { JSON, "DetokenizeReply" } } },
    { "/health", "get", "health", "Is the server alive?", true, { { 0 } }, { { JSON, "Health" } } },
    { "/ready", "get", "ready", "May requests be sent here?", true, { { 0 } }, { { JSON, "Health" } } },
    { "/version", "get", "version", "What is running", true, { { 0 } }, { { JSON, "Version" } } },
    { "/v1/omnidrop/state", "get", "state", "What the engine does now, for the page", false, { { 0 } }, { { JSON, "State" } } },
    { "/openapi.json", "get", "openapi", "This description", false, { { 0 } }, { { JSON, NULL } } },
    { "/", "get", "page", "The built-in page", true, { { 0 } }, { { "text/html", NULL } } },
    { "/metrics", "get", "metrics", "Figures for Prometheus", false, { { 0 } }, { { "text/plain", NULL } } },
};

static json_t *ref(const char *schema)
{
    char path[96];
    if (schema == NULL) return json_object();
    if (strcmp(schema, "Transcriptions") == 0)
        return api_schema(ANY_OF(REF("VerboseTranscription"), REF("Transcription")));
    snprintf(path, sizeof path, "#/components/schemas/%s", schema);
    return json_pack("{s:s}", "$ref", path);
}

static json_t *contents(const struct content *c, size_t n)
{
    json_t *o = json_object();
    for (size_t i = 0; i < n && c[i].type; i++)
        json_object_set_new(o, c[i].type, json_pack("{s:o}", "schema", ref(c[i].schema)));
    return o;
}

static json_t *query(const char *name, const char *schema)
{
    return json_pack("{s:s,s:s,s:o}", "name", name, "in", "query", "schema", api_schema(schema));
}

static json_t *parameters(const struct route *r)
{
    json_t *list = json_array();
    if (strstr(r->path, "{id}"))
        json_array_append_new(list, json_pack("{s:s,s:s,s:b,s:{s:s}}", "name", "id", "in", "path", "required", 1, "schema",
                                              "type", "string"));
    if (strcmp(r->id, "listFiles") != 0 && strcmp(r->id, "listBatches") != 0) return list;
    json_array_append_new(list, query("after", STRING));
    json_array_append_new(list, query("limit", "{'type':'integer','minimum':1}"));
    if (strcmp(r->id, "listBatches") == 0) return list;
    json_array_append_new(list, query("order", "{'enum':['asc','desc']}"));
    json_array_append_new(list, query("purpose", STRING));
    return list;
}

static json_t *operation(const struct route *r)
{
    json_t *o = json_pack("{s:s,s:s,s:o}", "operationId", r->id, "summary", r->summary, "parameters", parameters(r));
    if (r->body[0].type)
        json_object_set_new(o, "requestBody", json_pack("{s:b,s:o}", "required", 1, "content", contents(r->body, 2)));
    const struct content error = { JSON, "Error" };
    json_object_set_new(o, "responses",
                        json_pack("{s:{s:s,s:o},s:{s:s,s:o}}", "200", "description", "It worked.", "content",
                                  contents(r->reply, 5), "default", "description", "It did not.", "content", contents(&error, 1)));
    json_object_set_new(o, "security", r->open ? json_array() : json_pack("[{s:[]}]", "key"));
    return o;
}

json_t *api_openapi(const struct api *a)
{
    json_t *paths = json_object();
    for (size_t i = 0; i < sizeof ROUTES / sizeof *ROUTES; i++) {
        json_t *path = json_object_get(paths, ROUTES[i].path);
        if (path == NULL) {
            path = json_object();
            json_object_set_new(paths, ROUTES[i].path, path);
        }
        json_object_set_new(path, ROUTES[i].method, operation(&ROUTES[i]));
    }
    char title[300];
    snprintf(title, sizeof title, "omnidrop: %s", a ? api_model_name(a) : "a model");
    return json_pack("{s:s,s:{s:s,s:s},s:o,s:{s:{s:{s:s,s:s}},s:o}}", "openapi", "3.1.0", "info", "title", title, "version",
                     OMNIDROP_VERSION, "paths", paths, "components", "securitySchemes", "key", "type", "http", "scheme",
                     "bearer", "schemas", all_schemas());
}
