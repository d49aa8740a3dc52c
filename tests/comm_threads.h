/* tests/comm_threads.h - comm.h between threads of one process: n communicators, each used by one thread as a rank. Sums in
 * rank order, as comm.h asks. Linked in place of comm/: it defines those calls that model/ and engine/ make. */
#ifndef TESTS_COMM_THREADS_H
#define TESTS_COMM_THREADS_H

#include "comm/comm.h"

enum { COMM_THREADS_MAX = 8 };
/* out [n]; each closed by comm_close, the last one ends all. */
void comm_threads_open(uint32_t n, struct comm **out);
/* Rank r is gone from its k-th collective or message from now on (1: the next): its calls and all that wait for it fail. */
void comm_threads_die(struct comm *c, uint32_t r, uint32_t k);
/* Rank r's copy of the k-th sum from now on has a bit too many. */
void comm_threads_corrupt(struct comm *c, uint32_t r, uint32_t k);
/* Is rank r waiting for a message? */
bool comm_threads_idle(struct comm *c, uint32_t r);

#endif
