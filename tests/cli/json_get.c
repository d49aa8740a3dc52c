/* json_get [PATH...]: one JSON text on standard input; prints the value at each path ("usage.total_tokens",
 * "list[0].end" as "list.0.end"; "" is the whole) on a line of its own, compact; strings without quotes, reals shortened
 * to 12 digits; "#" at the end of a path counts the members. Exit status 1: no JSON, something behind it, or no such path. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int print_at(const json_t *v, const char *path)
{
    char key[128];
    for (const char *p = path; v && *p;) {
        const size_t n = strcspn(p, ".");
        snprintf(key, sizeof key, "%.*s", (int)n, p);
        p += n + (p[n] == '.');
        if (strcmp(key, "#") == 0) {
            printf("%zu\n", json_is_array(v) ? json_array_size(v) : json_object_size(v));
            return 0;
        }
        v = json_is_array(v) ? json_array_get(v, strtoul(key, NULL, 10)) : json_object_get(v, key);
    }
    if (v == NULL) {
        fprintf(stderr, "json_get: nothing at \"%s\"\n", path);
        return 1;
    }
    if (json_is_string(v)) printf("%s", json_string_value(v));
    else json_dumpf(v, stdout, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(12));
    printf("\n");
    return 0;
}

int main(int argc, char **argv)
{
    json_error_t why;
    json_t *root = json_loadf(stdin, JSON_REJECT_DUPLICATES, &why);
    int bad = 0;
    if (root == NULL) {
        fprintf(stderr, "json_get: line %d: %s\n", why.line, why.text);
        return 1;
    }
    for (int i = 1; i < argc; i++) bad |= print_at(root, argv[i]);
    json_decref(root);
    return bad;
}
