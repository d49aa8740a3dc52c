/* Goal: messages become the prompt that the published template makes, and what is wrong in them is named.
 * Method: ids and texts that transformers 5.23 (apply_chat_template) gave with the bundled model's
 * tokenizer; parts in every spelling; messages that break one rule each. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/chat.h"

#define MUST_OK(expr)                                                                                        \
    do {                                                                                                     \
        if ((expr) != OK) fail_msg("%s", e.text);                                                            \
    } while (0)

static const struct doc_limits request = {
    .bytes_max = 1 << 20, .depth_max = 64, .allow_nul = true, .code = E_ARG
};

static status parse(const char *json, const struct chat_limits *limits, struct chat *c, struct err *e)
{
    struct doc d;
    struct doc_at root, messages;
    char *text = malloc(strlen(json) + 20);
    assert_non_null(text);
    const int n = sprintf(text, "{\"messages\":%s}", json);
    TRY(doc_parse(text, (size_t)n, "request", &request, &d, e));
    free(text);
    doc_root(&d, &root);
    status st = doc_any(&root, "messages", &messages, e);
    if (st == OK) st = chat_parse(&messages, limits, c, e);
    doc_close(&d);
    return st;
}

/* All segments in one string; free() it. */
static char *text_of(const struct chat_prompt *p)
{
    size_t n = 0;
    for (size_t i = 0; i < p->n_seg; i++) n += p->seg[i].n;
    char *s = calloc(1, n + 1);
    assert_non_null(s);
    n = 0;
    for (size_t i = 0; i < p->n_seg; i++) {
        memcpy(s + n, p->seg[i].text, p->seg[i].n);
        n += p->seg[i].n;
    }
    return s;
}

/* ---- the template ------------------------------------------------------------------------------------- */

static const char mixed[] =
    "[{\"role\":\"system\",\"content\":\"Be brief.\"},"
    "{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"Look: "
    "\"},{\"type\":\"video\",\"video\":\"a.mp4\"},"
    "{\"type\":\"text\",\"text\":\"\\n\\nand \"},{\"type\":\"image_url\",\"image_url\":{\"url\":\"b.png\"}},"
    "{\"type\":\"audio\",\"audio_url\":\"c.wav\"},{\"type\":\"image\",\"image\":\"d.png\"},"
    "{\"type\":\"text\",\"text\":\"What?\"}]},"
    "{\"role\":\"assistant\",\"content\":\"A star.\"},"
    "{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"Sure?\\n\"}]}]";

static const struct {
    const char *json, *text;
    bool labels;
    int32_t id[100];             /* 0 ends them */
    uint32_t user_from, user_to; /* tokens that are the user's own text of the last user turn */
} cases[] = {
    { "[{\"role\":\"user\",\"content\":\"\\nHello, what's 12+7?\"}]",
      "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n\nHello, what's 12+7?"
      "<|im_end|>\n<|im_start|>assistant\n",
      false,
      { 747, 482, 198, 465, 296, 276, 484, 475, 13, 748, 198, 747, 480, 198, 198, 542, 11,
        267, 71,  259, 6,   82,  220, 16,  17,  10, 22,  30,  748, 198, 747, 467, 198 },
      14,
      28 },
    { mixed,
      "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nLook: <|vision_bos|><|VIDEO|><|vision_eos|>"
      "\n\nand "
      "<|vision_bos|><|IMAGE|><|vision_eos|><|audio_bos|><|AUDIO|><|audio_eos|><|vision_bos|><|IMAGE|>"
      "<|vision_eos|>What?<|im_end|>\n<|im_start|>assistant\nA star.<|im_end|>\n<|im_start|>user\nSure?\n"
      "<|im_end|>\n<|im_start|>assistant\n",
      false,
      { 747, 482, 198, 33,  68,  269, 288, 68,  69,  13,  748, 198, 747, 480, 198, 43,
        78,  78,  74,  25,  220, 755, 759, 756, 198, 198, 602, 220, 755, 758, 756, 750,
        749, 751, 755, 758, 756, 275, 30,  748, 198, 747, 467, 198, 32,  487, 13,  748,
        198, 747, 480, 198, 50,  84,  261, 30,  198, 748, 198, 747, 467, 198 },
      52,
      57 },
    { mixed,
      "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nLook: Video 1: <|vision_bos|><|VIDEO|>"
      "<|vision_eos|>\n\nand Picture 1: <|vision_bos|><|IMAGE|><|vision_eos|>Audio 1: <|audio_bos|><|AUDIO|>"
      "<|audio_eos|>Picture 2: "
      "<|vision_bos|><|IMAGE|><|vision_eos|>What?<|im_end|>\n<|im_start|>assistant\nA star."
      "<|im_end|>\n<|im_start|>user\nSure?\n<|im_end|>\n<|im_start|>assistant\n",
      true,
      { 747, 482, 198, 33,  68,  269, 288, 68,  69,  13,  748, 198, 747, 480, 198, 43,  78,  78,  74,
        25,  220, 53,  370, 68,  78,  220, 16,  25,  220, 755, 759, 756, 198, 198, 602, 220, 47,  318,
        497, 220, 16,  25,  220, 755, 758, 756, 32,  84,  67,  72,  78,  220, 16,  25,  220, 750, 749,
        751, 47,  318, 497, 220, 17,  25,  220, 755, 758, 756, 275, 30,  748, 198, 747, 467, 198, 32,
        487, 13,  748, 198, 747, 480, 198, 50,  84,  261, 30,  198, 748, 198, 747, 467, 198 },
      83,
      88 },
};

static void prompts_are_the_templates(void **state)
{
    (void)state;
    struct err e;
    struct tokenizer *t;
    struct token_list l = { 0 };
    MUST_OK(tokenizer_load("models/omni-tiny", &t, &e));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct chat_render_options o = { .add_vision_id = cases[i].labels,
                                               .add_audio_id = cases[i].labels };
        struct chat c;
        struct chat_prompt p;
        MUST_OK(parse(cases[i].json, NULL, &c, &e));
        MUST_OK(chat_render(&c, &o, &p, &e));
        char *text = text_of(&p);
        assert_string_equal(text, cases[i].text);
        free(text);
        MUST_OK(tokenizer_encode(t, p.seg, p.n_seg, &l, &e));
        for (size_t k = 0; k < l.n; k++) {
            assert_int_equal(l.token[k].id, cases[i].id[k]);
            assert_int_equal(l.token[k].is_user_text, k >= cases[i].user_from && k < cases[i].user_to);
        }
        assert_int_equal(cases[i].id[l.n], 0);
        assert_int_equal(p.n_media, i == 0 ? 0 : 4);
        if (p.n_media == 4) {
            assert_int_equal(p.media[0]->kind, PART_VIDEO);
            assert_string_equal(p.media[0]->url, "a.mp4");
            assert_string_equal(p.media[1]->path, "messages[1].content[3]");
            assert_int_equal(p.media[2]->kind, PART_AUDIO);
            assert_string_equal(p.media[3]->url, "d.png");
        }
        chat_prompt_free(&p);
        chat_free(&c);
    }
    token_list_free(&l);
    tokenizer_free(&t);
}

static void no_generation_prompt_and_developer(void **state)
{
    (void)state;
    struct err e;
    struct chat c;
    struct chat_prompt p;
    const struct chat_render_options o = { .no_generation_prompt = true };
    MUST_OK(parse("[{\"role\":\"developer\",\"content\":\"D\"},{\"role\":\"user\",\"content\":\"U\"},"
                  "{\"role\":\"assistant\",\"content\":null}]",
                  NULL, &c, &e));
    MUST_OK(chat_render(&c, &o, &p, &e));
    char *text = text_of(&p);
    assert_string_equal(text, "<|im_start|>system\nD<|im_end|>\n<|im_start|>user\nU<|im_end|>\n"
                              "<|im_start|>assistant\n<|im_end|>\n");
    free(text);
    chat_prompt_free(&p);
    chat_free(&c);
}

static void a_chat_built_by_hand(void **state)
{
    (void)state;
    struct err e;
    struct chat c;
    struct chat_prompt p;
    chat_init(&c);
    assert_int_equal(chat_render(&c, NULL, &p, &e), E_ARG);
    assert_int_equal(chat_add_text(&c, "x", 1, &e), E_ARG);
    MUST_OK(chat_add_message(&c, CHAT_USER, &e));
    MUST_OK(chat_add_media(&c, PART_VIDEO, "v.mp4", &e));
    MUST_OK(chat_add_text(&c, "<|im_end|>Q", 11, &e));
    MUST_OK(chat_render(&c, NULL, &p, &e));
    assert_int_equal(p.n_media, 1);
    assert_string_equal(p.media[0]->path, "messages[0].content[0]");
    assert_true(p.media[0]->options.use_audio == -1 && p.media[0]->options.start_s == -1);
    assert_false(p.seg[3].is_template);
    assert_true(p.seg[3].is_user_text);
    chat_prompt_free(&p);
    chat_free(&c);
}

/* ---- parts -------------------------------------------------------------------------------------------- */

static void every_spelling_of_a_part(void **state)
{
    (void)state;
    static const struct {
        const char *part;
        enum chat_part_kind kind;
        const char *url, *data, *format;
    } good[] = {
        { "\"plain\"", PART_TEXT, NULL, NULL, NULL },
        { "{\"type\":\"text\",\"text\":\"plain\"}", PART_TEXT, NULL, NULL, NULL },
        { "{\"text\":\"plain\"}", PART_TEXT, NULL, NULL, NULL },
        { "{\"type\":\"refusal\",\"refusal\":\"plain\"}", PART_TEXT, NULL, NULL, NULL },
        { "{\"type\":\"image_url\",\"image_url\":{\"url\":\"u\",\"detail\":\"auto\"}}", PART_IMAGE, "u", NULL,
          NULL },
        { "{\"type\":\"image_url\",\"image_url\":\"u\"}", PART_IMAGE, "u", NULL, NULL },
        { "{\"type\":\"image\",\"image\":\"u\"}", PART_IMAGE, "u", NULL, NULL },
        { "{\"image\":\"u\"}", PART_IMAGE, "u", NULL, NULL },
        { "{\"type\":\"audio_url\",\"audio_url\":{\"url\":\"file:x.wav\"}}", PART_AUDIO, "file:x.wav", NULL,
          NULL },
        { "{\"type\":\"audio\",\"audio\":\"u\"}", PART_AUDIO, "u", NULL, NULL },
        { "{\"type\":\"input_audio\",\"input_audio\":{\"data\":\"QUJD\",\"format\":\"wav\"}}", PART_AUDIO,
          NULL, "ABC", "wav" },
        { "{\"type\":\"input_audio\",\"input_audio\":{\"data\":\"data:audio/mp3;base64,QUI=\"}}", PART_AUDIO,
          NULL, "AB", "audio/mp3" },
        { "{\"type\":\"input_audio\",\"input_audio\":{\"url\":\"u\"}}", PART_AUDIO, "u", NULL, NULL },
        { "{\"type\":\"video_url\",\"video_url\":{\"url\":\"data:video/mp4;codecs=x;base64,QQ\"}}",
          PART_VIDEO, NULL, "A", "video/mp4" },
        { "{\"type\":\"video\",\"video\":\"u\"}", PART_VIDEO, "u", NULL, NULL },
        { "{\"type\":\"input_video\",\"input_video\":{\"data\":\"QUJDRA==\"}}", PART_VIDEO, NULL, "ABCD",
          NULL },
        { "{\"type\":\"input_video\",\"input_video\":{\"url\":\"u\",\"format\":\"mp4\"}}", PART_VIDEO, "u", NULL,
          "mp4" },
        { "{\"type\":\"video_url\",\"video_url\":\"u\"}", PART_VIDEO, "u", NULL, NULL },
        { "{\"type\":\"audio_url\",\"audio_url\":\"u\"}", PART_AUDIO, "u", NULL, NULL },
        { "{\"type\":\"image_url\",\"image_url\":\"DATA:image/png;Base64,QU JD\"}", PART_IMAGE, NULL, "ABC",
          "image/png" },
        { "{\"type\":\"image_url\",\"image_url\":\"data:;base64,QUJD\"}", PART_IMAGE, NULL, "ABC", NULL },
        { "{\"type\":\"file\",\"file\":{\"file_id\":\"file-a_9\"}}", PART_FILE, "file-id:file-a_9", NULL, NULL },
        { "{\"type\":\"file\",\"file\":{\"file_data\":\"data:video/mp4;base64,QUI=\",\"filename\":\"x.mp4\"}}",
          PART_FILE,
          NULL, "AB", "video/mp4" },
        { "{\"file\":{\"file_data\":\"QUI=\"}}", PART_FILE, NULL, "AB", NULL },
        { "{\"type\":\"input_audio\",\"input_audio\":{\"data\":\"QUI=\",\"format\":\"pcm16\",\"sample_rate\":24000}}",
          PART_AUDIO, NULL,
          "RIFF\x26\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\xc0\x5d\0\0\x80\xbb\0\0\2\0\x10\0data\2\0\0\0AB", "pcm16" },
        { "{\"type\":\"input_audio\",\"input_audio\":{\"data\":\"data:;base64,UklGRgAAAABXQVZF\",\"format\":\"pcm16\","
          "\"sample_rate\":8000}}",
          PART_AUDIO, NULL, "RIFF\0\0\0\0WAVE", "pcm16" },
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        struct err e;
        struct chat c;
        char json[400];
        snprintf(json, sizeof json, "[{\"role\":\"user\",\"content\":[%s]}]", good[i].part);
        MUST_OK(parse(json, NULL, &c, &e));
        const struct chat_part *p = &c.message[0].part[0];
        assert_int_equal(p->kind, good[i].kind);
        if (p->kind == PART_TEXT) assert_string_equal(p->text, "plain");
        assert_int_equal(p->url != NULL, good[i].url != NULL);
        if (p->url != NULL) assert_string_equal(p->url, good[i].url);
        assert_int_equal(p->data != NULL, good[i].data != NULL);
        if (p->data != NULL) {
            const size_t want = good[i].data[0] != 'R' ? strlen(good[i].data) : good[i].data[4] == 0 ? 12 : 46;
            assert_int_equal(p->n_data, want);
            assert_memory_equal(p->data, good[i].data, p->n_data);
        }
        assert_int_equal(p->format != NULL, good[i].format != NULL);
        if (good[i].format != NULL) assert_string_equal(p->format, good[i].format);
        chat_free(&c);
    }
}

static void options_of_a_part(void **state)
{
    (void)state;
    struct err e;
    struct chat c;
    MUST_OK(parse(
        "[{\"role\":\"user\",\"content\":[{\"type\":\"video_url\",\"video_url\":{\"url\":\"u\",\"fps\":1.5,"
        "\"start\":\"1:02:03.5\",\"end\":4000},\"min_pixels\":100,\"max_pixels\":200,\"max_frames\":8,"
        "\"use_audio\":false,\"uuid\":\"x\"},{\"type\":\"text\",\"text\":\"a\\u0000b\"}]}]",
        NULL, &c, &e));
    const struct chat_media_options *o = &c.message[0].part[0].options;
    assert_true(o->fps == 1.5 && o->start_s == 3723.5 && o->end_s == 4000);
    assert_true(o->min_pixels == 100 && o->max_pixels == 200 && o->max_frames == 8 && o->use_audio == 0);
    assert_int_equal(c.message[0].part[1].n_text, 3);
    chat_free(&c);
}

static void a_list_of_frames(void **state)
{
    (void)state;
    struct err e;
    struct chat c;
    MUST_OK(parse("[{\"role\":\"user\",\"content\":[{\"type\":\"video\",\"video\":[\"a.png\",\"data:image/png;base64,QUJD\","
                  "\"c.png\"],\"sample_fps\":0.5,\"fps\":4,\"max_pixels\":9000},{\"video\":[\"d.png\"],\"fps\":4},"
                  "{\"type\":\"video_url\",\"video_url\":[\"e.png\"]}]}]",
                  NULL, &c, &e));
    const struct chat_part *p = c.message[0].part;
    assert_true(p->kind == PART_VIDEO && p->url == NULL && p->data == NULL && p->n_frames == 3);
    assert_string_equal(p->frame[0], "a.png");
    assert_string_equal(p->frame[1], "data:image/png;base64,QUJD");
    assert_string_equal(p->frame[2], "c.png");
    assert_true(p->list_fps == 0.5 && p->options.max_pixels == 9000);
    assert_true(p[1].n_frames == 1 && p[1].list_fps == 4);
    assert_true(p[2].n_frames == 1 && p[2].list_fps == 2);
    chat_free(&c);
}

static void times_of_a_part(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        double seconds; /* -1: refused */
    } texts[] = {
        { "0", 0 },           { "12.5", 12.5 },      { "01:02", 62 },      { "61:00", 3660 },  { "1:02:03.250",
          3723.25 },
        { "00:00:00.001", 1e-3 }, { "1:60", -1 },    { "1:2:60", -1 },     { "1:60:0", -1 },   { "1.5:30", -1 },
        { "-1", -1 },         { "1e3", -1 },         { "0x10", -1 },       { "1:", -1 },       { ":1", -1 },
        { "1.", -1 },         { " 1", -1 },          { "inf", -1 },        { "nan", -1 },      { "1 ", -1 },
        { "9999999999", -1 },
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct err e;
        struct chat c;
        char json[200];
        snprintf(json, sizeof json, "[{\"role\":\"user\",\"content\":[{\"video\":\"u\",\"start\":\"%s\"}]}]",
          texts[i].text);
        const status st = parse(json, NULL, &c, &e);
        if (st != (texts[i].seconds < 0 ? E_ARG : OK)) fail_msg("'%s': status %d", texts[i].text, st);
        if (st != OK) {
            assert_string_equal(e.tag, "invalid_value");
            assert_string_equal(e.param, "messages[0].content[0].start");
            continue;
        }
        const double got = c.message[0].part[0].options.start_s;
        if (got < texts[i].seconds - 1e-9 || got > texts[i].seconds + 1e-9) fail_msg("'%s': %g", texts[i].text, got);
        chat_free(&c);
    }
}

static void the_last_message_may_stay_open(void **state)
{
    (void)state;
    struct err e;
    struct chat c;
    struct chat_prompt p;
    const struct chat_render_options go_on = { .continue_final = true };
    MUST_OK(parse("[{\"role\":\"user\",\"content\":\"Count.\"},{\"role\":\"assistant\",\"content\":\"One, two, \"}]",
      NULL, &c, &e));
    MUST_OK(chat_render(&c, &go_on, &p, &e));
    char *text = text_of(&p);
    assert_string_equal(text, "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nCount.<|im_end|>\n"
                              "<|im_start|>assistant\nOne, two, ");
    assert_false(p.seg[p.n_seg - 1].is_template);
    free(text);
    chat_prompt_free(&p);
    assert_int_equal(chat_render(&c, NULL, &p, &e), E_ARG);
    assert_string_equal(e.tag, "invalid_value");
    assert_string_equal(e.param, "messages");
    chat_drop_last(&c);
    assert_int_equal(chat_render(&c, &go_on, &p, &e), E_ARG);
    assert_string_equal(e.param, "continue_final_message");
    MUST_OK(chat_add_media(&c, PART_FILE, "file-id:x", &e));
    assert_int_equal(chat_render(&c, NULL, &p, &e), E_ARG);
    assert_string_equal(e.param, "messages[0].content[1]");
    c.message[0].part[1].kind = PART_AUDIO;
    MUST_OK(chat_render(&c, NULL, &p, &e));
    chat_prompt_free(&p);
    chat_free(&c);
}

static void what_is_wrong_is_named(void **state)
{
    (void)state;
#define USER(content) "[{\"role\":\"user\",\"content\":" content "}]"
    static const struct {
        const char *json, *words, *tag, *param; /* tag NULL: invalid_value; param NULL: not looked at */
    } bad[] = {
        { "7", "messages: is an integer, an array is needed", "invalid_type",
          "messages" },
        { "[]", "messages: has 0 messages", "invalid_value",
          "messages" },
        { "[1]", "messages[0]: is an integer", "invalid_type",
          "messages[0]" },
        { "[{\"content\":\"x\"}]", "messages[0].role: is missing", "missing_required_parameter",
          "messages[0].role" },
        { "[{\"role\":\"wizard\",\"content\":\"x\"}]", "messages[0].role: \"wizard\" is not supported", "invalid_value",
          "messages[0].role" },
        { "[{\"role\":\"tool\",\"content\":\"x\"}]", "messages[0].role: \"tool\" is not supported",
          "unsupported_parameter",
          "messages[0].role" },
        { "[{\"role\":\"user\"}]", "messages[0].content: is missing", "missing_required_parameter",
          "messages[0].content" },
        { "[{\"role\":\"assistant\",\"tool_calls\":[1]}]", "messages[0].tool_calls: is not supported",
          "unsupported_parameter",
          "messages[0].tool_calls" },
        { USER("7"), "messages[0].content: is an integer, a string or an array", "invalid_type",
          "messages[0].content" },
        { USER("[]"), "messages[0].content: has 0 parts" },
        { USER("[7]"), "messages[0].content[0]: is an integer", "invalid_type",
          "messages[0].content[0]" },
        { USER("[{}]"), "messages[0].content[0].type: is missing", "missing_required_parameter",
          "messages[0].content[0].type" },
        { USER("[{\"type\":\"smell\"}]"), "messages[0].content[0].type: \"smell\" is unknown", "invalid_value",
          "messages[0].content[0].type" },
        { USER("[{\"type\":\"file\",\"file\":{}}]"), "file.file_id: is missing", "missing_required_parameter" },
        { USER("[{\"type\":\"file\",\"file\":{\"file_id\":\"../x\"}}]"), "file.file_id: is no file id" },
        { USER("[{\"type\":\"file\",\"file\":{\"file_id\":\"a\",\"file_data\":\"QUI=\"}}]"),
          "file: has file_id and file_data" },
        { USER("[{\"type\":\"file\",\"file\":{\"file_data\":\"data:a/b;base64,\"}}]"),
          "file_data: the base64 data is empty" },
        { USER("[{\"type\":\"image_embeds\",\"image_embeds\":\"QUI=\"}]"), "\"image_embeds\" is not supported",
          "unsupported_parameter", "messages[0].content[0].type" },
        { USER("[{\"type\":\"prompt_embeds\"}]"), "\"prompt_embeds\" is not supported", "unsupported_parameter" },
        { USER("[{\"audio_embeds\":{}}]"), "\"audio_embeds\" is not supported", "unsupported_parameter" },
        { "[{\"role\":\"function\",\"content\":\"x\"}]", "\"function\" is not supported", "unsupported_parameter",
          "messages[0].role" },
        { USER("[{\"input_audio\":{\"data\":\"QUI=\",\"format\":\"pcm16\"}}]"), "input_audio.sample_rate: is missing",
          "missing_required_parameter", "messages[0].content[0].input_audio.sample_rate" },
        { USER("[{\"input_audio\":{\"data\":\"QUJD\",\"format\":\"pcm16\",\"sample_rate\":16000}}]"),
          "no whole 16-bit samples" },
        { USER("[{\"input_audio\":{\"url\":\"u\",\"format\":\"pcm16\",\"sample_rate\":16000}}]"), "not behind a URL" },
        { USER("[{\"type\":\"text\"}]"), "messages[0].content[0].text: is missing", "missing_required_parameter",
          "messages[0].content[0].text" },
        { USER("[{\"type\":\"text\",\"text\":7}]"), "content[0].text: is an integer", "invalid_type",
          "messages[0].content[0].text" },
        { USER("[{\"type\":\"image_url\",\"image_url\":{}}]"), "content[0].image_url.url: is missing",
          "missing_required_parameter",
          "messages[0].content[0].image_url.url" },
        { USER("[{\"type\":\"image_url\",\"image_url\":{\"url\":\"\"}}]"), "image_url.url: is empty", "invalid_value",
          "messages[0].content[0].image_url.url" },
        { USER("[{\"type\":\"image_url\",\"image_url\":{\"url\":\"a\\u0000b\"}}]"), "NUL character" },
        { USER("[{\"type\":\"image_url\",\"image_url\":{\"url\":\"u\",\"detail\":\"x\"}}]"), "detail \"x\"" },
        { USER("[{\"type\":\"video\",\"video\":[]}]"), "content[0].video: has 0 frames" },
        { USER("[{\"type\":\"video\",\"video\":[\"a\",7]}]"), "video[1]: is an integer", "invalid_type",
          "messages[0].content[0].video[1]" },
        { USER("[{\"type\":\"video\",\"video\":[\"a\",\"data:image/png;base64,@\"]}]"), "video[1]: the byte 0x40" },
        { USER("[{\"type\":\"video\",\"video\":[\"a\"],\"start\":1}]"), "no start and end" },
        { USER("[{\"type\":\"video\",\"video\":[\"a\",\"b\"],\"max_frames\":1}]"), "more than max_frames 1" },
        { USER("[{\"type\":\"video\",\"video\":[\"a\"],\"sample_fps\":0}]"), "sample_fps: is 0" },
        { USER("[{\"type\":\"image\",\"image\":[\"a\"]}]"), "image: is an array", "invalid_type" },
        { USER("[{\"type\":\"image_url\",\"image_url\":\"data:image/png;base64,\"}]"),
          "base64 data is empty" },
        { USER("[{\"type\":\"image_url\",\"image_url\":\"data:image/png;base64,@@@\"}]"), "0x40 at place 0" },
        { USER("[{\"type\":\"image_url\",\"image_url\":\"data:image/png,abc\"}]"), "that is not base64" },
        { USER("[{\"type\":\"image_url\",\"image_url\":\"data:image/png;base64\"}]"), "without a comma" },
        { USER("[{\"type\":\"input_audio\",\"input_audio\":{\"data\":\"QUJDR\"}}]"), "the data was cut" },
        { USER("[{\"type\":\"input_audio\",\"input_audio\":{\"data\":\"QU=JD\"}}]"),
          "goes on after its padding" },
        { USER("[{\"type\":\"input_audio\",\"input_audio\":{\"data\":\"QUI==\"}}]"), "make no whole bytes" },
        { USER("[{\"type\":\"input_audio\",\"input_audio\":{\"data\":\"QUJD\",\"url\":\"u\"}}]"),
          "give one" },
        { USER("[{\"type\":\"video\",\"video\":\"u\",\"fps\":0}]"), "content[0].fps: is 0, must be" },
        { USER("[{\"type\":\"video\",\"video\":\"u\",\"start\":9,\"end\":3}]"),
          "end 3 is not after start 9" },
        { USER("[{\"type\":\"video\",\"video\":\"u\",\"start\":\"1:2:3:4\"}]"), "\"1:2:3:4\" is no time" },
        { USER("[{\"type\":\"video\",\"video\":\"u\",\"start\":\"\"}]"), "is no time" },
        { USER("[{\"type\":\"video\",\"video\":\"u\",\"min_pixels\":9,\"max_pixels\":3}]"),
          "min_pixels 9 is more" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err e;
        struct chat c;
        if (parse(bad[i].json, NULL, &c, &e) != E_ARG) fail_msg("not refused: %s", bad[i].json);
        if (strstr(e.text, bad[i].words) == NULL) fail_msg("'%s' does not say '%s'", e.text, bad[i].words);
        const char *tag = bad[i].tag != NULL ? bad[i].tag : "invalid_value";
        if (e.tag == NULL || strcmp(e.tag, tag) != 0) fail_msg("'%s' has the tag %s, not %s", e.text, e.tag, tag);
        if (e.param[0] == '\0') fail_msg("'%s' names no place", e.text);
        if (bad[i].param != NULL) assert_string_equal(e.param, bad[i].param);
    }
}

static void limits_hold(void **state)
{
    (void)state;
    const struct chat_limits small = { .messages_max = 2, .parts_max = 2, .text_max = 10, .inline_max = 5 };
    static const struct {
        const char *json, *words;
    } bad[] = {
        { "[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"user\",\"content\":\"a\"},"
          "{\"role\":\"user\",\"content\":\"a\"}]",
          "has 3 messages, must have 1 to 2" },
        { USER("[\"a\",\"b\",\"c\"]"), "has 3 parts, must have 1 to 2" },
        { USER("[{\"video\":[\"a\",\"b\",\"c\"]}]"), "has 3 frames, must have 1 to 2" },
        { USER("[{\"video\":[\"data:;base64,QUJD\",\"data:;base64,QUJD\"]}]"),
          "3 bytes of inline data are more than the 2" },
        { USER("[\"123456\",\"12345\"]"), "content[1]: 5 bytes of text are more than the 4 left" },
        { USER("[{\"type\":\"input_audio\",\"input_audio\":{\"data\":\"QUJD\"}},"
               "{\"type\":\"input_audio\",\"input_audio\":{\"data\":\"QUJD\"}}]"),
          "3 bytes of inline data are more than the 2" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err e;
        struct chat c;
        assert_int_equal(parse(bad[i].json, &small, &c, &e), E_ARG);
        if (strstr(e.text, bad[i].words) == NULL) fail_msg("'%s' does not say '%s'", e.text, bad[i].words);
    }
}

static void base64_of_every_length(void **state)
{
    (void)state;
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    struct err e;
    uint8_t bytes[64], *back;
    for (size_t n = 1; n < 64; n++)
        for (int style = 0; style < 4; style++) {
            char text[200];
            size_t k = 0, n_back;
            for (size_t i = 0; i < n; i++) bytes[i] = (uint8_t)(i * 97 + n * 31 + 200);
            for (size_t i = 0; i < n; i += 3) {
                const size_t left = n - i < 3 ? n - i : 3;
                uint32_t v = (uint32_t)bytes[i] << 16 | (left > 1 ? (uint32_t)bytes[i + 1] << 8 : 0) |
                             (left > 2 ? bytes[i + 2] : 0u);
                for (size_t d = 0; d < 4; d++) {
                    if (d <= left)
                        text[k++] = digits[v >> (18 - 6 * d) & 63];
                    else if ((style & 1) == 0)
                        text[k++] = '=';
                    if ((style & 2) != 0 && d == 1) text[k++] = '\n';
                }
            }
            if (style == 3)
                for (size_t i = 0; i < k; i++)
                    text[i] = text[i] == '+' ? '-' : text[i] == '/' ? '_' : text[i];
            MUST_OK(chat_base64(text, k, 64, &back, &n_back, &e));
            assert_int_equal(n_back, n);
            assert_memory_equal(back, bytes, n);
            free(back);
        }
}

static void tokens_must_carry_the_configs_ids(void **state)
{
    (void)state;
    struct err e;
    struct tokenizer *t;
    struct model_config c;
    MUST_OK(tokenizer_load("models/omni-tiny", &t, &e));
    MUST_OK(model_config_load("models/omni-tiny", &c, &e));
    MUST_OK(chat_check_tokens(t, &c.ids, &e));
    c.ids.video = 758;
    assert_int_equal(chat_check_tokens(t, &c.ids, &e), E_MODEL);
    assert_non_null(strstr(e.text, "<|VIDEO|> the id 759, video_token_index of config.json is 758"));
    tokenizer_free(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prompts_are_the_templates),
        cmocka_unit_test(no_generation_prompt_and_developer),
        cmocka_unit_test(a_chat_built_by_hand),
        cmocka_unit_test(every_spelling_of_a_part),
        cmocka_unit_test(options_of_a_part),
        cmocka_unit_test(a_list_of_frames),
        cmocka_unit_test(times_of_a_part),
        cmocka_unit_test(the_last_message_may_stay_open),
        cmocka_unit_test(what_is_wrong_is_named),
        cmocka_unit_test(limits_hold),
        cmocka_unit_test(base64_of_every_length),
        cmocka_unit_test(tokens_must_carry_the_configs_ids),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
