/* The engine's tests on two tensor-parallel ranks (threads), each call checked over ranks: batches in any order, any number
 * of threads and the textbook order give the same bits. */
#include "engine/inside.h"
#include "tests/engine/ranks.h"

__attribute__((constructor)) static void check(void) { setenv("OMNIDROP_CHECK_RANKS", "1", 1); }

#define engine_open(o, out, e) ranks_engine_open(2, o, out, e)
#define engine_close(en) ranks_engine_close(en)
#include "tests/engine/test_engine.c"
