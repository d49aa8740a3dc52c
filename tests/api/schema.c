/* tests/api/schema.c - see schema.h. */
#include "tests/api/schema.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const json_t *resolve(const json_t *openapi, const char *ref)
{
    const char *prefix = "#/components/schemas/";
    if (strncmp(ref, prefix, strlen(prefix)) != 0) return NULL;
    return json_object_get(json_object_get(json_object_get(openapi, "components"), "schemas"), ref + strlen(prefix));
}

static bool is_type(const json_t *v, const char *type)
{
    return strcmp(type, "object") == 0    ? json_is_object(v)
           : strcmp(type, "array") == 0   ? json_is_array(v)
           : strcmp(type, "string") == 0  ? json_is_string(v)
           : strcmp(type, "integer") == 0 ? json_is_integer(v)
           : strcmp(type, "number") == 0  ? json_is_number(v)
           : strcmp(type, "boolean") == 0 ? json_is_boolean(v)
                                          : strcmp(type, "null") == 0 && json_is_null(v);
}

static bool any_type(const json_t *v, const json_t *type)
{
    if (json_is_string(type)) return is_type(v, json_string_value(type));
    for (size_t i = 0; i < json_array_size(type); i++)
        if (is_type(v, json_string_value(json_array_get(type, i)))) return true;
    return false;
}

static bool any_equal(const json_t *list, const json_t *v)
{
    for (size_t i = 0; i < json_array_size(list); i++)
        if (json_equal(json_array_get(list, i), v)) return true;
    return false;
}

static bool no(char *why, size_t cap, const char *keyword, const json_t *v)
{
    char *text = json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY);
    snprintf(why, cap, "%s: %.200s", keyword, text ? text : "?");
    free(text);
    return false;
}

static size_t alternatives(const json_t *openapi, const json_t *list, const json_t *v, char *why, size_t cap)
{
    size_t n = 0;
    for (size_t i = 0; i < json_array_size(list); i++) n += schema_follows(openapi, json_array_get(list, i), v, why, cap);
    return n;
}

static bool members_follow(const json_t *openapi, const json_t *schema, const json_t *v, char *why, size_t cap)
{
    const json_t *known = json_object_get(schema, "properties"), *more = json_object_get(schema, "additionalProperties");
    const char *key;
    json_t *m;
    json_object_foreach((json_t *)(uintptr_t)v, key, m)
    {
        const json_t *s = json_object_get(known, key);
        if (s == NULL && json_is_false(more)) return no(why, cap, "additionalProperties", v);
        if (s == NULL && json_is_object(more)) s = more;
        if (s != NULL && !schema_follows(openapi, s, m, why, cap)) return false;
    }
    return true;
}

static bool keyword_holds(const json_t *openapi, const json_t *schema, const char *key, const json_t *k, const json_t *v,
                          char *why, size_t cap)
{
    const double number = json_number_value(v);
    if (strcmp(key, "type") == 0) return any_type(v, k);
    if (strcmp(key, "const") == 0) return json_equal(k, v);
    if (strcmp(key, "enum") == 0) return any_equal(k, v);
    if (strcmp(key, "$ref") == 0) {
        const json_t *to = resolve(openapi, json_string_value(k));
        return to != NULL && schema_follows(openapi, to, v, why, cap);
    }
    if (strcmp(key, "anyOf") == 0) return alternatives(openapi, k, v, why, cap) > 0;
    if (strcmp(key, "oneOf") == 0) return alternatives(openapi, k, v, why, cap) == 1;
    if (strcmp(key, "minimum") == 0) return !json_is_number(v) || number >= json_number_value(k);
    if (strcmp(key, "exclusiveMinimum") == 0) return !json_is_number(v) || number > json_number_value(k);
    if (strcmp(key, "maximum") == 0) return !json_is_number(v) || number <= json_number_value(k);
    if (strcmp(key, "minLength") == 0) return !json_is_string(v) || json_string_length(v) >= (size_t)json_integer_value(k);
    if (strcmp(key, "minItems") == 0) return !json_is_array(v) || json_array_size(v) >= (size_t)json_integer_value(k);
    if (strcmp(key, "maxItems") == 0) return !json_is_array(v) || json_array_size(v) <= (size_t)json_integer_value(k);
    if (strcmp(key, "maxProperties") == 0) return !json_is_object(v) || json_object_size(v) <= (size_t)json_integer_value(k);
    if (strcmp(key, "required") == 0) {
        for (size_t i = 0; json_is_object(v) && i < json_array_size(k); i++)
            if (json_object_get(v, json_string_value(json_array_get(k, i))) == NULL) return false;
        return true;
    }
    if (strcmp(key, "items") == 0) {
        for (size_t i = 0; i < json_array_size(v); i++)
            if (!schema_follows(openapi, k, json_array_get(v, i), why, cap)) return false;
        return true;
    }
    if (strcmp(key, "properties") == 0) return !json_is_object(v) || members_follow(openapi, schema, v, why, cap);
    if (strcmp(key, "additionalProperties") == 0)
        return json_object_get(schema, "properties") || !json_is_object(v) || members_follow(openapi, schema, v, why, cap);
    return strcmp(key, "description") == 0 || strcmp(key, "contentMediaType") == 0;
}

bool schema_follows(const json_t *openapi, const json_t *schema, const json_t *v, char *why, size_t cap)
{
    const char *key;
    json_t *k;
    json_object_foreach((json_t *)(uintptr_t)schema, key, k)
    {
        why[0] = 0;
        if (keyword_holds(openapi, schema, key, k, v, why, cap)) continue;
        return why[0] ? false : no(why, cap, key, v);
    }
    return true;
}
