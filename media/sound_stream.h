/* media/sound_stream.h - the sound of a source as a stream from a confined child (extract.h): 16 kHz mono f32 through a
 * pipe, for files of any length. The child decodes ahead by what the pipe holds (some seconds) and then waits, so
 * memory does not grow; dropping the stream ends it. One thread at a time; not bound to the thread that opened it. */
#ifndef MEDIA_SOUND_STREAM_H
#define MEDIA_SOUND_STREAM_H

#include "media/extract.h"

struct sound_stream;

/* As media_audio_open with start_s, end_s (<= 0: from the start, to the end) and keep_time. The source is borrowed
 * until sound_stream_close. *out is owned. limits->wall_s is the time that the reader has waited for the child,
 * not the time that the child waited for the reader; limits->stop is asked while the stream lives. Errors as extract_run. */
status sound_stream_open(const struct media_source *s, double start_s, double end_s, bool keep_time,
                         const struct extract_limits *limits, struct sound_stream **out, struct err *e);
const struct media_info *sound_stream_info(const struct sound_stream *s);

/* Exactly cap samples while there are so many; fewer, at last 0, mean the end. E_INPUT and E_CANCELLED as extract_run:
 * also where the child failed on the way, so that the samples before it are not taken for the whole. */
status sound_stream_read(struct sound_stream *s, float *buf, size_t cap, size_t *n, struct err *e);

/* What was missing without stopping the work, once the end has been read; NULL: nothing. */
const char *sound_stream_warning(const struct sound_stream *s);

void sound_stream_close(struct sound_stream **s);

#endif
