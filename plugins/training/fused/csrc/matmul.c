/* Sums of matrix products, rounded once: out = onto + a1 b1 + a2 b2 + ..., with weights in whatever layout the model
 * holds them, NF4 included; matmul.py has the torch version.
 *
 * Weights are packed into panels of a few columns that stay in the second-level cache, and all rows pass over each
 * panel. Every element is summed by one thread in one order, so results do not depend on the number of threads.
 */
#include "vectors.h"

/* Whether this CPU has AMX, with which torch's own products of bfloat16 are faster than what follows. */
int tunery_has_tiles(void) {
#if defined(__x86_64__) && defined(__GNUC__)
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1);
#else
    return 0;
#endif
}

#ifdef NATIVE
/* A weight as bitsandbytes keeps it in NF4 with double quantization: two elements a byte, the first in the upper half,
 * each an index into `values`; each BLOCK of elements has a scale, itself 8 bits wide: steps[scale] * levels[block /
 * group] + offset. */
struct nf4_weight {
    const uint8_t *elements, *scales;
    const float *values, *steps, *levels;
    double offset;
    int64_t group;
};

#define BLOCK 64

/* a [rows][depth] and b [depth][columns], or b [columns][depth] if `turned`; `a_row` and `b_row` are their strides.
 * Depth is even. If `packed` is not null it is b: its elements from the `start`-th on, with rows of whole blocks. */
struct term {
    const bf16 *a, *b;
    const struct nf4_weight *packed;
    int64_t a_row, b_row, depth, turned, start;
};

#define DEEP   2048 /* pairs in a panel's columns: 48 x 2048 of them are 384 KiB */
#define ITEMS  16   /* work items to divide a call into at least, where there are enough rows */
#define AHEAD  16   /* rows of a weight that are prefetched before they are read */
#define TALL   24   /* rows of the tallest tile */
#define UNROLL _Pragma("GCC unroll 24")
#define EACH(i, n)                                                                                                     \
    UNROLL                                                                                                             \
    for (int i = 0; i < (n); i++)

/* Transpose sixteen rows of sixteen pairs. */
INLINE void transpose(__m512i *r) {
    __m512i t[16];
    UNROLL
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    UNROLL
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    EACH(j, 4) {
        t[j] = _mm512_shuffle_i32x4(r[j], r[j + 4], 0x88);
        t[j + 4] = _mm512_shuffle_i32x4(r[j], r[j + 4], 0xdd);
        t[j + 8] = _mm512_shuffle_i32x4(r[j + 8], r[j + 12], 0x88);
        t[j + 12] = _mm512_shuffle_i32x4(r[j + 8], r[j + 12], 0xdd);
    }
    EACH(j, 8) {
        r[j] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0x88);
        r[j + 8] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0xdd);
    }
}

/* The scale of the block of element `at`, rounded as torch does: after the product, and after the sum. */
INLINE __m512 scale_of(const struct nf4_weight *b, int64_t at) {
    const int64_t block = at / BLOCK;
    float scale = b->steps[b->scales[block]] * b->levels[block / b->group];
    __asm__("" : "+x"(scale));
    return _mm512_set1_ps(scale + (float)b->offset);
}

/* The elements of 16 indices, as bfloat16 in the lower halves of lanes. */
INLINE __m512i element(__m512i index, __m512 values, __m512 scale) {
    const __m512 value = _mm512_mul_ps(_mm512_permutexvar_ps(index, values), scale);
    return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(value));
}

/* Sixteen consecutive pairs of an NF4 weight from element `at`. */
INLINE __m512i pairs_at(const struct nf4_weight *b, int64_t at, __m512 values) {
    const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(b->elements + at / 2)));
    const __m512 scale = scale_of(b, at);
    const __m512i first = element(_mm512_srli_epi32(bytes, 4), values, scale);
    const __m512i second = element(_mm512_and_si512(bytes, _mm512_set1_epi32(15)), values, scale);
    return _mm512_or_si512(first, _mm512_slli_epi32(second, 16));
}

/* Sixteen consecutive elements of an NF4 weight from element `at`. */
INLINE __m512i elements_at(const struct nf4_weight *b, int64_t at, __m512 values) {
    const __m128i bytes = _mm_loadl_epi64((const void *)(b->elements + at / 2));
    const __m512i twice = _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(bytes, bytes)), shift = _mm512_set1_epi64(4);
    return element(_mm512_and_si512(_mm512_srlv_epi32(twice, shift), _mm512_set1_epi32(15)), values, scale_of(b, at));
}

/* `pack` of an NF4 weight. */
static void unpack(const struct term *term, int64_t column, int64_t columns, int64_t vectors, uint32_t *panel) {
    const int64_t pairs = term->depth / 2, width = LANES * vectors;
    const __m512 values = _mm512_loadu_ps(term->packed->values);
    if (term->turned) {
        for (int64_t v = 0; v < width; v += LANES)
            for (int64_t p = 0; p < pairs; p += LANES) {
                const int64_t at = term->start + (column + v) * term->b_row + 2 * p;
                __m512i r[16];
                EACH(i, 16)
                    r[i] = column + v + i < columns ? pairs_at(term->packed, at + i * term->b_row, values)
                                                    : _mm512_setzero_si512();
                transpose(r);
                EACH(i, 16) _mm512_store_si512(panel + (p + i) * width + v, r[i]);
            }
        return;
    }
    for (int64_t p = 0; p < pairs; p++)
        for (int64_t v = 0; v < width; v += LANES) {
            const int64_t at = term->start + 2 * p * term->b_row + column + v;
            __m512i pair = _mm512_setzero_si512();
            if (column + v < columns) {
                const __m512i low = elements_at(term->packed, at, values),
                              high = elements_at(term->packed, at + term->b_row, values);
                pair = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
            }
            _mm512_store_si512(panel + p * width + v, pair);
        }
}

/* panel[p][i] = elements 2p and 2p + 1 of column `column` + i of b, for 16 * `vectors` columns; what is outside is
 * zero. */
static void pack(const struct term *term, int64_t column, int64_t columns, int64_t vectors, uint32_t *panel) {
    const int64_t pairs = term->depth / 2, width = LANES * vectors;
    if (term->packed) return unpack(term, column, columns, vectors, panel);
    if (term->turned) {
        for (int64_t v = 0; v < width; v += LANES)
            for (int64_t p = 0; p < pairs; p += LANES) {
                const __mmask16 some = lanes(p, pairs);
                __m512i r[16];
                EACH(i, 16)
                    r[i] = _mm512_maskz_loadu_epi32(column + v + i < columns ? some : 0,
                                                    term->b + (column + v + i) * term->b_row + 2 * p);
                EACH(i, 16)
                    _mm_prefetch((const char *)(term->b + (column + v + i + LANES) * term->b_row + 2 * p), _MM_HINT_T0);
                transpose(r);
                EACH(i, 16)
                    if (p + i < pairs) _mm512_store_si512(panel + (p + i) * width + v, r[i]);
            }
        return;
    }
    for (int64_t p = 0; p < pairs; p++) {
        const bf16 *from = term->b + 2 * p * term->b_row + column;
        for (int ahead = AHEAD; ahead < AHEAD + 2; ahead++) {
            _mm_prefetch((const char *)(from + ahead * term->b_row), _MM_HINT_T0);
            _mm_prefetch((const char *)(from + ahead * term->b_row + 32), _MM_HINT_T0);
        }
        for (int64_t v = 0; v < width; v += LANES) {
            const __mmask16 live = lanes(column + v, columns);
            const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(live, from + v));
            const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(live, from + term->b_row + v));
            _mm512_store_si512(panel + p * width + v, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
    }
}

/* Where results go: out, and onto unless null, [rows][columns] with their strides. */
struct target {
    bf16 *out;
    const bf16 *onto;
    int64_t out_row, onto_row, columns;
};

/* Store the sums of 16 columns from `column` of a row, added to `onto`. */
INLINE void put(const struct target *to, int64_t row, int64_t column, __m512 sum) {
    const __mmask16 live = lanes(column, to->columns);
    if (to->onto) sum = _mm512_add_ps(sum, load(to->onto + row * to->onto_row + column, live));
    store(to->out + row * to->out_row + column, live, sum);
}

/* A tile of `tall` rows from `row`, of which the first `some` exist, and 16 * `vectors` columns: add the terms'
 * products to `sums` [tall][16 * vectors], which are not read for the `first` group of terms, and go to the target
 * after the `last`. */
INLINE void tile(const struct term *terms, int64_t count, const uint32_t *panel, int64_t row, int64_t some,
                 const int tall, const int vectors, float *sums, int first, int last, const struct target *to,
                 int64_t column) {
    __m512 sum[TALL][3];
    EACH(r, tall)
        EACH(v, vectors) sum[r][v] = first ? _mm512_setzero_ps() : _mm512_load_ps(sums + (r * vectors + v) * LANES);
    for (const struct term *term = terms; term < terms + count; term++) {
        const bf16 *at[TALL];
        EACH(r, tall) at[r] = term->a + (row + (r < some ? r : some - 1)) * term->a_row;
        const bf16 *next = term->a + (row + tall) * term->a_row; /* the next tile's rows, prefetched meanwhile */
        for (int64_t p = 0; p < term->depth; p += 2, panel += LANES * vectors) {
            _mm_prefetch((const char *)(next + p * tall), _MM_HINT_T0);
            __m512bh right[3];
            EACH(v, vectors) right[v] = (__m512bh)_mm512_load_si512(panel + LANES * v);
            EACH(r, tall) {
                int pair;
                memcpy(&pair, at[r] + p, sizeof pair);
                const __m512bh left = (__m512bh)_mm512_set1_epi32(pair);
                EACH(v, vectors) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], left, right[v]);
            }
        }
    }
    EACH(r, tall)
        EACH(v, vectors) {
            if (!last) _mm512_store_ps(sums + (r * vectors + v) * LANES, sum[r][v]);
            else if (r < some) put(to, row + r, column + LANES * v, sum[r][v]);
        }
}

/* Rows [from, until) over one panel, as many at once as the registers hold sums of. */
static void pass(const struct term *terms, int64_t count, const uint32_t *panel, int64_t from, int64_t until,
                 int64_t vectors, float *sums, int first, int last, const struct target *to, int64_t column) {
    const int64_t tall = TALL / vectors;
    for (int64_t row = from; row < until; row += tall) {
        const int64_t some = until - row < tall ? until - row : tall;
        float *mine = sums ? sums + (row - from) / tall * TALL * LANES : NULL;
        if (vectors == 3) tile(terms, count, panel, row, some, TALL / 3, 3, mine, first, last, to, column);
        else if (vectors == 2) tile(terms, count, panel, row, some, TALL / 2, 2, mine, first, last, to, column);
        else tile(terms, count, panel, row, some, TALL, 1, mine, first, last, to, column);
    }
}

/* Cut terms to at most DEEP pairs each, to `pieces` unless null; return how many there are. */
static int64_t cut(const struct term *terms, int64_t count, struct term *pieces) {
    int64_t n = 0;
    for (const struct term *term = terms; term < terms + count; term++)
        for (int64_t from = 0; from < term->depth; from += 2 * DEEP, n++) {
            if (!pieces) continue;
            pieces[n] = *term;
            pieces[n].a += from;
            const int64_t skipped = term->turned ? from : from * term->b_row;
            if (term->packed) pieces[n].start += skipped;
            else pieces[n].b += skipped;
            pieces[n].depth = term->depth - from < 2 * DEEP ? term->depth - from : 2 * DEEP;
        }
    return n;
}

/* out [rows][columns] = the sum of `count` terms, plus `onto` unless null. */
void tunery_product(const struct term *terms, int64_t count, const bf16 *onto, int64_t onto_row, bf16 *out,
                    int64_t out_row, int64_t rows, int64_t columns) {
    const struct target to = {out, onto, out_row, onto_row, columns};
    const int64_t vectors = columns > 2 * LANES ? 3
                            : columns > LANES   ? 2
                                                : 1,
                  width = LANES * vectors, tall = TALL / vectors;
    const int64_t panels = (columns + width - 1) / width, tiles = (rows + tall - 1) / tall,
                  all = cut(terms, count, NULL);
    const int64_t strips = panels < ITEMS ? (ITEMS + panels - 1) / panels : 1,
                  share = (tiles / strips + 1) * TALL * LANES;
    struct term *pieces = malloc((size_t)(all + 1) * sizeof *pieces);
    cut(terms, count, pieces);
    float *sums = NULL;
    for (int64_t piece = 0, next = 0; piece < all; piece = next) {
        int64_t pairs = 0;
        while (next < all && pairs + pieces[next].depth / 2 <= DEEP) pairs += pieces[next++].depth / 2;
        if (!sums && next < all) sums = aligned_alloc(64, (size_t)(panels * strips * share * 4));
#pragma omp parallel num_threads(team())
        {
            uint32_t *panel = aligned_alloc(64, (size_t)(pairs * width * 4));
#pragma omp for schedule(dynamic, 2)
            for (int64_t item = 0; item < panels * strips; item++) {
                const int64_t column = item / strips * width, strip = item % strips;
                const int64_t from = tiles * strip / strips * tall, end = tiles * (strip + 1) / strips * tall,
                              until = end < rows ? end : rows;
                if (from == end) continue;
                uint32_t *at = panel;
                for (int64_t i = piece; i < next; at += pieces[i++].depth / 2 * width)
                    pack(pieces + i, column, columns, vectors, at);
                pass(pieces + piece, next - piece, panel, from, until, vectors, sums ? sums + item * share : NULL,
                     piece == 0, next == all, &to, column);
            }
            free(panel);
        }
    }
    free(sums);
    free(pieces);
}
#endif
