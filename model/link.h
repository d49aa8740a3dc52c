/* model/link.h - how tensors of a device get from rank to rank of a group: by NCCL, on the device's own stream and without its host,
 * where every rank has a device of its own and omnidrop-nccl.so; else through host memory and MPI (comm/comm.h, comm_attach). */
#ifndef MODEL_LINK_H
#define MODEL_LINK_H

#include "comm/comm.h"

struct stream;

/* Collective over c (NULL: alone, nothing is done). text: "" where all memory is the host's, else "nccl: " and its version, or why not.
 * E_DEVICE: NCCL is there and does not work, or a rank is gone; c is of no use then. Whoever waits for st from now on is woken when a
 * rank dies, and gets E_DEVICE. */
status link_open(struct comm *c, struct stream *st, char *text, size_t cap, struct err *e);
/* Before st is closed, on all ranks. */
void link_close(struct comm *c, struct stream *st);

#endif
