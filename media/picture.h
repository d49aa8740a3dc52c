/* media/picture.h - inside header: a decoded still picture to RGB8, see picture.c. */
#ifndef MEDIA_PICTURE_H
#define MEDIA_PICTURE_H

#include "media/libav.h"

/* f of the file m -> rgb [h, w, 3]. jpeg: its chroma is upsampled as libjpeg does. keep_alpha: alpha is composed on
 * white, else dropped. E_INPUT: a kind of pixels that cannot be converted. */
status picture_rgb(const struct media *m, const AVFrame *f, bool jpeg, bool keep_alpha, uint8_t *rgb, struct err *e);

#endif
