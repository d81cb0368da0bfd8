/* Causal attention over the paged KV cache; see rope.c for the layout of a page. */
#include "common.h"

#ifdef NATIVE

#define ATTEND 6 /* rows of a tile of attention */

/* out[N][PAGE] = the dot products of N queries with the keys of one page. */
#define SCORES(N)                                                                                                      \
    INLINE void scores_##N(const void *const *q, const void *keys, int64_t size, float *out, int64_t os, int wide) {   \
        __m512 acc[N];                                                                                                 \
        EACH(i, N) acc[i] = _mm512_setzero_ps();                                                                       \
        if (wide) {                                                                                                    \
            for (int64_t k = 0; k < size; k++) {                                                                       \
                __m512 key = _mm512_loadu_ps((const float *)keys + k * PAGE);                                          \
                EACH(i, N) acc[i] = _mm512_fmadd_ps(_mm512_set1_ps(((const float *)q[i])[k]), key, acc[i]);            \
            }                                                                                                          \
        } else {                                                                                                       \
            for (int64_t k = 0; k < size; k += 2) {                                                                    \
                __m512bh key = (__m512bh)_mm512_loadu_si512((const bf16 *)keys + k * PAGE);                            \
                EACH(i, N) {                                                                                           \
                    int pair;                                                                                          \
                    memcpy(&pair, (const bf16 *)q[i] + k, 4);                                                          \
                    acc[i] = _mm512_dpbf16_ps(acc[i], (__m512bh)_mm512_set1_epi32(pair), key);                         \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
        EACH(i, N) _mm512_storeu_ps(out + i * os, acc[i]);                                                             \
    }

/* acc[N][V] += p[N][tokens] values[tokens][16 V], the weighted sum of values. */
#define WEIGHTED(N, V)                                                                                                 \
    INLINE void weighted_##N##_##V(const float *p, int64_t ps, const void *values, int64_t vs, int64_t tokens,         \
                                   __m512 acc[][4], int wide) {                                                        \
        for (int64_t j = 0; j < tokens; j++) {                                                                         \
            __m512 value[V];                                                                                           \
            EACH(v, V)                                                                                                 \
                value[v] = wide ? _mm512_loadu_ps((const float *)values + j * vs + 16 * v)                             \
                                : widen((const bf16 *)values + j * vs + 16 * v);                                       \
            EACH(i, N) {                                                                                               \
                __m512 weight = _mm512_set1_ps(p[i * ps + j]);                                                         \
                EACH(v, V) acc[i][v] = _mm512_fmadd_ps(weight, value[v], acc[i][v]);                                   \
            }                                                                                                          \
        }                                                                                                              \
    }
SCORES(1)
SCORES(2)
SCORES(3)
SCORES(4)
SCORES(5)
SCORES(6)
WEIGHTED(1, 4)
WEIGHTED(2, 4)
WEIGHTED(3, 4)
WEIGHTED(4, 4)
WEIGHTED(5, 4)
WEIGHTED(6, 4)
WEIGHTED(1, 1)
WEIGHTED(2, 1)
WEIGHTED(3, 1)
WEIGHTED(4, 1)
WEIGHTED(5, 1)
WEIGHTED(6, 1)

/* Rows [start, end) are the newest tokens of one sequence whose `length` tokens, those rows included, lie in `pages`.
 */
struct span {
    int64_t start, end, length;
    const int32_t *pages;
};

/* One call of tunery_attend, as its threads read it. */
struct attention {
    const void *q, *keys, *values;
    void *out;
    int64_t heads, kv_heads, size, window, wide;
    double scale;
};

/* Exponentials in place of the scores of tokens [from, to), of which [first, last] are attended to and the others
 * become zero; their sum. */
static float softmax(float *p, int64_t from, int64_t to, int64_t first, int64_t last, float scale) {
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    __m512 top = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    for (int64_t j = from; j < to; j += 16) {
        __m512i at = _mm512_add_epi32(lanes, _mm512_set1_epi32(j));
        __mmask16 live = _mm512_cmpge_epi32_mask(at, _mm512_set1_epi32(first)) &
                         _mm512_cmple_epi32_mask(at, _mm512_set1_epi32(last));
        __m512 v =
            _mm512_mask_mul_ps(_mm512_set1_ps(-INFINITY), live, _mm512_loadu_ps(p + j - from), _mm512_set1_ps(scale));
        _mm512_storeu_ps(p + j - from, v);
        top = _mm512_max_ps(top, v);
    }
    __m512 peak = _mm512_set1_ps(_mm512_reduce_max_ps(top));
    for (int64_t j = from; j < to; j += 16) {
        __m512 v = exp16(_mm512_sub_ps(_mm512_loadu_ps(p + j - from), peak));
        _mm512_storeu_ps(p + j - from, v);
        sum = _mm512_add_ps(sum, v);
    }
    return _mm512_reduce_add_ps(sum);
}

/* Up to ATTEND rows that share key-value head `kv`: row r is its query head r % group of the span's token r / group. */
static void attend(const struct attention *a, const struct span *span, int64_t kv, int64_t row, int n, float *p) {
    int64_t group = a->heads / a->kv_heads, size = a->size, element = a->wide ? 4 : 2,
            past = span->length - (span->end - span->start);
    int64_t newest = past + (row + n - 1) / group, oldest = past + row / group, begin = 0,
            stride = (span->length + PAGE - 1) / PAGE * PAGE;
    if (a->window && oldest - a->window + 1 > 0) begin = (oldest - a->window + 1) / PAGE * PAGE;
    const void *q[ATTEND];
    for (int i = 0; i < n; i++)
        q[i] = (const char *)a->q +
               (((span->start + (row + i) / group) * a->heads + kv * group + (row + i) % group) * size) * element;
    for (int64_t j = begin; j <= newest; j += PAGE) {
        const void *keys =
            (const char *)a->keys + ((int64_t)span->pages[j / PAGE] * a->kv_heads + kv) * size * PAGE * element;
#define CASE(N)                                                                                                        \
    case N:                                                                                                            \
        if (a->wide) scores_##N(q, keys, size, p + j - begin, stride, 1);                                              \
        else scores_##N(q, keys, size, p + j - begin, stride, 0);                                                      \
        break;
        switch (n) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) }
#undef CASE
    }
    float total[ATTEND];
    int64_t end = newest / PAGE * PAGE + PAGE;
    for (int i = 0; i < n; i++) {
        int64_t own = past + (row + i) / group;
        total[i] = softmax(p + i * stride, begin, end, a->window && own - a->window + 1 > 0 ? own - a->window + 1 : 0,
                           own, (float)a->scale);
    }
    int vectors = size % 64 ? 1 : 4;
    for (int64_t d = 0; d < size; d += 16 * vectors) {
        __m512 acc[ATTEND][4];
        for (int i = 0; i < n; i++)
            for (int v = 0; v < vectors; v++) acc[i][v] = _mm512_setzero_ps();
        for (int64_t j = begin; j <= newest; j += PAGE) {
            int64_t tokens = newest + 1 - j < PAGE ? newest + 1 - j : PAGE;
            const void *values = (const char *)a->values +
                                 (((int64_t)span->pages[j / PAGE] * a->kv_heads + kv) * size * PAGE + d) * element;
#define CASE(N)                                                                                                        \
    case N:                                                                                                            \
        if (vectors == 1) weighted_##N##_1(p + j - begin, stride, values, size, tokens, acc, a->wide);                 \
        else if (a->wide) weighted_##N##_4(p + j - begin, stride, values, size, tokens, acc, 1);                       \
        else weighted_##N##_4(p + j - begin, stride, values, size, tokens, acc, 0);                                    \
        break;
            switch (n) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) }
#undef CASE
        }
        for (int i = 0; i < n; i++) {
            __m512 share = _mm512_set1_ps(1.0f / total[i]);
            int64_t to = ((span->start + (row + i) / group) * a->heads + kv * group + (row + i) % group) * size + d;
            for (int v = 0; v < vectors; v++) {
                __m512 value = _mm512_mul_ps(acc[i][v], share);
                if (a->wide) _mm512_storeu_ps((float *)a->out + to + 16 * v, value);
                else narrow((bf16 *)a->out + to + 16 * v, value);
            }
        }
    }
}

/* Causal attention over the pages of the KV cache (PagedAttention, arXiv 2309.06180) with grouped queries (arXiv
 * 2305.13245), within a sliding window of `window` tokens unless that is 0. out, q: [rows][heads][size]. */
void tunery_attend(const struct span *spans, int64_t count, const void *q, const void *keys, const void *values,
                   int64_t heads, int64_t kv_heads, int64_t size, double scale, int64_t window, void *out,
                   int64_t wide) {
    const struct attention a = {q, keys, values, out, heads, kv_heads, size, window, wide, scale};
    int64_t longest = 0, group = heads / kv_heads, tiles = 0;
    for (int64_t s = 0; s < count; s++) {
        if (spans[s].length > longest) longest = spans[s].length;
        tiles += ((spans[s].end - spans[s].start) * group + ATTEND - 1) / ATTEND * kv_heads;
    }
#pragma omp parallel num_threads(team())
    {
        float *p = aligned_alloc(64, ATTEND * ((longest + PAGE - 1) / PAGE * PAGE) * sizeof(float));
        int64_t s = 0, before = 0;
#pragma omp for schedule(dynamic, 4)
        for (int64_t tile = 0; tile < tiles; tile++) {
            if (tile < before) s = 0, before = 0;
            int64_t rows, each;
            for (;;) {
                rows = (spans[s].end - spans[s].start) * group, each = (rows + ATTEND - 1) / ATTEND;
                if (tile < before + each * kv_heads) break;
                before += each * kv_heads, s++;
            }
            int64_t kv = (tile - before) / each, row = (tile - before) % each * ATTEND;
            attend(&a, spans + s, kv, row, rows - row < ATTEND ? rows - row : ATTEND, p);
        }
        free(p);
    }
}
#endif
