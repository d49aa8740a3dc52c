/* cli/plan_profile.h - profiles of devices for `bench plan`: those that are built in (computed from data sheets and floors,
 * never measured), and JSON files, which `bench profile` measures or a person writes. */
#ifndef CLI_PLAN_PROFILE_H
#define CLI_PLAN_PROFILE_H

#include <jansson.h>

#include "model/config.h"
#include "scheduler/simulate.h"

struct plan_profile {
    char name[64], source[1024];   /* source: where the numbers come from, for people */
    bool measured;
    struct sim_device device;
    struct sim_front front;
    double memory_bytes, work_bytes;       /* of one device; of it neither weights nor pages */
    double pool_bytes;             /* of the page pool of one device; 0: memory * utilization - weights - work */
    double value_bytes, kv_value_bytes, page_tokens;
    double film_s, sound_s, request_s;     /* CPU seconds of the host: a second of film, of sound; a request with media */
};

/* "h200", "h100", "a100" or a file. E_ARG: neither; E_INPUT: not such a file (names the key). */
status plan_profile_load(const char *name, struct plan_profile *out, struct err *e);
/* The caller owns the reference. */
json_t *plan_profile_json(const struct plan_profile *p);

/* Sizes of the published models, "7b" and "3b". False: no such name. */
bool plan_model_preset(const char *name, struct sim_model *out);
struct sim_model plan_model_of(const struct model_config *c);
/* Bytes of all weights on each of tp ranks: the decoder is shared out, towers are not. */
double plan_weight_bytes(const struct sim_model *m, uint32_t tp);

#endif
