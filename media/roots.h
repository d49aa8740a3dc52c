/* media/roots.h - file: URLs beneath the folders that the operator named (docs/http-api.md 2.6, rule 7).
 *
 *   file:clip.mp4, file:a/clip.mp4          under the first root
 *   file:///srv/media/clip.mp4              under whichever root it lies beneath; host empty or localhost
 *
 * The kernel walks the path from the root's descriptor (openat2, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS), so neither
 * ".." nor a link nor a change on the way leads out; opening does not block, and only a regular file is taken. With "/"
 * as a root every file is. Whatever is wrong, the answer is the same: nobody learns what there is. */
#ifndef MEDIA_ROOTS_H
#define MEDIA_ROOTS_H

#include "media/extract.h"

struct roots;

/* Opens the folders for good. *out is owned. E_ARG: one that is not a folder, named in the text (the operator reads
 * it). */
status roots_open(const char *const *path, uint32_t n, struct roots **out, struct err *e);
void roots_close(struct roots **r);

/* `url` begins with "file:"; `name` is for messages. r may be NULL: there are no roots. The digest is computed here, or
 * known from the last time where size, time and inode are as they were; stop (may be NULL) ends that.
 * E_INPUT, tag media_path_not_allowed. E_CANCELLED. */
status roots_source(struct roots *r, const char *url, const char *name, const atomic_bool *stop,
                    struct media_source *out, struct err *e);

/* Is it a file: URL? */
bool roots_is_file_url(const char *url);

#endif
