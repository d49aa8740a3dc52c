/* The service's tests on two tensor-parallel ranks (threads), each call checked over ranks: the same bits alone, beside
 * others, in small quanta, as one of several choices, again after a preemption and from the caches. */
#include "engine/inside.h"
#include "engine/service.h"
#include "tests/engine/ranks.h"

__attribute__((constructor)) static void check(void) { setenv("OMNIDROP_CHECK_RANKS", "1", 1); }

#define engine_open(o, out, e) ranks_engine_open(2, o, out, e)
#define engine_close(en) ranks_engine_close(en)
#include "tests/engine/test_service.c"
