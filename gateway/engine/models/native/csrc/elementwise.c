/* RMS norm and SwiGLU. */
#include "common.h"

#ifdef NATIVE

/* h[rows][size] += delta[rows][ds] (unless null), then out[rows][size] = h / rms(h) * gain (RMSNorm, arXiv 1910.07467).
 */
void tunery_norm(float *h, const float *delta, int64_t ds, int64_t rows, int64_t size, const float *gain,
                 double epsilon, void *out, int64_t wide) {
#pragma omp parallel for num_threads(team()) schedule(static) if (rows > 16)
    for (int64_t i = 0; i < rows; i++) {
        float *row = h + i * size;
        __m512 sum = _mm512_setzero_ps();
        for (int64_t k = 0; k < size; k += 16) {
            __mmask16 live = size - k >= 16 ? 0xffff : (1u << (size - k)) - 1;
            __m512 v = _mm512_maskz_loadu_ps(live, row + k);
            if (delta) {
                v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(live, delta + i * ds + k));
                _mm512_mask_storeu_ps(row + k, live, v);
            }
            sum = _mm512_fmadd_ps(v, v, sum);
        }
        __m512 scale = _mm512_set1_ps(rms_scale(sum, size, epsilon));
        for (int64_t k = 0; k < size; k += 16) {
            __mmask16 live = size - k >= 16 ? 0xffff : (1u << (size - k)) - 1;
            __m512 v = _mm512_mul_ps(_mm512_mul_ps(_mm512_maskz_loadu_ps(live, row + k), scale),
                                     _mm512_maskz_loadu_ps(live, gain + k));
            if (wide) _mm512_mask_storeu_ps((float *)out + i * size + k, live, v);
            else _mm256_mask_storeu_epi16((bf16 *)out + i * size + k, live, (__m256i)_mm512_cvtneps_pbh(v));
        }
    }
}

/* out[rows][size] = silu(gate) * up (SwiGLU, arXiv 2002.05202), with gate and up at columns 0 and `offset` of
 * y[rows][ys]. */
void tunery_swiglu(const float *y, int64_t ys, int64_t offset, int64_t rows, int64_t size, void *out, int64_t wide) {
#pragma omp parallel for num_threads(team()) schedule(static) if (rows > 2)
    for (int64_t i = 0; i < rows; i++)
        for (int64_t k = 0; k < size; k += 16) {
            __mmask16 live = size - k >= 16 ? 0xffff : (1u << (size - k)) - 1;
            __m512 g = _mm512_maskz_loadu_ps(live, y + i * ys + k),
                   u = _mm512_maskz_loadu_ps(live, y + i * ys + offset + k);
            __m512 one = _mm512_set1_ps(1.0f);
            __m512 v =
                _mm512_mul_ps(_mm512_div_ps(g, _mm512_add_ps(one, exp16(_mm512_sub_ps(_mm512_setzero_ps(), g)))), u);
            if (wide) _mm512_mask_storeu_ps((float *)out + i * size + k, live, v);
            else _mm256_mask_storeu_epi16((bf16 *)out + i * size + k, live, (__m256i)_mm512_cvtneps_pbh(v));
        }
}
#endif
