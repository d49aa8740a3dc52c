/* base/ini.h - reading INI files: options of a command (--config FILE), defaults of a model (omnidrop.ini).
 *
 *   [section]
 *   key = value            blanks around both fall away; all else of the line is the value's
 *   key = "value"          with \n, \" and \\ inside
 *   # a line, ; a line     a comment
 *
 * Sections and keys come in the file's order, a line at a time; what they mean is the caller's to say. */
#ifndef BASE_INI_H
#define BASE_INI_H

#include <stdbool.h>
#include <stdio.h>

#include "base/err.h"

struct ini {                       /* ini_close, also after an error */
    const char *path;              /* borrowed                                                           */
    int line;                      /* of what ini_next gave, from 1                                      */
    const char *section;           /* its name, or "" before the first; borrowed until the next section  */
    const char *key;               /* NULL: the section begins here; borrowed until ini_next             */
    const char *value;             /* of the key; borrowed until ini_next                                */
    /* Its own. */
    FILE *f;
    char *text, *name;
    size_t cap;
    status code;
};

/* path is borrowed. All errors, here and below, have the code `code` and begin with the path (and line). */
status ini_open(const char *path, status code, struct ini *out, struct err *e);
/* The next section or key; *more false: there is none. */
status ini_next(struct ini *in, bool *more, struct err *e);
void ini_close(struct ini *in);

/* Put "PATH:LINE: " before an error about what ini_next gave, and give it the file's code. */
status ini_err(const struct ini *in, struct err *e);

#endif
