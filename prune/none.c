/* prune/none.c - nothing is dropped. */
#include "prune/policies.h"

const struct policy policy_none = { .name = "none",
                                    .citation = "Qwen2.5-Omni as published (arXiv 2503.20215)",
                                    .help = "Every token lives at every layer." };
