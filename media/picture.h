/* media/picture.h - inside header: a decoded still picture to RGB8, see picture.c. */
#ifndef MEDIA_PICTURE_H
#define MEDIA_PICTURE_H

#include "media/libav.h"

/* f of the file m, decoded by `codec`, -> rgb [h, w, 3]. rgba: the file's transparency counts and is composed
 * on white, else it is dropped. E_INPUT: a kind of pixels that cannot be converted. */
status picture_rgb(const struct media *m, const AVFrame *f, enum AVCodecID codec, bool rgba, uint8_t *rgb,
                   struct err *e);

#endif
