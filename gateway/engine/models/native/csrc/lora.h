/* LoRA on the rows of many adapters at once: y += scale * B (A x), as shrink (A x) and expand (B s), after Punica's and
 * S-LoRA's kernels (arXiv 2310.18547 and 2311.03285); then DoRA's gain and trained biases. linear.c calls these around
 * the base's own products. */
#pragma once
#include "gemm.h"

#ifdef NATIVE

/* One call of tunery_linear, as its threads read it; the fields are its arguments, `element` the bytes of an
 * activation. */
struct linear {
    const struct weight *w;
    const char *x;
    float *y, *s;
    const struct segment *segments;
    int64_t targets, xs, rows, ys, count, first, following, ranks, wide, element;
};

/* A thread's share of a call: panels [low, high) of all targets laid end to end, and rows [begin, end) of all segments
 * laid end to end. */
struct part {
    int64_t low, high, begin, end;
};

INLINE int64_t length_of(const struct segment *segment) { return segment->end - segment->start; }

/* What segment g's adapter adds to target t of this call. */
INLINE const struct lora *lora_of(const struct linear *c, int64_t g, int64_t t) {
    return c->segments[g].table + c->first + t;
}

/* s[N][RANKS] = x[N][k] a[RANKS][k]^T: dot products, each in sixteen lanes that are added up in a fixed tree. */
#define SHRINK(N, RANKS)                                                                                               \
    INLINE void shrink_narrow_##N##_##RANKS(const bf16 *x, int64_t xs, const bf16 *a, int64_t k, float *s,             \
                                            int64_t ss) {                                                              \
        __m512 acc[N][RANKS];                                                                                          \
        EACH(i, N)                                                                                                     \
            EACH(j, RANKS) acc[i][j] = _mm512_setzero_ps();                                                            \
        for (int64_t at = 0; at < k; at += 32) {                                                                       \
            __mmask32 live = k - at >= 32 ? ~0u : (1u << (k - at)) - 1;                                                \
            __m512bh row[RANKS];                                                                                       \
            EACH(j, RANKS) row[j] = (__m512bh)_mm512_maskz_loadu_epi16(live, a + j * k + at);                          \
            EACH(i, N) {                                                                                               \
                __m512bh xi = (__m512bh)_mm512_maskz_loadu_epi16(live, x + i * xs + at);                               \
                EACH(j, RANKS) acc[i][j] = _mm512_dpbf16_ps(acc[i][j], xi, row[j]);                                    \
            }                                                                                                          \
        }                                                                                                              \
        EACH(i, N)                                                                                                     \
            EACH(j, RANKS) s[i * ss + j] = _mm512_reduce_add_ps(acc[i][j]);                                            \
    }                                                                                                                  \
    INLINE void shrink_wide_##N##_##RANKS(const float *x, int64_t xs, const float *a, int64_t k, float *s,             \
                                          int64_t ss) {                                                                \
        __m512 acc[N][RANKS];                                                                                          \
        EACH(i, N)                                                                                                     \
            EACH(j, RANKS) acc[i][j] = _mm512_setzero_ps();                                                            \
        for (int64_t at = 0; at < k; at += 16) {                                                                       \
            __mmask16 live = k - at >= 16 ? 0xffff : (1u << (k - at)) - 1;                                             \
            __m512 row[RANKS];                                                                                         \
            EACH(j, RANKS) row[j] = _mm512_maskz_loadu_ps(live, a + j * k + at);                                       \
            EACH(i, N) {                                                                                               \
                __m512 xi = _mm512_maskz_loadu_ps(live, x + i * xs + at);                                              \
                EACH(j, RANKS) acc[i][j] = _mm512_fmadd_ps(xi, row[j], acc[i][j]);                                     \
            }                                                                                                          \
        }                                                                                                              \
        EACH(i, N)                                                                                                     \
            EACH(j, RANKS) s[i * ss + j] = _mm512_reduce_add_ps(acc[i][j]);                                            \
    }
SHRINK(1, 1)
SHRINK(1, 8)
SHRINK(4, 1)
SHRINK(4, 4)

/* s[n][rank] = x[n][k] a[rank][k]^T for n rows of one adapter. */
static void shrink(int64_t n, const void *x, int64_t xs, const void *a, int64_t rank, int64_t k, float *s, int64_t ss,
                   int wide) {
#define TILE(N, RANKS)                                                                                                 \
    (wide ? shrink_wide_##N##_##RANKS((const float *)x + i * xs, xs, (const float *)a + j * k, k, s + i * ss + j, ss)  \
          : shrink_narrow_##N##_##RANKS((const bf16 *)x + i * xs, xs, (const bf16 *)a + j * k, k, s + i * ss + j, ss))
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        int64_t j = 0;
        for (; j + 4 <= rank; j += 4) TILE(4, 4);
        for (; j < rank; j++) TILE(4, 1);
    }
    for (; i < n; i++) {
        int64_t j = 0;
        for (; j + 8 <= rank; j += 8) TILE(1, 8);
        for (; j < rank; j++) TILE(1, 1);
    }
#undef TILE
}

/* y = y * gain + shift of one panel for n rows; gain and shift [PANEL] may be null. */
static void scale_and_shift(int64_t n, const float *gain, const float *shift, float *y, int64_t ys) {
    if (!gain && !shift) return;
    for (int64_t i = 0; i < n; i++)
        for (int v = 0; v < 3; v++) {
            __m512 value = _mm512_loadu_ps(y + i * ys + 16 * v);
            if (gain) value = _mm512_mul_ps(value, _mm512_loadu_ps(gain + 16 * v));
            if (shift) value = _mm512_add_ps(value, _mm512_loadu_ps(shift + 16 * v));
            _mm512_storeu_ps(y + i * ys + 16 * v, value);
        }
}

/* s = scale * A x for a thread's share of the segments' rows, in the element type and with the strides that lora_expand
 * reads. */
static void lora_shrink(const struct linear *c, const struct part *p) {
    int64_t base = 0, width = c->targets * c->ranks;
    for (int64_t g = 0; g < c->count; base += length_of(c->segments + g), g++) {
        const struct segment *segment = c->segments + g;
        int64_t low = most(p->begin, base), high = least(p->end, base + length_of(segment));
        for (int64_t t = 0; t < c->targets && low < high; t++) {
            const struct lora *lora = lora_of(c, g, t);
            if (!lora->rank) continue;
            float *s = c->s + low * width + t * c->ranks;
            const char *x = c->x + (segment->start + low - base) * c->xs * c->element;
            shrink(high - low, x, c->xs, lora->a, lora->rank, c->w[t].k, s, width, c->wide);
            __m512 scale = _mm512_set1_ps((float)(lora->scale * segment->weight));
            for (int64_t i = 0; i < high - low; i++, s += width)
                for (int64_t j = 0; j < lora->rank; j += 16) {
                    __mmask16 live = lora->rank - j >= 16 ? 0xffff : (1u << (lora->rank - j)) - 1;
                    __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(live, s + j), scale);
                    /* Narrowed in place: what is overwritten has been read. */
                    if (c->wide) _mm512_mask_storeu_ps(s + j, live, v);
                    else _mm256_mask_storeu_epi16((bf16 *)s + j, live, (__m256i)_mm512_cvtneps_pbh(v));
                }
        }
    }
}

/* y += B s in panel `panel` of target t, at `y`, for every segment's rows. */
INLINE void lora_expand(const struct linear *c, int64_t t, int64_t panel, float *y) {
    int64_t base = 0, width = c->targets * c->ranks, stride = c->wide ? width : 2 * width;
    for (int64_t g = 0; g < c->count; base += length_of(c->segments + g), g++) {
        const struct lora *lora = lora_of(c, g, t);
        int64_t start = c->segments[g].start, length = length_of(c->segments + g);
        const float *s = c->s + base * width + t * c->ranks;
        const char *b = (const char *)lora->b + panel * lora->rank * PANEL * c->element;
        for (int64_t i = 0; lora->rank && i < length; i += BLOCK)
            gemm(least(length - i, BLOCK), s + i * width, stride, b, lora->rank, y + (start + i) * c->ys, c->ys,
                 c->wide);
    }
}

/* DoRA's gains, the adapters' biases, and the base's bias for the rows that no adapter changes, in panel `panel` of
 * target t, at `y`. */
static void gain_and_bias(const struct linear *c, int64_t t, int64_t panel, float *y) {
    const float *bias = c->w[t].bias ? c->w[t].bias + panel * PANEL : NULL;
    int64_t done = 0;
    for (int64_t g = 0; g < c->count; g++) {
        const struct lora *lora = lora_of(c, g, t);
        if (!lora->gain && !lora->shift) continue;
        int64_t start = c->segments[g].start, end = c->segments[g].end;
        const float *gain = lora->gain ? lora->gain + panel * PANEL : NULL,
                    *shift = lora->shift ? lora->shift + panel * PANEL : NULL;
        scale_and_shift(start - done, NULL, bias, y + done * c->ys, c->ys);
        scale_and_shift(end - start, gain, shift, y + start * c->ys, c->ys);
        done = end;
    }
    scale_and_shift(c->rows - done, NULL, bias, y + done * c->ys, c->ys);
}
#endif
