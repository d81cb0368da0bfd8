/* Quantized weights (NF4, int8) unpacked panel by panel, with their scales applied. */
#pragma once
#include "common.h"

#ifdef NATIVE

static const float NORMAL_FLOAT[16] = {/* QLoRA, arXiv 2305.14314, appendix E */
                                       -1.0f,
                                       -0.6961928009986877f,
                                       -0.5250730514526367f,
                                       -0.39491748809814453f,
                                       -0.28444138169288635f,
                                       -0.18477343022823334f,
                                       -0.09105003625154495f,
                                       0.0f,
                                       0.07958029955625534f,
                                       0.16093020141124725f,
                                       0.24611230194568634f,
                                       0.33791524171829224f,
                                       0.44070982933044434f,
                                       0.5626170039176941f,
                                       0.7229568362236023f,
                                       1.0f};

/* Scales of sixteen columns, twice each, as pairs of k lie in a vector: `low` of the first eight columns, `high` of the
 * others. */
INLINE void load_scales(const float *scales, __m512 *low, __m512 *high) {
    const __m512i first = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    __m512 s = _mm512_loadu_ps(scales);
    *low = _mm512_permutexvar_ps(first, s);
    *high = _mm512_permutexvar_ps(_mm512_add_epi32(first, _mm512_set1_epi32(8)), s);
}

/* Store two k of sixteen columns, given as pairs: as bfloat16 pairs, or one k after the other in float32. */
INLINE void store_pairs(void *out, int wide, int64_t pair, int v, __m512 low, __m512 high) {
    if (!wide) {
        _mm512_storeu_si512((bf16 *)out + (pair * PANEL + 16 * v) * 2, (__m512i)_mm512_cvtne2ps_pbh(high, low));
        return;
    }
    const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    float *to = (float *)out + 2 * pair * PANEL + 16 * v;
    _mm512_storeu_ps(to, _mm512_permutex2var_ps(low, even, high));
    _mm512_storeu_ps(to + PANEL, _mm512_permutex2var_ps(low, _mm512_add_epi32(even, _mm512_set1_epi32(1)), high));
}

static void unpack_nf4(const struct weight *w, int64_t panel, int64_t from, int64_t to, void *out, int wide) {
    const __m512 table = _mm512_loadu_ps(NORMAL_FLOAT);
    const uint8_t *codes = (const uint8_t *)w->data + panel * (w->k / 2) * PANEL;
    const float *scales = w->scales + panel * (w->k / w->group) * PANEL;
    for (int64_t k = from; k < to;) {
        int64_t stop = (k / w->group + 1) * w->group;
        if (stop > to) stop = to;
        for (int v = 0; v < 3; v++) {
            __m512 low, high;
            load_scales(scales + (k / w->group) * PANEL + 16 * v, &low, &high);
            for (int64_t pair = k / 2; pair < stop / 2; pair++) {
                __m512i code = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(codes + pair * PANEL + 16 * v)));
                store_pairs(out, wide, pair - from / 2, v, _mm512_mul_ps(_mm512_permutexvar_ps(code, table), low),
                            _mm512_mul_ps(_mm512_permutexvar_ps(_mm512_srli_epi32(code, 4), table), high));
            }
        }
        k = stop;
    }
}

static void unpack_int8(const struct weight *w, int64_t panel, int64_t from, int64_t to, void *out, int wide) {
    const int8_t *codes = (const int8_t *)w->data + panel * w->k * PANEL;
    for (int v = 0; v < 3; v++) {
        __m512 low, high;
        load_scales(w->scales + panel * PANEL + 16 * v, &low, &high);
        for (int64_t pair = from / 2; pair < to / 2; pair++) {
            const int8_t *at = codes + (pair * PANEL + 16 * v) * 2;
            __m512 a = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)at)));
            __m512 b = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)(at + 16))));
            store_pairs(out, wide, pair - from / 2, v, _mm512_mul_ps(a, low), _mm512_mul_ps(b, high));
        }
    }
}

/* Columns of `panel` for k in [from, to) as gemm reads them: in place where they are stored so, otherwise unpacked to
 * `scratch`. */
static const void *unpack(const struct weight *w, int64_t panel, int64_t from, int64_t to, void *scratch, int wide) {
    switch (w->format) {
    case BF16: return (const bf16 *)w->data + (panel * w->k + from) * PANEL;
    case F32: return (const float *)w->data + (panel * w->k + from) * PANEL;
    case NF4: unpack_nf4(w, panel, from, to, scratch, wide); return scratch;
    default: unpack_int8(w, panel, from, to, scratch, wide); return scratch;
    }
}
#endif
