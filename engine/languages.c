/* engine/languages.c - see languages.h. */
#include "engine/languages.h"

#include <ctype.h>
#include <stdbool.h>
#include <string.h>
#include <strings.h>

static const struct { const char *iso1, *iso3, *name; } LANGUAGE[] = {
    { "af", "afr", "afrikaans" },  { "am", "amh", "amharic" },    { "ar", "ara", "arabic" },
    { "as", "asm", "assamese" },   { "az", "aze", "azerbaijani" }, { "ba", "bak", "bashkir" },
    { "be", "bel", "belarusian" }, { "bg", "bul", "bulgarian" },  { "bn", "ben", "bengali" },
    { "bo", "bod", "tibetan" },    { "br", "bre", "breton" },     { "bs", "bos", "bosnian" },
    { "ca", "cat", "catalan" },    { "cs", "ces", "czech" },      { "cy", "cym", "welsh" },
    { "da", "dan", "danish" },     { "de", "deu", "german" },     { "el", "ell", "greek" },
    { "en", "eng", "english" },    { "eo", "epo", "esperanto" },  { "es", "spa", "spanish" },
    { "et", "est", "estonian" },   { "eu", "eus", "basque" },     { "fa", "fas", "persian" },
    { "fi", "fin", "finnish" },    { "fo", "fao", "faroese" },    { "fr", "fra", "french" },
    { "ga", "gle", "irish" },      { "gl", "glg", "galician" },   { "gu", "guj", "gujarati" },
    { "ha", "hau", "hausa" },      { "he", "heb", "hebrew" },     { "hi", "hin", "hindi" },
    { "hr", "hrv", "croatian" },   { "ht", "hat", "haitian creole" }, { "hu", "hun", "hungarian" },
    { "hy", "hye", "armenian" },   { "id", "ind", "indonesian" }, { "is", "isl", "icelandic" },
    { "it", "ita", "italian" },    { "ja", "jpn", "japanese" },   { "jv", "jav", "javanese" },
    { "ka", "kat", "georgian" },   { "kk", "kaz", "kazakh" },     { "km", "khm", "khmer" },
    { "kn", "kan", "kannada" },    { "ko", "kor", "korean" },     { "la", "lat", "latin" },
    { "lb", "ltz", "luxembourgish" }, { "ln", "lin", "lingala" }, { "lo", "lao", "lao" },
    { "lt", "lit", "lithuanian" }, { "lv", "lav", "latvian" },    { "mg", "mlg", "malagasy" },
    { "mi", "mri", "maori" },      { "mk", "mkd", "macedonian" }, { "ml", "mal", "malayalam" },
    { "mn", "mon", "mongolian" },  { "mr", "mar", "marathi" },    { "ms", "msa", "malay" },
    { "mt", "mlt", "maltese" },    { "my", "mya", "burmese" },    { "ne", "nep", "nepali" },
    { "nl", "nld", "dutch" },      { "nn", "nno", "nynorsk" },    { "no", "nor", "norwegian" },
    { "oc", "oci", "occitan" },    { "pa", "pan", "punjabi" },    { "pl", "pol", "polish" },
    { "ps", "pus", "pashto" },     { "pt", "por", "portuguese" }, { "ro", "ron", "romanian" },
    { "ru", "rus", "russian" },    { "sa", "san", "sanskrit" },   { "sd", "snd", "sindhi" },
    { "si", "sin", "sinhala" },    { "sk", "slk", "slovak" },     { "sl", "slv", "slovenian" },
    { "sn", "sna", "shona" },      { "so", "som", "somali" },     { "sq", "sqi", "albanian" },
    { "sr", "srp", "serbian" },    { "su", "sun", "sundanese" },  { "sv", "swe", "swedish" },
    { "sw", "swa", "swahili" },    { "ta", "tam", "tamil" },      { "te", "tel", "telugu" },
    { "tg", "tgk", "tajik" },      { "th", "tha", "thai" },       { "tk", "tuk", "turkmen" },
    { "tl", "tgl", "tagalog" },    { "tr", "tur", "turkish" },    { "tt", "tat", "tatar" },
    { "uk", "ukr", "ukrainian" },  { "ur", "urd", "urdu" },       { "uz", "uzb", "uzbek" },
    { "vi", "vie", "vietnamese" }, { "yi", "yid", "yiddish" },    { "yo", "yor", "yoruba" },
    { "yue", "yue", "cantonese" }, { "zh", "zho", "chinese" },    { "zh", "cmn", "chinese" },
    { "zh", "zho", "mandarin" } };

#define N (sizeof LANGUAGE / sizeof *LANGUAGE)

const char *language_name(const char *text)
{
    for (size_t i = 0; i < N; i++)
        if (strcasecmp(text, LANGUAGE[i].name) == 0 || strcasecmp(text, LANGUAGE[i].iso1) == 0 ||
            strcasecmp(text, LANGUAGE[i].iso3) == 0)
            return LANGUAGE[i].name;
    return NULL;
}

const char *language_in_text(const char *text, size_t n)
{
    const char *found = NULL;
    size_t first = n;
    for (size_t i = 0; i < N; i++) {
        const char *name = LANGUAGE[i].name;
        const size_t len = strlen(name);
        for (size_t at = 0; at + len <= first; at++) {
            const bool starts = at == 0 || !isalpha((unsigned char)text[at - 1]);
            const bool ends = at + len == n || !isalpha((unsigned char)text[at + len]);
            if (!starts || !ends || strncasecmp(text + at, name, len) != 0) continue;
            found = name;
            first = at;
            break;
        }
    }
    return found;
}

const char *language_at(size_t i) { return i < N ? LANGUAGE[i].name : NULL; }
