/* media/confine.h - the walls around a process that reads what strangers sent. Called once, by the child itself, before
 * it looks at the first byte; there is no way back.
 *
 *   limits    CPU seconds, address space, size of files (none may grow until the parent allows it), no new descriptors,
 *             no core files, nothing in the environment
 *   system    no new privileges, not dumpable; of the kernel's calls only those that compute: memory, threads, time,
 *             reading what is open. Whatever opens, connects, starts or traces fails with EPERM: libraries that look
 *             for a configuration file go on without it, and a program that has been taken over gets no further
 *   writing   to the descriptors that are named and to no other; the source cannot be changed
 *
 * RLIMIT_NPROC is a number for the whole user, so it is only a bound on a flood of threads; new processes are refused
 * by the filter. */
#ifndef MEDIA_CONFINE_H
#define MEDIA_CONFINE_H

#include <stdint.h>

#include "base/err.h"

struct confine {
    int stream_fd[2];              /* may be written to (control, samples), -1: none                               */
    int file_fd;                   /* may be written to at an offset (the result), -1: none                        */
    uint64_t memory_bytes;         /* beside what the process has mapped now; 0: no limit. Not under ASan          */
    uint64_t cpu_s;                /* 0: no limit. One second more kills                                           */
};

/* E_INTERNAL: the kernel refuses; the caller must not go on. */
status confine_enter(const struct confine *c, struct err *e);

#endif
