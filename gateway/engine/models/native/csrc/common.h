/* What all native kernels of the decoder share: sizes, the structs that Python fills in, and conversions between
 * bfloat16 and float32.
 *
 * Batch invariance: every row of every result is computed in an order that depends on nothing but that row. A sum runs
 * over k from the first to the last in the same pieces, whatever rows lie beside it and however many there are. So a
 * request's bits are the same alone, in a batch, with its prompt prefilled in chunks, and after its prefix was found in
 * the cache.
 *
 * Two element types, chosen by `wide`: bfloat16 (0) or float32 (1) for activations, weights and the KV cache. Sums are
 * always float32.
 */
#pragma once
#include "../../../../../plugins/runtime/native.h"

#ifdef NATIVE

#define PANEL 48 /* columns of a panel of weights: three vectors */
#define PAGE  16 /* tokens of a page of the KV cache: one vector of scores */
#define SUM   32 /* terms of a partial float32 sum before it is added to the total */

/* Loop i from 0 to n - 1, unrolled. */
#define EACH(i, n) _Pragma("GCC unroll 8") for (int i = 0; i < (n); i++)

enum format { BF16, F32, NF4, INT8 };

/* A linear layer's weight [n][k] in panels of PANEL outputs, the last one padded. `data` by format: bf16
 * [panels][k/2][PANEL][2]; f32 [panels][k][PANEL]; nf4 [panels][k/2][PANEL] bytes' worth of nibbles; int8
 * [panels][k/2][PANEL][2]. `scales`: nf4 [panels][k/group][PANEL], int8 [panels][PANEL]. `bias` [panels * PANEL] or
 * null. */
struct weight {
    const void *data;
    const float *scales;
    const float *bias;
    int64_t format, k, panels, group;
};

/* What an adapter does to one target module: y = gain * (W x + scale * B A x) + shift. a [rank][k]; b
 * [panels][rank][PANEL]; gain (DoRA) and shift (bias) [panels * PANEL] or null. In bfloat16 `rank` is even and b lies
 * in pairs, [panels][rank/2][PANEL][2], so that it is multiplied like a panel of the base's weight. */
struct lora {
    const void *a, *b;
    const float *gain, *shift;
    int64_t rank, k;
    double scale;
};

/* Rows [start, end) run through the adapter whose entries for the target modules of all layers are `table`, multiplied
 * by `weight`. */
struct segment {
    int64_t start, end;
    const struct lora *table;
    double weight;
};

/* Sixteen bfloat16 to float32, one, and back with rounding to the nearest even. */
INLINE __m512 widen(const bf16 *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p)), 16));
}

INLINE float widen1(bf16 v) {
    union {
        uint32_t u;
        float f;
    } both = {(uint32_t)v << 16};
    return both.f;
}

INLINE void narrow(bf16 *p, __m512 v) { _mm256_storeu_si256((void *)p, (__m256i)_mm512_cvtneps_pbh(v)); }

INLINE bf16 narrow1(float v) { return (bf16)_mm_extract_epi16((__m128i)_mm_cvtneps_pbh(_mm_set_ss(v)), 0); }

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* 1 / sqrt(mean of `size` squares + epsilon); NaN where their sum overflows, which would otherwise make a row of zeros.
 */
INLINE float rms_scale(__m512 squares, int64_t size, double epsilon) {
    float sum = _mm512_reduce_add_ps(squares);
    return sum < INFINITY ? 1.0f / sqrtf(sum / (float)size + (float)epsilon) : NAN;
}
#endif
