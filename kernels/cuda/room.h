/* kernels/cuda/room.h - how many places a list of a held back step gets; apart, so that tests can count captures with it. */
#ifndef KERNELS_CUDA_ROOM_H
#define KERNELS_CUDA_ROOM_H

#include <stdint.h>

/* `need` are wanted, `had` is what the step before gave (0: none): that again as long as it is enough and not far too much. A new
 * one has a quarter more, as lists grow by a page of each sequence every 64 steps. */
static inline uint32_t cuda_room_for(uint32_t need, uint32_t had)
{
    return need <= had && had <= 2 * need + 256 ? had : need + need / 4 + 32;
}

#endif
