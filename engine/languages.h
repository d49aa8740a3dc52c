/* engine/languages.h - languages by ISO 639-1 code, ISO 639-3 code or English name. */
#ifndef ENGINE_LANGUAGES_H
#define ENGINE_LANGUAGES_H

#include <stddef.h>

/* Lower-case English name ("english") of a code or name in any case; NULL: not known. Static. */
const char *language_name(const char *text);
/* The first language whose name stands in a text ("The language is German." -> "german"); NULL: none. */
const char *language_in_text(const char *text, size_t n);

/* The i-th name of the list, a name may stand there twice; NULL: behind the end. */
const char *language_at(size_t i);

#endif
