/* Tiles of matrix products: up to BLOCK rows of activations times one panel of PANEL columns. */
#pragma once
#include "unpack.h"

#ifdef NATIVE

#define BLOCK 8 /* rows of a tile: 8 x 3 accumulators */

/* y[N][PANEL] += x[N][count] w[count/2][PANEL][2], two k at a time. */
#define GEMM_BF16(N)                                                                                                   \
    INLINE void gemm_bf16_##N(const bf16 *x, int64_t xs, const bf16 *w, int64_t count, float *y, int64_t ys) {         \
        __m512 acc[N][3];                                                                                              \
        EACH(i, N)                                                                                                     \
            EACH(v, 3) acc[i][v] = _mm512_loadu_ps(y + i * ys + 16 * v);                                               \
        for (int64_t k = 0; k < count; k += 2, w += 2 * PANEL) {                                                       \
            __m512bh w0 = (__m512bh)_mm512_loadu_si512(w), w1 = (__m512bh)_mm512_loadu_si512(w + 32),                  \
                     w2 = (__m512bh)_mm512_loadu_si512(w + 64);                                                        \
            EACH(i, N) {                                                                                               \
                int pair;                                                                                              \
                memcpy(&pair, x + i * xs + k, 4);                                                                      \
                __m512bh xi = (__m512bh)_mm512_set1_epi32(pair);                                                       \
                acc[i][0] = _mm512_dpbf16_ps(acc[i][0], xi, w0);                                                       \
                acc[i][1] = _mm512_dpbf16_ps(acc[i][1], xi, w1);                                                       \
                acc[i][2] = _mm512_dpbf16_ps(acc[i][2], xi, w2);                                                       \
            }                                                                                                          \
        }                                                                                                              \
        EACH(i, N)                                                                                                     \
            EACH(v, 3) _mm512_storeu_ps(y + i * ys + 16 * v, acc[i][v]);                                               \
    }

/* The same in float32, y[N][PANEL] += x[N][count] w[count][PANEL], in partial sums of SUM terms, so that each term is
 * rounded fewer times. */
#define GEMM_F32(N)                                                                                                    \
    INLINE void gemm_f32_##N(const float *x, int64_t xs, const float *w, int64_t count, float *y, int64_t ys) {        \
        __m512 acc[N][3];                                                                                              \
        EACH(i, N)                                                                                                     \
            EACH(v, 3) acc[i][v] = _mm512_loadu_ps(y + i * ys + 16 * v);                                               \
        for (int64_t k = 0; k < count;) {                                                                              \
            __m512 part[N][3];                                                                                         \
            EACH(i, N)                                                                                                 \
                EACH(v, 3) part[i][v] = _mm512_setzero_ps();                                                           \
            for (int64_t stop = k + SUM < count ? k + SUM : count; k < stop; k++, w += PANEL) {                        \
                __m512 w0 = _mm512_loadu_ps(w), w1 = _mm512_loadu_ps(w + 16), w2 = _mm512_loadu_ps(w + 32);            \
                EACH(i, N) {                                                                                           \
                    __m512 xi = _mm512_set1_ps(x[i * xs + k]);                                                         \
                    part[i][0] = _mm512_fmadd_ps(xi, w0, part[i][0]);                                                  \
                    part[i][1] = _mm512_fmadd_ps(xi, w1, part[i][1]);                                                  \
                    part[i][2] = _mm512_fmadd_ps(xi, w2, part[i][2]);                                                  \
                }                                                                                                      \
            }                                                                                                          \
            EACH(i, N)                                                                                                 \
                EACH(v, 3) acc[i][v] = _mm512_add_ps(acc[i][v], part[i][v]);                                           \
        }                                                                                                              \
        EACH(i, N)                                                                                                     \
            EACH(v, 3) _mm512_storeu_ps(y + i * ys + 16 * v, acc[i][v]);                                               \
    }
GEMM_BF16(1)
GEMM_BF16(2)
GEMM_BF16(3)
GEMM_BF16(4)
GEMM_BF16(5)
GEMM_BF16(6)
GEMM_BF16(7)
GEMM_BF16(8)
GEMM_F32(1)
GEMM_F32(2)
GEMM_F32(3)
GEMM_F32(4)

/* gemm_bf16_8 that also prefetches cache lines into the second-level cache, one for every k. */
static void gemm_prefetching(const bf16 *x, int64_t xs, const bf16 *w, int64_t count, float *y, int64_t ys,
                             const char *const *lines) {
    __m512 acc[BLOCK][3];
    EACH(i, BLOCK)
        EACH(v, 3) acc[i][v] = _mm512_loadu_ps(y + i * ys + 16 * v);
    for (int64_t k = 0; k < count; k += 2, w += 2 * PANEL) {
        _mm_prefetch(lines[k], _MM_HINT_T1);
        _mm_prefetch(lines[k + 1], _MM_HINT_T1);
        __m512bh w0 = (__m512bh)_mm512_loadu_si512(w), w1 = (__m512bh)_mm512_loadu_si512(w + 32),
                 w2 = (__m512bh)_mm512_loadu_si512(w + 64);
        EACH(i, BLOCK) {
            int pair;
            memcpy(&pair, x + i * xs + k, 4);
            __m512bh xi = (__m512bh)_mm512_set1_epi32(pair);
            acc[i][0] = _mm512_dpbf16_ps(acc[i][0], xi, w0);
            acc[i][1] = _mm512_dpbf16_ps(acc[i][1], xi, w1);
            acc[i][2] = _mm512_dpbf16_ps(acc[i][2], xi, w2);
        }
    }
    EACH(i, BLOCK)
        EACH(v, 3) _mm512_storeu_ps(y + i * ys + 16 * v, acc[i][v]);
}

/* y[n][PANEL] += x[n][count] w for up to BLOCK rows, in either element type. */
static void gemm(int n, const void *x, int64_t xs, const void *w, int64_t count, float *y, int64_t ys, int wide) {
    for (const float *row = x; wide && n > 0; n -= 4, row += 4 * xs, y += 4 * ys) switch (n) {
        case 1: gemm_f32_1(row, xs, w, count, y, ys); break;
        case 2: gemm_f32_2(row, xs, w, count, y, ys); break;
        case 3: gemm_f32_3(row, xs, w, count, y, ys); break;
        default: gemm_f32_4(row, xs, w, count, y, ys);
        }
    switch (wide ? 0 : n) {
    case 1: gemm_bf16_1(x, xs, w, count, y, ys); return;
    case 2: gemm_bf16_2(x, xs, w, count, y, ys); return;
    case 3: gemm_bf16_3(x, xs, w, count, y, ys); return;
    case 4: gemm_bf16_4(x, xs, w, count, y, ys); return;
    case 5: gemm_bf16_5(x, xs, w, count, y, ys); return;
    case 6: gemm_bf16_6(x, xs, w, count, y, ys); return;
    case 7: gemm_bf16_7(x, xs, w, count, y, ys); return;
    case 8: gemm_bf16_8(x, xs, w, count, y, ys); return;
    }
}

/* The same from NF4 codes of a whole panel, unpacked on the way: for few rows the unpacking then hides behind the sums.
 */
#define GEMM_NF4(N)                                                                                                    \
    INLINE void gemm_nf4_##N(const struct weight *w, int64_t panel, const bf16 *x, int64_t xs, float *y, int64_t ys) { \
        const __m512 table = _mm512_loadu_ps(NORMAL_FLOAT);                                                            \
        const uint8_t *codes = (const uint8_t *)w->data + panel * (w->k / 2) * PANEL;                                  \
        const float *scales = w->scales + panel * (w->k / w->group) * PANEL;                                           \
        __m512 acc[N][3];                                                                                              \
        EACH(i, N)                                                                                                     \
            EACH(v, 3) acc[i][v] = _mm512_loadu_ps(y + i * ys + 16 * v);                                               \
        for (int64_t k = 0; k < w->k; scales += PANEL) {                                                               \
            __m512 low[3], high[3];                                                                                    \
            EACH(v, 3) load_scales(scales + 16 * v, low + v, high + v);                                                \
            for (int64_t stop = k + w->group; k < stop; k += 2, codes += PANEL) {                                      \
                __m512bh pair[N];                                                                                      \
                EACH(i, N) {                                                                                           \
                    int both;                                                                                          \
                    memcpy(&both, x + i * xs + k, 4);                                                                  \
                    pair[i] = (__m512bh)_mm512_set1_epi32(both);                                                       \
                }                                                                                                      \
                EACH(v, 3) {                                                                                           \
                    __m512i code = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(codes + 16 * v)));              \
                    __m512bh wv = _mm512_cvtne2ps_pbh(                                                                 \
                        _mm512_mul_ps(_mm512_permutexvar_ps(_mm512_srli_epi32(code, 4), table), high[v]),              \
                        _mm512_mul_ps(_mm512_permutexvar_ps(code, table), low[v]));                                    \
                    EACH(i, N) acc[i][v] = _mm512_dpbf16_ps(acc[i][v], pair[i], wv);                                   \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
        EACH(i, N)                                                                                                     \
            EACH(v, 3) _mm512_storeu_ps(y + i * ys + 16 * v, acc[i][v]);                                               \
    }
GEMM_NF4(1)
GEMM_NF4(2)
GEMM_NF4(3)
GEMM_NF4(4)

/* y[n][PANEL] += x[n][k] of one NF4 panel, for one to four rows. */
INLINE void gemm_nf4(int64_t n, const struct weight *w, int64_t panel, const bf16 *x, int64_t xs, float *y,
                     int64_t ys) {
    switch (n) {
    case 1: gemm_nf4_1(w, panel, x, xs, y, ys); return;
    case 2: gemm_nf4_2(w, panel, x, xs, y, ys); return;
    case 3: gemm_nf4_3(w, panel, x, xs, y, ys); return;
    default: gemm_nf4_4(w, panel, x, xs, y, ys); return;
    }
}
#endif
