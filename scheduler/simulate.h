/* scheduler/simulate.h - a cluster in virtual time: the real scheduler, policies' plans and page pool over devices whose
 * steps take what a profile says. Nothing is computed and no clock is read; the same seed gives the same figures.
 *
 *   arrivals --> front end --> the group with the most room (the one that has the media, where it has room)
 *                  per group:  host cores decode the media once --> scheduler --> one device, step by step
 *
 * Each group has a pool, a scheduler and a device of its own (tp ranks that work as one). The driver below does what
 * engine/loop.c, march.c, encode.c and decode.c do to the scheduler and the pool, in the same order: towers in the same
 * batches, the same stages of a layer, ranges cut by the same function (scheduler/work.h), pages taken, forfeited and
 * trimmed at the same places, a token of every running choice a decode step; beginnings of prompts about the same media shared
 * by the real cache (kvcache/prefix.c), choices forked with a page of their own, lower priorities dropped and fed again.
 * What it leaves out: departures and failures; and which rows a policy keeps (survivors are taken to lie evenly). A plan that
 * is an upper bound is taken at its word. A prompt is its media, then its text: text before the media, which a template has,
 * would be shared as well, and that of prompts of text alone is taken to be new each time.
 * Times are floors of work over rate plus fixed costs, added, as in the profile that gives them: see struct sim_device. */
#ifndef SCHEDULER_SIMULATE_H
#define SCHEDULER_SIMULATE_H

#include "prune/policy.h"
#include "scheduler/scheduler.h"
#include "scheduler/work.h"

#define SIM_RATES 16

struct sim_rate { double rows, per_s; };   /* FLOP/s reached with so many rows; between two entries log-linear */

/* One rank's device and its host. A cost of 0 seconds and a rate of 0 are both: free. */
struct sim_device {
    uint32_t n_gemm, n_decode;
    struct sim_rate gemm[SIM_RATES];       /* products of prefill, ascending rows; below the first: its time */
    struct sim_rate decode[SIM_RATES];     /* a decode step of so many rows, all but its keys; none: gemm, read_weights */
    double attention, score, vision, audio;    /* FLOP/s */
    double memory;                         /* bytes/s: weights (once a product), K and V of a decode step, fused rows */
    bool read_weights;                     /* a product costs no less than one read of its weights */
    bool fused_rows;                       /* norms, rotation, gates and residuals cost their bytes beside the products */
    double range_s;                        /* fixed: of each range of rows of a layer */
    double step_s, row_s;                  /* fixed: of a decode step or first tokens; of each row in it (sampling, text) */
    double select_s, select_row_s;         /* of a selection; of each row it chooses from, where rate `score` is not all */
    double entry_row_s;                    /* of each media row where tokens drop before the decoder */
    double tower_s;                        /* fixed: of one batch of a tower */
    double reduce_s, reduce_bytes;         /* all-reduce over tp ranks: fixed; bytes a second that a rank sends. tp 1: none */
    uint32_t host_cores;                   /* of one rank that decode media */
    double shared_cores, device_threads;   /* > 0: device and media decoding share so many cores, of which the device uses
                                              so many threads */
};

/* The front end: HTTP, JSON, events. One for all groups. */
struct sim_front {
    double cores, request_s, token_s;      /* CPU seconds of a request, of a token handed out */
    double bytes_per_s;                    /* of its network; 0: not counted */
};

struct sim_model {
    struct work_shape work;
    uint32_t audio_span;                   /* mel frames that the audio tower takes at once */
    double value_bytes;                    /* of a weight */
    double kv_value_bytes;                 /* of a value of K or V */
};

/* One kind of request. */
struct sim_shape {
    uint32_t n_items;                      /* 0 or 1 */
    struct prune_item item;
    uint32_t n_text, n_query;              /* text tokens of the prompt; rows that ask */
    uint32_t n_new, n_out;                 /* tokens promised; tokens that come, 1..n_new; of each choice */
    uint32_t n_choices;                    /* answers to one prompt; 0: 1 */
    int priority;                          /* lower ones first, and where sched.preempt they take the pages of higher ones */
    uint32_t patches, frames;              /* of one grid step; mel frames of all its sound */
    double host_s;                         /* CPU seconds to decode and prepare its media */
    double bytes;                          /* that pass the front end */
    uint64_t media;                        /* 0: new each time; else the same media wherever the number is the same */
};

struct sim_options {
    struct sim_device device;
    struct sim_front front;
    struct sim_model model;
    const struct policy_params *policy;
    const struct sim_shape *shape;         /* [n_shapes] drawn with equal chance */
    uint32_t n_shapes;
    uint32_t tp, groups;
    uint32_t simulated;                    /* groups that are simulated; the others see the same on the average. 0: all */
    uint32_t n_pages, page_tokens;         /* pool of a group */
    uint64_t media_cache_bytes;            /* of a group: encoder outputs; 0: none */
    uint64_t hidden_bytes;                 /* of a group: hidden states of shared prefixes; 0: nothing is shared */
    struct sched_options sched;            /* n_layers, self, reclaim and drop are the simulation's */
    uint32_t max_waiting;                  /* of a group; beyond that a request is refused */
    double rate;                           /* requests a second of the whole cluster; 0: closed loop */
    uint64_t clients;                      /* closed loop: each asks again when it has its answer. Of the whole cluster */
    uint64_t warmup, measured;             /* requests that must end before measuring, and while measuring, all simulated groups */
    uint64_t seed;
    bool check;                            /* invariants after every step: for tests */
};

struct sim_times { uint64_t n; double mean, p50, p90, p99; };

struct sim_result {
    uint32_t groups, simulated;
    double seconds;                        /* measured, virtual */
    uint64_t n_ended, n_refused, n_too_large;   /* too large: would never fit the pool; not asked */
    double at_once_mean, at_once_max;      /* admitted and not over, of the whole cluster */
    double requests_s, tokens_s, prompt_tokens_s;   /* of the whole cluster; tokens generated */
    struct sim_times first, between, whole;     /* seconds: first token, between tokens, last token since asked */
    double pages_mean, pages_max;          /* share of the pool held, cached prefixes too, on the average; most of any group */
    double pages_promised, pages_unpruned; /* of one request on the average */
    double pages_freed_s;                  /* pages a second that pruning spares or gives back, whole cluster */
    double busy, reduce, hosts, front, link;   /* shares of the time: device; all-reduces in it; host cores; front end; its network */
    double waits_pages, waits_slots;       /* share of the time with somebody waiting: for pages; for max_running */
    double media_cached;                   /* share of requests with media that found its encoder outputs */
    double prefix_found;                   /* share of prefills with media that found pages of an earlier one's */
    uint64_t n_preempted;
    uint64_t n_steps;                      /* of all schedulers */
};

/* E_ARG: what cannot be. E_FULL: no shape fits the pool (pages of the smallest, and the pool's). */
status sim_run(const struct sim_options *o, struct sim_result *out, struct err *e);

/* ---- what ops take, for tests and for fitting a profile ------------------------------------------------------ */

/* Seconds of a range of rows of one layer: K and V, and with `mix` all the rest with so many keys seen in all.
 * *reduce grows by the all-reduces' part. */
double sim_range_s(const struct sim_options *o, uint32_t rows, bool kv, bool mix, double keys, double *reduce);
/* Of a decode step of n rows over so many rows of K and V, summed over rows and layers. */
double sim_decode_s(const struct sim_options *o, uint32_t n, double kv_rows, double *reduce);
/* First tokens of n requests: logits and samples. */
double sim_logits_s(const struct sim_options *o, uint32_t n, double *reduce);
/* Scores and choice among n_media of n rows by n_query rows, at one layer. */
double sim_select_s(const struct sim_options *o, uint32_t n, uint32_t n_media, uint32_t n_query);
/* The towers' batch of so many patches, of so many mel frames. */
double sim_tower_s(const struct sim_options *o, uint64_t patches, uint64_t frames);
/* The rate of a table at so many rows. */
double sim_rate_at(const struct sim_rate *table, uint32_t n, double rows);

#endif
