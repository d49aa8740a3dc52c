/* tests/kernels/simt_bad.cu - kernels that are wrong, each in one way, for test_cuda_simt.c: the simulation must see it. And
 * one that is right. */
#include "kernels/cuda/warpgroup.h"

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

/* The same of what sm_90a has: a band of 64 keys comes to shared memory, 16 of them are multiplied by ones. */
enum { BAND = 8192, PIECES = 16 };
KERNEL BOUNDS(WARPGROUP, 1) bad_hopper_kernel(const bad a)
{
    const uint32_t t = threadIdx.x, room = shared_address(shared_memory()), barrier = room + 2 * BAND;
    const int how = a.how;
    uint32_t ones[2][4];
    float d[8][4];
    UNROLL for (int i = 0; i < 4; i++) ones[0][i] = ones[1][i] = 0x3f803f80;
    UNROLL for (int n = 0; n < 8; n++) UNROLL for (int i = 0; i < 4; i++) d[n][i] = 0.0f;
    if (t == 0) {
        barrier_init(barrier, 1);
        if (how != 101) barriers_published();                     /* a barrier that copies do not know of */
    }
    __syncthreads();
    if (t == 0) {
        barrier_expect(barrier, how == 102 ? 2 * BAND : BAND);    /* bytes that nobody brings */
        if (how == 103) barrier_arrive(barrier);                  /* more than it expects */
        for (uint32_t i = 0; i < PIECES; i++)
            bulk_copy(room + i * (BAND / PIECES), a.in + i * (BAND / PIECES / 4), BAND / PIECES, barrier);
    }
    if (how != 104) barrier_wait(barrier, 0);                     /* what has not come yet is read */
    if (how == 105 || how == 106) {                               /* stored for products; and not told of */
        const uint4 one = { ones[0][0], ones[0][0], ones[0][0], ones[0][0] };
        for (uint32_t i = t * 16; i < BAND; i += WARPGROUP * 16) store_operand(room + BAND + i, one);
        if (how == 105) operands_published();
        named_sync<1>(0, WARPGROUP);
    }
    const uint32_t start = room + (how == 105 || how == 106 ? BAND : 0) + (how == 107 ? 128 : 0) + (how == 108 ? t / WARP * 2048 : 0);
    if (how != 109) product_begin();                              /* 107: inside a pattern; 108: another of each warp */
    for (int i = 0; i < 4; i++) product_n_major(d, ones[0], operand_at(start, 0, PATTERN_BYTES));
    product_commit();
    if (how == 110) ones[0][t % 4] = 0x7fff7fff;                  /* an operand is written while it is read */
    if (how == 111) d[0][0] = 1.0f;                               /* sums are written while they are made */
    if (how == 112) product_wait<1>();                            /* one group too few */
    if (how != 112 && how != 113) product_wait<0>();              /* 113: never */
    if (how == 114) {                                             /* written after product_begin */
        product_begin();
        d[1][1] = 0.0f;
        product_n_major(d, ones[1], operand_at(start, 0, PATTERN_BYTES));
        product_commit();
        product_wait<0>();
    }
    if (how == 115 && t < 64) named_arrive<1>(0, WARPGROUP);      /* half of those that are waited for, and nobody waits */
    float sum = 0.0f;
    UNROLL for (int n = 0; n < 8; n++) UNROLL for (int i = 0; i < 4; i++) sum += d[n][i];
    if (how == 112) product_wait<0>();
    if (how == 104) barrier_wait(barrier, 0);
    if (t < 64) a.out[t] = sum;
}

extern "C" status bad_launch(int how, float *out, const float *in, struct err *e)
{
    const bad a = { how, out, in };
    if (how >= 100) return launch("bad hopper", bad_hopper_kernel, dim3(1), WARPGROUP, 2 * BAND + 8, NULL, a, e);
    return launch("bad", bad_kernel, dim3(1), 64, 1024, NULL, a, e);
}
