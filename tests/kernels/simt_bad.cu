/* tests/kernels/simt_bad.cu - kernels that are wrong, each in one way, for test_cuda_simt.c: the simulation must see it. And
 * one that is right. */
#include "kernels/cuda/device.h"

struct bad { int how; float *out; const float *in; };
struct bad_shared { float x[64]; };

KERNEL BOUNDS(64, 1) bad_kernel(const bad a)
{
    SHARED(struct bad_shared, s);
    const uint32_t t = threadIdx.x;
    unsigned char *room = shared_memory();                        /* [1024] */
    const uint32_t at = shared_address(room);
    float v = 0.0f;
    uint32_t r[4];
    switch (a.how) {
    case 0:                                                       /* right: turned around through shared memory */
        copy_async(at + t * 16, a.in + t % 16 * 4);
        copy_commit();
        copy_wait<0>();
        __syncthreads();
        s.x[t] = ((const float *)room)[(63 - t) * 4];
        __syncthreads();
        v = warp_sum(s.x[63 - t]);
        break;
    case 1:                                                       /* no barrier before a neighbour's value is read */
        s.x[t] = a.in[t];
        v = s.x[63 - t];
        break;
    case 2:                                                       /* no wait before a copy is read */
        copy_async(at + t * 16, a.in + t % 16 * 4);
        copy_commit();
        __syncthreads();
        v = ((const float *)room)[t * 4];
        copy_wait<0>();
        break;
    case 3:                                                       /* a barrier that half of the threads pass by */
        if (t < 32) __syncthreads();
        break;
    case 4:                                                       /* lanes at different instructions */
        if (t % 2)
            v = shuffle_xor(1.0f, 1);
        else
            v = shuffle_up(1.0f, 1);
        break;
    case 5: v = load_vector<float4>(a.in + 1).x; break;           /* not aligned */
    case 6: ldmatrix(r, at + 1024); break;                        /* outside */
    case 7: copy_async(at + t * 16, a.in); break;                 /* never waited for */
    case 8:                                                       /* a lane that is not there */
        if (t != 5) v = warp_sum(1.0f);
        break;
    case 9:                                                       /* an older group than the wait covers */
        copy_async(at + t * 16, a.in + t % 16 * 4);
        copy_commit();
        copy_wait<1>();
        __syncthreads();
        v = ((const float *)room)[t * 4];
        copy_wait<0>();
        break;
    }
    a.out[t] = v;
}

extern "C" status bad_launch(int how, float *out, const float *in, struct err *e)
{
    const bad a = { how, out, in };
    return launch("bad", bad_kernel, dim3(1), 64, 1024, NULL, a, e);
}
