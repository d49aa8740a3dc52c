/* media/source.h - inside header: unnamed files in the spool, as sources and results are. */
#ifndef MEDIA_SOURCE_H
#define MEDIA_SOURCE_H

#include <stddef.h>

#include "base/err.h"

/* An empty file without a name in `dir` (NULL: /tmp), to be read and written. *fd is owned. E_IO, tag spool_full where
 * there is no room. */
status spool_open(const char *dir, int *fd, struct err *e);
status spool_write(int fd, const void *bytes, size_t n, struct err *e);
/* Replaces *fd by a descriptor that reads only. On failure *fd stays. */
status spool_finish(int *fd, struct err *e);
/* E_IO that says errno; tag spool_full where it means that there is no room. */
status spool_fail(const char *what, struct err *e);

#endif
