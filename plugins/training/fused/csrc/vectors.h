/* Vectors of bfloat16 that all of training's native kernels read and write. Elements are bfloat16, sums float32. */
#pragma once
#include "../../../runtime/native.h"

#ifdef NATIVE
#define LANES 16

/* Mask of the lanes of a vector at `i` that lie before `n`. */
INLINE __mmask16 lanes(int64_t i, int64_t n) {
    return n - i >= LANES ? 0xFFFF : n <= i ? 0 : (__mmask16)((1u << (n - i)) - 1);
}

INLINE __m512 load(const bf16 *p, __mmask16 m) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, p)), 16));
}

INLINE void store(bf16 *p, __mmask16 m, __m512 v) { _mm256_mask_storeu_epi16(p, m, (__m256i)_mm512_cvtneps_pbh(v)); }

/* 1 / (1 + e^-x); the reciprocal is a 14-bit estimate refined by one step of Newton's method. */
INLINE __m512 logistic(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    __m512 d = _mm512_add_ps(one, exp16(_mm512_sub_ps(_mm512_setzero_ps(), x)));
    __m512 r = _mm512_rcp14_ps(d);
    return _mm512_mul_ps(r, _mm512_fnmadd_ps(d, r, _mm512_set1_ps(2.0f)));
}
#endif
