/* Causal attention over packed sequences that may share prefixes, forward and backward; attention.py has the torch
 * version.
 *
 * One sequence and one group of heads is computed by one thread in one order, and gradients of shared tokens are summed
 * in the order of the sequences, so results do not depend on the number of threads.
 */
#include "vectors.h"

#ifdef NATIVE
#define TILE   6  /* rows of a tile of sums: 6 x 4 vectors fill the registers */
#define PADDED 32 /* rows of scores are padded to a multiple of this */

/* c [rows][16 * vectors] = (or += with `add`) the sum over p in [from, to) of a[row][p] * b[p], where elements of a and
 * b are pairs of bfloat16. Strides: `ar` pairs a row and `ap` a step of a, `bp` a step of b, `cr` floats a row of c;
 * `rows` is 1 to TILE. */
INLINE void tile(const uint32_t *a, int64_t ar, int64_t ap, const uint32_t *b, int64_t bp, float *c, int64_t cr,
                 int64_t rows, const int vectors, int64_t from, int64_t to, const int add) {
    __m512 sum[TILE][4];
    const uint32_t *left[TILE];
    for (int r = 0; r < TILE; r++) {
        left[r] = a + (r < rows ? r : rows - 1) * ar;
        for (int n = 0; n < vectors; n++)
            sum[r][n] = add ? _mm512_loadu_ps(c + (r < rows ? r : rows - 1) * cr + 16 * n) : _mm512_setzero_ps();
    }
    for (int64_t p = from; p < to; p++) {
        __m512bh right[4];
        for (int n = 0; n < vectors; n++) right[n] = (__m512bh)_mm512_loadu_si512(b + p * bp + 16 * n);
        for (int r = 0; r < TILE; r++) {
            const __m512bh pair = (__m512bh)_mm512_set1_epi32((int)left[r][p * ap]);
            for (int n = 0; n < vectors; n++) sum[r][n] = _mm512_dpbf16_ps(sum[r][n], pair, right[n]);
        }
    }
    for (int64_t r = 0; r < rows; r++)
        for (int n = 0; n < vectors; n++) _mm512_storeu_ps(c + r * cr + 16 * n, sum[r][n]);
}

/* The same over `columns` (a multiple of PADDED) of b and c. */
static void product(const uint32_t *a, int64_t ar, int64_t ap, const uint32_t *b, int64_t bp, float *c, int64_t cr,
                    int64_t rows, int64_t columns, int64_t from, int64_t to, int add) {
    int64_t n = 0;
    for (; n + 64 <= columns; n += 64)
        if (add) tile(a, ar, ap, b + n, bp, c + n, cr, rows, 4, from, to, 1);
        else tile(a, ar, ap, b + n, bp, c + n, cr, rows, 4, from, to, 0);
    if (n < columns) {
        if (add) tile(a, ar, ap, b + n, bp, c + n, cr, rows, 2, from, to, 1);
        else tile(a, ar, ap, b + n, bp, c + n, cr, rows, 2, from, to, 0);
    }
}

/* Row index[j] of `from`, or row j where `index` is null; rows are `stride` elements apart. */
INLINE const bf16 *at(const bf16 *from, int64_t stride, const int64_t *index, int64_t j) {
    return from + (index ? index[j] : j) * stride;
}

/* Transpose `rows` rows of 2 * pairs elements: to[p][j] is the p-th pair of row j, `to` is [pairs][padded]. */
static void pack_columns(const bf16 *from, int64_t stride, const int64_t *index, int64_t rows, int64_t padded,
                         int64_t pairs, uint32_t *to) {
    for (int64_t j = 0; j < padded; j++)
        for (int64_t p = 0; p < pairs; p++) {
            uint32_t pair = 0;
            if (j < rows) memcpy(&pair, at(from, stride, index, j) + 2 * p, sizeof pair);
            to[p * padded + j] = pair;
        }
}

/* Pair up neighbouring rows of `width` elements: to[j / 2][c] is element c of rows j and j + 1, `to` is [padded /
 * 2][width]. */
static void pack_row_pairs(const bf16 *from, int64_t stride, const int64_t *index, int64_t rows, int64_t padded,
                           int64_t width, uint32_t *to) {
    for (int64_t j = 0; j < padded; j += 2)
        for (int64_t c = 0; c < width; c += LANES) {
            const __m256i none = _mm256_setzero_si256();
            __m256i low = j < rows ? _mm256_loadu_si256((const void *)(at(from, stride, index, j) + c)) : none;
            __m256i high = j + 1 < rows ? _mm256_loadu_si256((const void *)(at(from, stride, index, j + 1) + c)) : none;
            _mm512_storeu_si512(
                to + j / 2 * width + c,
                _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16)));
        }
}

static void round_rows(const float *from, int64_t width, int64_t rows, bf16 *to, int64_t stride) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < width; c += LANES)
            store(to + r * stride + c, 0xFFFF, _mm512_loadu_ps(from + r * width + c));
}

/* Attention weights: the softmax of the first `seen` of `padded` scores, times `scale`; the others are zero. */
static void softmax(const float *scores, bf16 *to, int64_t seen, int64_t padded, float scale) {
    const __m512 factor = _mm512_set1_ps(scale);
    __m512 most = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < seen; i += LANES) {
        __mmask16 m = lanes(i, seen);
        most = _mm512_mask_max_ps(most, m, most, _mm512_mul_ps(_mm512_maskz_loadu_ps(m, scores + i), factor));
    }
    const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(most));
    for (int64_t i = 0; i < seen; i += LANES) {
        __mmask16 m = lanes(i, seen);
        sum =
            _mm512_mask_add_ps(sum, m, sum, exp16(_mm512_fmsub_ps(_mm512_maskz_loadu_ps(m, scores + i), factor, top)));
    }
    const __m512 part = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(sum));
    for (int64_t i = 0; i < padded; i += LANES) {
        __mmask16 live = i < seen ? lanes(i, seen) : 0;
        __m512 e = exp16(_mm512_fmsub_ps(_mm512_maskz_loadu_ps(live, scores + i), factor, top));
        store(to + i, 0xFFFF, _mm512_maskz_mul_ps(live, e, part));
    }
}

/* The gradient by the scores of `softmax`, where `grads` is the gradient by the weights. */
static void softmax_backward(const float *grads, const bf16 *weights, bf16 *to, int64_t seen, int64_t padded,
                             float scale) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < seen; i += LANES) {
        __mmask16 m = lanes(i, seen);
        sum = _mm512_fmadd_ps(load(weights + i, m), _mm512_maskz_loadu_ps(m, grads + i), sum);
    }
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum)), factor = _mm512_set1_ps(scale);
    for (int64_t i = 0; i < padded; i += LANES) {
        __mmask16 live = i < seen ? lanes(i, seen) : 0;
        __m512 p = _mm512_mul_ps(load(weights + i, live), factor);
        store(to + i, 0xFFFF,
              _mm512_maskz_mul_ps(live, p, _mm512_sub_ps(_mm512_maskz_loadu_ps(live, grads + i), mean)));
    }
}

/* Packed sequences: where each sequence's own tokens start and how many there are (`length`); the tokens that its last
 * one attends to, at index[first] to index[first + seen - 1], its own last; and where its attention weights
 * [heads][length][padded(seen)] are. */
struct sequences {
    const int64_t *start, *length, *seen, *first, *index, *weights;
    int64_t count, tokens, heads, groups, size;
};

#define PAIRS(x) ((const uint32_t *)(const void *)(x))

INLINE int64_t padded_to(int64_t n) { return (n + PADDED - 1) / PADDED * PADDED; }

/* Causal attention of each sequence to its own tokens and its prefix: q, out [T][heads][size], k, v [T][groups][size],
 * where `groups` is the number of key-value heads and size a multiple of PADDED. The attention weights are kept for the
 * backward pass. */
void tunery_attend(const bf16 *q, const bf16 *k, const bf16 *v, bf16 *out, bf16 *weights,
                   const struct sequences *sequences, double scale) {
    const int64_t heads = sequences->heads, groups = sequences->groups, size = sequences->size, wide = heads * size,
                  narrow = groups * size;
#pragma omp parallel for num_threads(team()) schedule(dynamic)
    for (int64_t item = 0; item < sequences->count * groups; item++) {
        const int64_t row = item / groups, group = item % groups, start = sequences->start[row],
                      length = sequences->length[row];
        const int64_t context = sequences->seen[row], before = context - length, padded = padded_to(context);
        const int64_t *index = sequences->index + sequences->first[row];
        uint32_t *keys = aligned_alloc(64, (size_t)(padded * size * 4)), *values = keys + padded * size / 2;
        float *sums = aligned_alloc(64, (size_t)(TILE * (padded + size) * 4)), *seen = sums + TILE * padded;
        pack_columns(k + group * size, narrow, index, context, padded, size / 2, keys);
        pack_row_pairs(v + group * size, narrow, index, context, padded, size, values);
        for (int64_t head = group * (heads / groups); head < (group + 1) * (heads / groups); head++) {
            bf16 *mine = weights + sequences->weights[row] + head * length * padded;
            for (int64_t i = 0; i < length; i += TILE) {
                const int64_t some = length - i < TILE ? length - i : TILE, columns = padded_to(before + i + some);
                product(PAIRS(q + (start + i) * wide + head * size), wide / 2, 1, keys, padded, sums, padded, some,
                        columns, 0, size / 2, 0);
                for (int64_t r = 0; r < some; r++)
                    softmax(sums + r * padded, mine + (i + r) * padded, before + i + r + 1, padded, (float)scale);
                product(PAIRS(mine + i * padded), padded / 2, 1, values, size, seen, size, some, size, 0, columns / 2,
                        0);
                round_rows(seen, size, some, out + (start + i) * wide + head * size, wide);
            }
        }
        free(keys);
        free(sums);
    }
}

/* One group of to [tokens][groups][size]: each token's gradients from all sequences that attend to it, summed in their
 * order. */
static void gather(const float *partials, const struct sequences *sequences, int64_t group, bf16 *to) {
    const int64_t size = sequences->size;
    float *sums = aligned_alloc(64, (size_t)(sequences->tokens * size * 4));
    memset(sums, 0, (size_t)(sequences->tokens * size * 4));
    for (int64_t row = 0; row < sequences->count; row++) {
        const float *from =
            partials + (sequences->first[row] * sequences->groups + group * sequences->seen[row]) * size;
        for (int64_t j = 0; j < sequences->seen[row]; j++) {
            float *sum = sums + sequences->index[sequences->first[row] + j] * size;
            for (int64_t c = 0; c < size; c += LANES)
                _mm512_storeu_ps(sum + c,
                                 _mm512_add_ps(_mm512_loadu_ps(sum + c), _mm512_loadu_ps(from + j * size + c)));
        }
    }
    round_rows(sums, size, sequences->tokens, to + group * size, sequences->groups * size);
    free(sums);
}

/* The gradients of tunery_attend by q, k and v, where `grad` is the gradient by its output. */
void tunery_attend_backward(const bf16 *grad, const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *weights,
                            bf16 *grad_q, bf16 *grad_k, bf16 *grad_v, const struct sequences *sequences, double scale) {
    const int64_t heads = sequences->heads, groups = sequences->groups, size = sequences->size, wide = heads * size,
                  narrow = groups * size;
    const int64_t last = sequences->count - 1, whole = (sequences->first[last] + sequences->seen[last]) * narrow;
    float *partials = aligned_alloc(64, (size_t)(2 * whole * 4));
#pragma omp parallel for num_threads(team()) schedule(dynamic)
    for (int64_t item = 0; item < sequences->count * groups; item++) {
        const int64_t row = item / groups, group = item % groups, start = sequences->start[row],
                      length = sequences->length[row];
        const int64_t context = sequences->seen[row], before = context - length, padded = padded_to(context),
                      padded_own = padded_to(length);
        const int64_t *index = sequences->index + sequences->first[row];
        uint32_t *values = aligned_alloc(64, (size_t)((padded + padded_own) * size * 4)),
                 *keys = values + padded * size / 2;
        uint32_t *queries = keys + padded * size / 2, *grads = queries + padded_own * size / 2;
        uint32_t *down = aligned_alloc(64, (size_t)(padded_own * padded / 2 * 4));
        bf16 *scores = aligned_alloc(64, (size_t)(padded_own * padded * 2));
        float *sums = aligned_alloc(64, (size_t)(TILE * (padded + size) * 4)), *part = sums + TILE * padded;
        float *grad_keys = partials + (sequences->first[row] * groups + group * context) * size,
              *grad_values = grad_keys + whole;
        memset(grad_keys, 0, (size_t)(context * size * 4));
        memset(grad_values, 0, (size_t)(context * size * 4));
        pack_columns(v + group * size, narrow, index, context, padded, size / 2, values);
        pack_row_pairs(k + group * size, narrow, index, context, padded, size, keys);
        for (int64_t head = group * (heads / groups); head < (group + 1) * (heads / groups); head++) {
            const bf16 *mine = weights + sequences->weights[row] + head * length * padded;
            const bf16 *grad_out = grad + start * wide + head * size;
            pack_row_pairs(q + start * wide + head * size, wide, NULL, length, padded_own, size, queries);
            pack_row_pairs(grad_out, wide, NULL, length, padded_own, size, grads);
            for (int64_t i = 0; i < length; i += TILE) {
                const int64_t some = length - i < TILE ? length - i : TILE, columns = padded_to(before + i + some);
                product(PAIRS(grad_out + i * wide), wide / 2, 1, values, padded, sums, padded, some, columns, 0,
                        size / 2, 0);
                for (int64_t r = 0; r < some; r++)
                    softmax_backward(sums + r * padded, mine + (i + r) * padded, scores + (i + r) * padded,
                                     before + i + r + 1, padded, (float)scale);
                product(PAIRS(scores + i * padded), padded / 2, 1, keys, size, part, size, some, size, 0, columns / 2,
                        0);
                round_rows(part, size, some, grad_q + (start + i) * wide + head * size, wide);
            }
            /* Key j is attended to by queries from j - before on. */
            pack_row_pairs(mine, padded, NULL, length, padded_own, padded, down);
            for (int64_t j = 0; j < context; j += TILE)
                product(down + j, 1, padded, grads, size, grad_values + j * size, size,
                        context - j < TILE ? context - j : TILE, size, j < before ? 0 : (j - before) / 2,
                        padded_own / 2, 1);
            pack_row_pairs(scores, padded, NULL, length, padded_own, padded, down);
            for (int64_t j = 0; j < context; j += TILE)
                product(down + j, 1, padded, queries, size, grad_keys + j * size, size,
                        context - j < TILE ? context - j : TILE, size, j < before ? 0 : (j - before) / 2,
                        padded_own / 2, 1);
        }
        free(values);
        free(down);
        free(scores);
        free(sums);
    }
#pragma omp parallel for num_threads(team()) schedule(dynamic)
    for (int64_t item = 0; item < 2 * groups; item++) {
        if (item < groups) gather(partials, sequences, item, grad_k);
        else gather(partials + whole, sequences, item - groups, grad_v);
    }
    free(partials);
}
#endif
