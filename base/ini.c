/* base/ini.c - see ini.h. */
#include "base/ini.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

static char *trimmed(char *s)
{
    while (isspace((unsigned char)*s)) s++;
    char *end = s + strlen(s);
    while (end > s && isspace((unsigned char)end[-1])) *--end = 0;
    return s;
}

/* A value in double quotes, in place: \n, \" and \\ inside. False: no end, or something behind it. */
static bool unquote(char *s)
{
    char *out = s;
    for (const char *p = s + 1; *p; p++) {
        if (*p == '"') {
            *out = 0;
            return p[1] == 0;
        }
        const bool escaped = *p == '\\';
        if (escaped && *++p == 0) return false;
        *out++ = escaped && *p == 'n' ? '\n' : *p;
    }
    return false;
}

status ini_open(const char *path, status code, struct ini *out, struct err *e)
{
    *out = (struct ini){ .path = path, .section = "", .code = code, .f = fopen(path, "re") };
    if (out->f == NULL) return err_set(e, code, "%s: %s", path, strerror(errno));
    const int c = getc(out->f);    /* a folder opens, and says what it is when it is read */
    if (c == EOF && ferror(out->f)) return err_set(e, code, "%s: %s", path, strerror(errno));
    if (c != EOF) ungetc(c, out->f);
    return OK;
}

status ini_err(const struct ini *in, struct err *e)
{
    if (e) e->code = in->code;
    err_prefix(e, "%s:%d", in->path, in->line);
    return in->code;
}

static status section(struct ini *in, char *s, struct err *e)
{
    char *end = strchr(s, ']');
    if (end == NULL) return err_set(e, in->code, "%s:%d: a section without ]", in->path, in->line);
    *end = 0;
    free(in->name);
    in->section = in->name = mem_must_strdup(s + 1);
    in->key = in->value = NULL;
    return OK;
}

static status pair(struct ini *in, char *s, struct err *e)
{
    char *eq = strchr(s, '=');
    if (eq == NULL) return err_set(e, in->code, "%s:%d: \"%s\": expected key = value", in->path, in->line, s);
    *eq = 0;
    in->key = trimmed(s);
    char *value = trimmed(eq + 1);
    if (value[0] == '"' && !unquote(value))
        return err_set(e, in->code, "%s:%d: %s: a quote without its end", in->path, in->line, in->key);
    in->value = value;
    return OK;
}

status ini_next(struct ini *in, bool *more, struct err *e)
{
    while (getline(&in->text, &in->cap, in->f) >= 0) {
        char *s = trimmed(in->text);
        in->line++;
        if (*s == 0 || *s == '#' || *s == ';') continue;
        *more = true;
        return *s == '[' ? section(in, s, e) : pair(in, s, e);
    }
    *more = false;
    return ferror(in->f) ? err_set(e, in->code, "%s: %s", in->path, strerror(errno)) : OK;
}

void ini_close(struct ini *in)
{
    if (in->f) fclose(in->f);
    free(in->text);
    free(in->name);
    *in = (struct ini){ 0 };
}
