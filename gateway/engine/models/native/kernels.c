/* Owns the arithmetic of a step on CPUs with AVX-512 and its bfloat16 products; refuses to know about requests or models.
 *
 * Every row of every result is computed in an order that depends on nothing but that row: a sum runs over k from the first to the
 * last in the same pieces, whatever rows lie beside it and however many there are. So a request's bits are the same alone, in a
 * batch, in pieces of a prompt, and after its prefix was found in a cache.
 *
 * Two element types, told apart by `wide`: bfloat16 activations, weights and cache (0), or float32 (1). Sums are float32 always.
 * Outputs of linear layers lie in panels of PANEL columns, each target padded up to whole panels.
 */
#include "../../../../plugins/runtime/native.h"

/* Whether this CPU has the instructions that the rest is compiled to. */
int tunery_supported(void) { return supported(); }

int tunery_thread_limit = 0;

void tunery_limit_threads(int limit) { __atomic_store_n(&tunery_thread_limit, limit, __ATOMIC_RELAXED); }

#ifdef NATIVE

#define PANEL 48   /* columns of a panel: three vectors */
#define BLOCK 8    /* rows of a tile: 8 x 3 accumulators */
#define SUM 32     /* of k in a float32 sum before it is added to the others; DEPTH is a multiple */
#define DEPTH 768  /* of k unpacked at a time: such a piece of a panel stays in the second-level cache */
#define PAGE 16    /* tokens of a page of the cache: one vector of scores */
#define ATTEND 6   /* rows of a tile of attention */
#define UNROLL _Pragma("GCC unroll 8")

enum format { BF16, F32, NF4, INT8 };

/* A base's linear layer in panels. `data` by format: bf16 [panels][k/2][PANEL][2]; f32 [panels][k][PANEL]; nf4 [panels][k/2][PANEL] bytes'
 * worth of nibbles; int8 [panels][k/2][PANEL][2]. `scales`: nf4 [panels][k/group][PANEL], int8 [panels][PANEL]. `bias` [panels * PANEL] or null. */
struct weight {
    const void *data;
    const float *scales;
    const float *bias;
    int64_t format, k, panels, group;
};

/* What an adapter does to one target: y = gain * (W x + scale * B A x) + shift. a [rank][k]; b [panels][rank][PANEL]; gain, shift
 * [panels * PANEL] or null. Narrow, `rank` is even and b lies in pairs, [panels][rank/2][PANEL][2], so that it multiplies as a base's panel. */
struct correction {
    const void *a, *b;
    const float *gain, *shift;
    int64_t rank, k;
    double scale;
};

/* Rows [start, end) run through the adapter whose corrections of all layers' targets are `table`, at `weight`. */
struct segment {
    int64_t start, end;
    const struct correction *table;
    double weight;
};

/* ------------------------------------------------------------------------------------------------ small pieces */

INLINE __m512 widen(const bf16 *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p)), 16));
}

INLINE float widen1(bf16 v) {
    union { uint32_t u; float f; } both = {(uint32_t)v << 16};
    return both.f;
}

INLINE void narrow(bf16 *p, __m512 v) { _mm256_storeu_si256((void *)p, (__m256i)_mm512_cvtneps_pbh(v)); }

INLINE bf16 narrow1(float v) { return (bf16)_mm_extract_epi16((__m128i)_mm_cvtneps_pbh(_mm_set_ss(v)), 0); }

/* ------------------------------------------------------------------------------------------------ unpacking a panel */

static const float NORMAL_FLOAT[16] = { /* QLoRA, arXiv 2305.14314, appendix E */
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f, -0.18477343022823334f,
    -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

/* Scales of sixteen columns, twice each, as the pairs of k lie in a vector: `low` of the first eight, `high` of the others. */
INLINE void paired(const float *scales, __m512 *low, __m512 *high) {
    const __m512i first = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    __m512 s = _mm512_loadu_ps(scales);
    *low = _mm512_permutexvar_ps(first, s);
    *high = _mm512_permutexvar_ps(_mm512_add_epi32(first, _mm512_set1_epi32(8)), s);
}

/* Store two k of sixteen columns, given as pairs. */
INLINE void put_pairs(void *out, int wide, int64_t pair, int v, __m512 low, __m512 high) {
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
            paired(scales + (k / w->group) * PANEL + 16 * v, &low, &high);
            for (int64_t pair = k / 2; pair < stop / 2; pair++) {
                __m512i code = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(codes + pair * PANEL + 16 * v)));
                put_pairs(out, wide, pair - from / 2, v, _mm512_mul_ps(_mm512_permutexvar_ps(code, table), low),
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
        paired(w->scales + panel * PANEL + 16 * v, &low, &high);
        for (int64_t pair = from / 2; pair < to / 2; pair++) {
            const int8_t *at = codes + (pair * PANEL + 16 * v) * 2;
            __m512 a = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)at)));
            __m512 b = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)(at + 16))));
            put_pairs(out, wide, pair - from / 2, v, _mm512_mul_ps(a, low), _mm512_mul_ps(b, high));
        }
    }
}

/* Columns of `panel` for k in [from, to) as the products below read them: in place where they are stored so. */
static const void *panel_of(const struct weight *w, int64_t panel, int64_t from, int64_t to, void *scratch, int wide) {
    switch (w->format) {
    case BF16: return (const bf16 *)w->data + (panel * w->k + from) * PANEL;
    case F32: return (const float *)w->data + (panel * w->k + from) * PANEL;
    case NF4: unpack_nf4(w, panel, from, to, scratch, wide); return scratch;
    default: unpack_int8(w, panel, from, to, scratch, wide); return scratch;
    }
}

/* ------------------------------------------------------------------------------------------------ products */

/* y[n][PANEL] += x[n][count] w, two k at a time. */
#define PRODUCT(N)                                                                                                             \
    INLINE void product_narrow_##N(const bf16 *x, int64_t xs, const bf16 *w, int64_t count, float *y, int64_t ys) {            \
        __m512 acc[N][3];                                                                                                      \
        UNROLL for (int i = 0; i < N; i++) UNROLL for (int v = 0; v < 3; v++) acc[i][v] = _mm512_loadu_ps(y + i * ys + 16 * v); \
        for (int64_t k = 0; k < count; k += 2, w += 2 * PANEL) {                                                               \
            __m512bh w0 = (__m512bh)_mm512_loadu_si512(w), w1 = (__m512bh)_mm512_loadu_si512(w + 32),                          \
                     w2 = (__m512bh)_mm512_loadu_si512(w + 64);                                                                \
            UNROLL for (int i = 0; i < N; i++) {                                                                               \
                int pair;                                                                                                      \
                memcpy(&pair, x + i * xs + k, 4);                                                                              \
                __m512bh xi = (__m512bh)_mm512_set1_epi32(pair);                                                               \
                acc[i][0] = _mm512_dpbf16_ps(acc[i][0], xi, w0);                                                               \
                acc[i][1] = _mm512_dpbf16_ps(acc[i][1], xi, w1);                                                               \
                acc[i][2] = _mm512_dpbf16_ps(acc[i][2], xi, w2);                                                               \
            }                                                                                                                  \
        }                                                                                                                      \
        UNROLL for (int i = 0; i < N; i++) UNROLL for (int v = 0; v < 3; v++) _mm512_storeu_ps(y + i * ys + 16 * v, acc[i][v]); \
    }

/* The same in float32, in sums of SUM k that are added up: fewer roundings lie on the way of each part. */
#define PRODUCT_WIDE(N)                                                                                                        \
    INLINE void product_wide_##N(const float *x, int64_t xs, const float *w, int64_t count, float *y, int64_t ys) {            \
        __m512 acc[N][3];                                                                                                      \
        UNROLL for (int i = 0; i < N; i++) UNROLL for (int v = 0; v < 3; v++) acc[i][v] = _mm512_loadu_ps(y + i * ys + 16 * v); \
        for (int64_t k = 0; k < count;) {                                                                                      \
            __m512 part[N][3];                                                                                                 \
            UNROLL for (int i = 0; i < N; i++) UNROLL for (int v = 0; v < 3; v++) part[i][v] = _mm512_setzero_ps();            \
            for (int64_t stop = k + SUM < count ? k + SUM : count; k < stop; k++, w += PANEL) {                                \
                __m512 w0 = _mm512_loadu_ps(w), w1 = _mm512_loadu_ps(w + 16), w2 = _mm512_loadu_ps(w + 32);                    \
                UNROLL for (int i = 0; i < N; i++) {                                                                           \
                    __m512 xi = _mm512_set1_ps(x[i * xs + k]);                                                                 \
                    part[i][0] = _mm512_fmadd_ps(xi, w0, part[i][0]);                                                          \
                    part[i][1] = _mm512_fmadd_ps(xi, w1, part[i][1]);                                                          \
                    part[i][2] = _mm512_fmadd_ps(xi, w2, part[i][2]);                                                          \
                }                                                                                                              \
            }                                                                                                                  \
            UNROLL for (int i = 0; i < N; i++) UNROLL for (int v = 0; v < 3; v++) acc[i][v] = _mm512_add_ps(acc[i][v], part[i][v]); \
        }                                                                                                                      \
        UNROLL for (int i = 0; i < N; i++) UNROLL for (int v = 0; v < 3; v++) _mm512_storeu_ps(y + i * ys + 16 * v, acc[i][v]); \
    }
PRODUCT(1) PRODUCT(2) PRODUCT(3) PRODUCT(4) PRODUCT(5) PRODUCT(6) PRODUCT(7) PRODUCT(8)
PRODUCT_WIDE(1) PRODUCT_WIDE(2) PRODUCT_WIDE(3) PRODUCT_WIDE(4)

/* product_narrow_8 that meanwhile fetches cache lines for later into the second-level cache, one for every k. */
static void product_ahead(const bf16 *x, int64_t xs, const bf16 *w, int64_t count, float *y, int64_t ys, const char *const *lines) {
    __m512 acc[BLOCK][3];
    UNROLL for (int i = 0; i < BLOCK; i++) UNROLL for (int v = 0; v < 3; v++) acc[i][v] = _mm512_loadu_ps(y + i * ys + 16 * v);
    for (int64_t k = 0; k < count; k += 2, w += 2 * PANEL) {
        _mm_prefetch(lines[k], _MM_HINT_T1);
        _mm_prefetch(lines[k + 1], _MM_HINT_T1);
        __m512bh w0 = (__m512bh)_mm512_loadu_si512(w), w1 = (__m512bh)_mm512_loadu_si512(w + 32), w2 = (__m512bh)_mm512_loadu_si512(w + 64);
        UNROLL for (int i = 0; i < BLOCK; i++) {
            int pair;
            memcpy(&pair, x + i * xs + k, 4);
            __m512bh xi = (__m512bh)_mm512_set1_epi32(pair);
            acc[i][0] = _mm512_dpbf16_ps(acc[i][0], xi, w0);
            acc[i][1] = _mm512_dpbf16_ps(acc[i][1], xi, w1);
            acc[i][2] = _mm512_dpbf16_ps(acc[i][2], xi, w2);
        }
    }
    UNROLL for (int i = 0; i < BLOCK; i++) UNROLL for (int v = 0; v < 3; v++) _mm512_storeu_ps(y + i * ys + 16 * v, acc[i][v]);
}

static void product(int n, const void *x, int64_t xs, const void *w, int64_t count, float *y, int64_t ys, int wide) {
    for (const float *row = x; wide && n > 0; n -= 4, row += 4 * xs, y += 4 * ys)
        switch (n) {
        case 1: product_wide_1(row, xs, w, count, y, ys); break;
        case 2: product_wide_2(row, xs, w, count, y, ys); break;
        case 3: product_wide_3(row, xs, w, count, y, ys); break;
        default: product_wide_4(row, xs, w, count, y, ys);
        }
    switch (wide ? 0 : n) {
    case 1: product_narrow_1(x, xs, w, count, y, ys); return;
    case 2: product_narrow_2(x, xs, w, count, y, ys); return;
    case 3: product_narrow_3(x, xs, w, count, y, ys); return;
    case 4: product_narrow_4(x, xs, w, count, y, ys); return;
    case 5: product_narrow_5(x, xs, w, count, y, ys); return;
    case 6: product_narrow_6(x, xs, w, count, y, ys); return;
    case 7: product_narrow_7(x, xs, w, count, y, ys); return;
    case 8: product_narrow_8(x, xs, w, count, y, ys); return;
    }
}

/* The same from NF4 codes, unpacked on the way: for few rows the unpacking then hides behind the sums. */
#define PRODUCT_NF4(N)                                                                                                         \
    INLINE void product_nf4_##N(const struct weight *w, int64_t panel, const bf16 *x, int64_t xs, float *y, int64_t ys) {      \
        const __m512 table = _mm512_loadu_ps(NORMAL_FLOAT);                                                                    \
        const uint8_t *codes = (const uint8_t *)w->data + panel * (w->k / 2) * PANEL;                                          \
        const float *scales = w->scales + panel * (w->k / w->group) * PANEL;                                                   \
        __m512 acc[N][3];                                                                                                      \
        UNROLL for (int i = 0; i < N; i++) UNROLL for (int v = 0; v < 3; v++) acc[i][v] = _mm512_loadu_ps(y + i * ys + 16 * v); \
        for (int64_t k = 0; k < w->k; scales += PANEL) {                                                                       \
            __m512 low[3], high[3];                                                                                            \
            UNROLL for (int v = 0; v < 3; v++) paired(scales + 16 * v, low + v, high + v);                                     \
            for (int64_t stop = k + w->group; k < stop; k += 2, codes += PANEL) {                                              \
                __m512bh pair[N];                                                                                              \
                UNROLL for (int i = 0; i < N; i++) {                                                                           \
                    int both;                                                                                                  \
                    memcpy(&both, x + i * xs + k, 4);                                                                          \
                    pair[i] = (__m512bh)_mm512_set1_epi32(both);                                                               \
                }                                                                                                              \
                UNROLL for (int v = 0; v < 3; v++) {                                                                           \
                    __m512i code = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(codes + 16 * v)));                      \
                    __m512bh wv = _mm512_cvtne2ps_pbh(                                                                         \
                        _mm512_mul_ps(_mm512_permutexvar_ps(_mm512_srli_epi32(code, 4), table), high[v]),                      \
                        _mm512_mul_ps(_mm512_permutexvar_ps(code, table), low[v]));                                            \
                    UNROLL for (int i = 0; i < N; i++) acc[i][v] = _mm512_dpbf16_ps(acc[i][v], pair[i], wv);                   \
                }                                                                                                              \
            }                                                                                                                  \
        }                                                                                                                      \
        UNROLL for (int i = 0; i < N; i++) UNROLL for (int v = 0; v < 3; v++) _mm512_storeu_ps(y + i * ys + 16 * v, acc[i][v]); \
    }
PRODUCT_NF4(1) PRODUCT_NF4(2) PRODUCT_NF4(3) PRODUCT_NF4(4)

/* s[N][RANKS] = x[N][k] a[RANKS][k]^T: a dot product each, sixteen lanes and a fixed tree. */
#define SHRINK(N, RANKS)                                                                                                       \
    INLINE void shrink_narrow_##N##_##RANKS(const bf16 *x, int64_t xs, const bf16 *a, int64_t k, float *s, int64_t ss) {       \
        __m512 acc[N][RANKS];                                                                                                  \
        UNROLL for (int i = 0; i < N; i++) UNROLL for (int j = 0; j < RANKS; j++) acc[i][j] = _mm512_setzero_ps();             \
        for (int64_t at = 0; at < k; at += 32) {                                                                               \
            __mmask32 live = k - at >= 32 ? ~0u : (1u << (k - at)) - 1;                                                        \
            __m512bh row[RANKS];                                                                                               \
            UNROLL for (int j = 0; j < RANKS; j++) row[j] = (__m512bh)_mm512_maskz_loadu_epi16(live, a + j * k + at);          \
            UNROLL for (int i = 0; i < N; i++) {                                                                               \
                __m512bh xi = (__m512bh)_mm512_maskz_loadu_epi16(live, x + i * xs + at);                                       \
                UNROLL for (int j = 0; j < RANKS; j++) acc[i][j] = _mm512_dpbf16_ps(acc[i][j], xi, row[j]);                    \
            }                                                                                                                  \
        }                                                                                                                      \
        UNROLL for (int i = 0; i < N; i++) UNROLL for (int j = 0; j < RANKS; j++) s[i * ss + j] = _mm512_reduce_add_ps(acc[i][j]); \
    }                                                                                                                          \
    INLINE void shrink_wide_##N##_##RANKS(const float *x, int64_t xs, const float *a, int64_t k, float *s, int64_t ss) {       \
        __m512 acc[N][RANKS];                                                                                                  \
        UNROLL for (int i = 0; i < N; i++) UNROLL for (int j = 0; j < RANKS; j++) acc[i][j] = _mm512_setzero_ps();             \
        for (int64_t at = 0; at < k; at += 16) {                                                                               \
            __mmask16 live = k - at >= 16 ? 0xffff : (1u << (k - at)) - 1;                                                     \
            __m512 row[RANKS];                                                                                                 \
            UNROLL for (int j = 0; j < RANKS; j++) row[j] = _mm512_maskz_loadu_ps(live, a + j * k + at);                       \
            UNROLL for (int i = 0; i < N; i++) {                                                                               \
                __m512 xi = _mm512_maskz_loadu_ps(live, x + i * xs + at);                                                      \
                UNROLL for (int j = 0; j < RANKS; j++) acc[i][j] = _mm512_fmadd_ps(xi, row[j], acc[i][j]);                     \
            }                                                                                                                  \
        }                                                                                                                      \
        UNROLL for (int i = 0; i < N; i++) UNROLL for (int j = 0; j < RANKS; j++) s[i * ss + j] = _mm512_reduce_add_ps(acc[i][j]); \
    }
SHRINK(1, 1) SHRINK(1, 8) SHRINK(4, 1) SHRINK(4, 4)

/* s[n][rank] = x a^T for n rows of one adapter. */
static void shrink(int64_t n, const void *x, int64_t xs, const void *a, int64_t rank, int64_t k, float *s, int64_t ss, int wide) {
#define TILE(N, RANKS)                                                                                                                \
    (wide ? shrink_wide_##N##_##RANKS((const float *)x + i * xs, xs, (const float *)a + j * k, k, s + i * ss + j, ss)                 \
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

/* gain and shift of one panel for n rows; either may be null. */
static void adjust(int64_t n, const float *gain, const float *shift, float *y, int64_t ys) {
    if (!gain && !shift) return;
    for (int64_t i = 0; i < n; i++)
        for (int v = 0; v < 3; v++) {
            __m512 value = _mm512_loadu_ps(y + i * ys + 16 * v);
            if (gain) value = _mm512_mul_ps(value, _mm512_loadu_ps(gain + 16 * v));
            if (shift) value = _mm512_add_ps(value, _mm512_loadu_ps(shift + 16 * v));
            _mm512_storeu_ps(y + i * ys + 16 * v, value);
        }
}

/* ------------------------------------------------------------------------------------------------ a linear layer */

/* One call of tunery_linear, for its threads. */
struct linear {
    const struct weight *w;
    const char *x;
    float *y, *s;
    const struct segment *segments;
    int64_t targets, xs, rows, ys, count, first, following, ranks, wide, element;
};

/* A thread's part: panels [low, high) of all targets end to end, and places [begin, end) of the segments' rows end to end. */
struct part {
    int64_t low, high, begin, end;
};

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* The first halves of the corrections for a thread's places, times their scales, as the second halves read them. */
static void shrink_places(const struct linear *c, const struct part *p) {
    int64_t base = 0, width = c->targets * c->ranks;
    for (int64_t g = 0; g < c->count; base += c->segments[g].end - c->segments[g].start, g++) {
        int64_t low = most(p->begin, base), high = least(p->end, base + c->segments[g].end - c->segments[g].start);
        for (int64_t t = 0; t < c->targets && low < high; t++) {
            const struct correction *fix = c->segments[g].table + c->first + t;
            if (!fix->rank) continue;
            float *s = c->s + low * width + t * c->ranks;
            shrink(high - low, c->x + (c->segments[g].start + low - base) * c->xs * c->element, c->xs, fix->a, fix->rank, c->w[t].k, s, width, c->wide);
            __m512 scale = _mm512_set1_ps((float)(fix->scale * c->segments[g].weight));
            for (int64_t i = 0; i < high - low; i++, s += width)
                for (int64_t j = 0; j < fix->rank; j += 16) {
                    __mmask16 live = fix->rank - j >= 16 ? 0xffff : (1u << (fix->rank - j)) - 1;
                    __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(live, s + j), scale);
                    if (c->wide) _mm512_mask_storeu_ps(s + j, live, v);
                    else _mm256_mask_storeu_epi16((bf16 *)s + j, live, (__m256i)_mm512_cvtneps_pbh(v)); /* in place: what is written has been read */
                }
        }
    }
}

/* The cache lines that a thread is about to need: while it computes a panel, the corrections' second halves for the next one, and then
 * the first halves for the layer that follows. */
struct ahead {
    const char **lines;
    int64_t count, room, segment, target, offset, base;
};

/* Note the lines of a range, eight at a time; `lines` has room for seven more than `room`. */
INLINE void fetch(struct ahead *a, const void *from, int64_t bytes) {
    int64_t count = least((bytes + 63) / 64, a->room - a->count);
    __m512i at = _mm512_add_epi64(_mm512_set1_epi64((int64_t)from), _mm512_set_epi64(448, 384, 320, 256, 192, 128, 64, 0));
    for (int64_t i = 0; i < count; i += 8, at = _mm512_add_epi64(at, _mm512_set1_epi64(512))) _mm512_storeu_si512(a->lines + a->count + i, at);
    a->count += count;
}

static void look_ahead(struct ahead *a, const struct linear *c, const struct part *p, int64_t t, int64_t own) {
    a->count = 0;
    if (own == c->w[t].panels) own = 0, t++;
    for (int64_t g = 0; g < c->count && t < c->targets; g++) {
        const struct correction *fix = c->segments[g].table + c->first + t;
        int64_t size = fix->rank * PANEL * c->element;
        fetch(a, (const char *)fix->b + own * size, size);
    }
    while (a->count < a->room && a->segment < c->count) {
        const struct segment *g = c->segments + a->segment;
        const struct correction *fix = g->table + c->first + c->targets + a->target;
        int64_t length = g->end - g->start, size = fix->rank * fix->k * c->element, before = a->count;
        if (a->target < c->following && a->base < p->end && a->base + length > p->begin && a->offset < size) {
            fetch(a, (const char *)fix->a + a->offset, size - a->offset);
            a->offset += (a->count - before) * 64;
            if (a->offset < size) break;
        }
        a->offset = 0;
        if (++a->target >= c->following) a->target = 0, a->base += length, a->segment++;
    }
}

/* One panel of the base's products, added to what the corrections gave. */
static void base_product(const struct linear *c, const struct weight *w, int64_t own, float *to, void *scratch, const struct ahead *ahead) {
    if (c->rows <= 4 && w->format == NF4 && !c->wide) {
        const bf16 *x = (const bf16 *)c->x;
        switch (c->rows) {
        case 1: product_nf4_1(w, own, x, c->xs, to, c->ys); return;
        case 2: product_nf4_2(w, own, x, c->xs, to, c->ys); return;
        case 3: product_nf4_3(w, own, x, c->xs, to, c->ys); return;
        default: product_nf4_4(w, own, x, c->xs, to, c->ys); return;
        }
    }
    int64_t next = 0, lines = ahead ? ahead->count & ~1 : 0;
    for (int64_t k = 0; k < w->k; k += DEPTH) {
        int64_t depth = least(w->k - k, DEPTH);
        const char *values = panel_of(w, own, k, k + depth, scratch, c->wide);
        for (int64_t i = 0; i < c->rows; i += BLOCK) {
            const char *x = c->x + (i * c->xs + k) * c->element;
            int64_t fetching = c->rows - i >= BLOCK ? least(lines - next, depth) : 0;
            if (fetching) product_ahead((const bf16 *)x, c->xs, (const bf16 *)values, fetching, to + i * c->ys, c->ys, ahead->lines + next);
            if (fetching < depth)
                product(least(c->rows - i, BLOCK), x + fetching * c->element, c->xs, values + fetching * PANEL * c->element, depth - fetching,
                        to + i * c->ys, c->ys, c->wide);
            next += fetching;
        }
    }
}

/* Gains, shifts and the base's bias of one panel. */
static void finish(const struct linear *c, int64_t t, int64_t own, float *to) {
    const float *bias = c->w[t].bias ? c->w[t].bias + own * PANEL : NULL;
    int64_t done = 0;
    for (int64_t g = 0; g < c->count; g++) {
        const struct correction *fix = c->segments[g].table + c->first + t;
        if (!fix->gain && !fix->shift) continue;
        int64_t start = c->segments[g].start, end = c->segments[g].end;
        adjust(start - done, NULL, bias, to + done * c->ys, c->ys);
        adjust(end - start, fix->gain ? fix->gain + own * PANEL : NULL, fix->shift ? fix->shift + own * PANEL : NULL, to + start * c->ys, c->ys);
        done = end;
    }
    adjust(c->rows - done, NULL, bias, to + done * c->ys, c->ys);
}

/* Everything of a thread's panels: the corrections' second halves first, the base's products on top. */
static void panels(const struct linear *c, const struct part *p) {
    int64_t t = 0, skipped = 0, width = c->targets * c->ranks, room = c->rows / BLOCK * c->w->k, stride = c->wide ? width : 2 * width;
    int fetching = c->count && room && room <= 1 << 14 && !c->wide;
    struct ahead ahead = {.lines = fetching ? malloc((room + 7) * sizeof(char *)) : NULL, .room = room};
    void *scratch = c->w->format >= NF4 ? aligned_alloc(64, DEPTH * PANEL * sizeof(float)) : NULL;
    for (int64_t panel = p->low; panel < p->high; panel++) {
        while (panel - skipped >= c->w[t].panels) skipped += c->w[t++].panels;
        int64_t own = panel - skipped, base = 0;
        float *to = c->y + panel * PANEL;
        for (int64_t i = 0; i < c->rows; i++) memset(to + i * c->ys, 0, PANEL * sizeof(float));
        for (int64_t g = 0; g < c->count; base += c->segments[g].end - c->segments[g].start, g++) {
            const struct correction *fix = c->segments[g].table + c->first + t;
            int64_t start = c->segments[g].start, length = c->segments[g].end - start;
            const float *s = c->s + base * width + t * c->ranks;
            for (int64_t i = 0; fix->rank && i < length; i += BLOCK)
                product(least(length - i, BLOCK), s + i * width, stride, (const char *)fix->b + own * fix->rank * PANEL * c->element, fix->rank,
                        to + (start + i) * c->ys, c->ys, c->wide);
        }
        if (fetching) look_ahead(&ahead, c, p, t, own + 1);
        base_product(c, c->w + t, own, to, scratch, fetching ? &ahead : NULL);
        finish(c, t, own, to);
    }
    free(scratch);
    free(ahead.lines);
}

/* y[rows][ys] = each of `targets` linear layers that share the input x[rows][xs], side by side, with each segment's adapter
 * (Punica's and S-LoRA's shrink and expand, arXiv 2310.18547 and 2311.03285) added to its rows. Segments are in order of rows; several
 * may name the same rows, one after the other, as compositions do. Target t of the step's layer is correction `first` + t of a segment's
 * table; the `following` ones behind them are needed next. `s` is scratch of float [segments' rows][targets][ranks]. */
void tunery_linear(const struct weight *w, int64_t targets, const void *x, int64_t xs, int64_t rows, float *y, int64_t ys,
                   const struct segment *segments, int64_t count, int64_t first, int64_t following, float *s, int64_t ranks, int64_t wide) {
    const struct linear call = {w, x, y, s, segments, targets, xs, rows, ys, count, first, following, ranks, wide, wide ? 4 : 2};
    int64_t all = 0, places = 0;
    for (int64_t t = 0; t < targets; t++) all += w[t].panels;
    for (int64_t g = 0; g < count; g++) places += segments[g].end - segments[g].start;
#pragma omp parallel num_threads(team())
    {
        int64_t threads = omp_get_num_threads(), me = omp_get_thread_num(), tiles = (places + 3) / 4;
        const struct part part = {all * me / threads, all * (me + 1) / threads, tiles * me / threads * 4, least(tiles * (me + 1) / threads * 4, places)};
        if (count) {
            shrink_places(&call, &part);
#pragma omp barrier
        }
        panels(&call, &part);
    }
}

/* Rows of a packed matrix, as an embedding that shares the head's weight reads them: out[n][k] = row tokens[n], float32. */
void tunery_embed(const struct weight *w, const int64_t *tokens, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i++) {
        int64_t panel = tokens[i] / PANEL, lane = tokens[i] % PANEL, k = w->k;
        if (w->format == F32) {
            const float *from = (const float *)w->data + panel * k * PANEL + lane;
            for (int64_t j = 0; j < k; j++) out[i * k + j] = from[j * PANEL];
        } else {
            const bf16 *from = (const bf16 *)w->data + panel * k * PANEL + 2 * lane;
            for (int64_t j = 0; j < k; j++) out[i * k + j] = widen1(from[j / 2 * 2 * PANEL + j % 2]);
        }
    }
}

/* ------------------------------------------------------------------------------------------------ rows */

/* One over the root of the mean of `size` squares; not-a-number where their sum overflows, which would otherwise make a row of zeros. */
INLINE float rms_scale(__m512 squares, int64_t size, double epsilon) {
    float sum = _mm512_reduce_add_ps(squares);
    return sum < INFINITY ? 1.0f / sqrtf(sum / (float)size + (float)epsilon) : NAN;
}

/* h[rows][size] += delta (when given), then out = h / rms(h) * gain (arXiv 1910.07467). */
void tunery_norm(float *h, const float *delta, int64_t ds, int64_t rows, int64_t size, const float *gain, double epsilon, void *out, int64_t wide) {
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
            __m512 v = _mm512_mul_ps(_mm512_mul_ps(_mm512_maskz_loadu_ps(live, row + k), scale), _mm512_maskz_loadu_ps(live, gain + k));
            if (wide) _mm512_mask_storeu_ps((float *)out + i * size + k, live, v);
            else _mm256_mask_storeu_epi16((bf16 *)out + i * size + k, live, (__m256i)_mm512_cvtneps_pbh(v));
        }
    }
}

/* out[rows][size] = silu(y[:, :size]) * y[:, offset : offset + size] (SwiGLU, arXiv 2002.05202). */
void tunery_swiglu(const float *y, int64_t ys, int64_t offset, int64_t rows, int64_t size, void *out, int64_t wide) {
#pragma omp parallel for num_threads(team()) schedule(static) if (rows > 2)
    for (int64_t i = 0; i < rows; i++)
        for (int64_t k = 0; k < size; k += 16) {
            __mmask16 live = size - k >= 16 ? 0xffff : (1u << (size - k)) - 1;
            __m512 g = _mm512_maskz_loadu_ps(live, y + i * ys + k), u = _mm512_maskz_loadu_ps(live, y + i * ys + offset + k);
            __m512 one = _mm512_set1_ps(1.0f);
            __m512 v = _mm512_mul_ps(_mm512_div_ps(g, _mm512_add_ps(one, exp16(_mm512_sub_ps(_mm512_setzero_ps(), g)))), u);
            if (wide) _mm512_mask_storeu_ps((float *)out + i * size + k, live, v);
            else _mm256_mask_storeu_epi16((bf16 *)out + i * size + k, live, (__m256i)_mm512_cvtneps_pbh(v));
        }
}

/* Of each row of logits [rows][ls], the index of its largest of `size` values and the logarithm of its sum of exponentials. */
void tunery_peaks(const float *logits, int64_t ls, int64_t rows, int64_t size, int64_t *best, float *log_z) {
#pragma omp parallel for num_threads(team()) schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const float *row = logits + i * ls;
        __m512 top = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
        for (int64_t k = 0; k < size; k += 16) {
            __mmask16 live = size - k >= 16 ? 0xffff : (1u << (size - k)) - 1;
            top = _mm512_mask_max_ps(top, live, top, _mm512_maskz_loadu_ps(live, row + k));
        }
        float most = _mm512_reduce_max_ps(top);
        __m512 peak = _mm512_set1_ps(most);
        best[i] = -1;
        for (int64_t k = 0; k < size;) {
            __m512 part = _mm512_setzero_ps();
            for (int64_t stop = k + 16 * SUM; k < size && k < stop; k += 16) {
                __mmask16 live = size - k >= 16 ? 0xffff : (1u << (size - k)) - 1;
                __m512 v = _mm512_maskz_loadu_ps(live, row + k);
                __mmask16 here = _mm512_mask_cmp_ps_mask(live, v, peak, _CMP_EQ_OQ);
                if (here && best[i] < 0) best[i] = k + __builtin_ctz(here);
                part = _mm512_mask_add_ps(part, live, part, exp16(_mm512_sub_ps(v, peak)));
            }
            sum = _mm512_add_ps(sum, part);
        }
        if (best[i] < 0) best[i] = 0; /* a row of not-a-number */
        log_z[i] = most + logf(_mm512_reduce_add_ps(sum));
    }
}

/* ------------------------------------------------------------------------------------------------ attention */

/* Keys of a page lie as [kv heads][size/2][PAGE][2] (float32: [kv heads][size][PAGE]), values as [kv heads][PAGE][size]. */

INLINE void head_in(const float *y, int64_t size, const float *norm, double epsilon, const float *cosine, const float *sine, float *out) {
    float scale = 1.0f;
    int64_t half = size / 2;
    if (norm) {
        __m512 sum = _mm512_setzero_ps();
        for (int64_t k = 0; k < size; k += 16) {
            __mmask16 live = size - k >= 16 ? 0xffff : (1u << (size - k)) - 1;
            __m512 v = _mm512_maskz_loadu_ps(live, y + k);
            sum = _mm512_fmadd_ps(v, v, sum);
        }
        scale = rms_scale(sum, size, epsilon);
    }
    for (int64_t k = 0; k < half; k++) {
        float a = y[k], b = y[k + half];
        if (norm) a = a * scale * norm[k], b = b * scale * norm[k + half];
        out[k] = a * cosine[k] - b * sine[k];
        out[k + half] = b * cosine[k] + a * sine[k];
    }
}

/* Rotate queries and keys (RoPE, arXiv 2104.09864; halves as in Llama), after the norms of Qwen 3 when given, and put keys and values
 * into the cache. y[rows][ys] holds queries, keys, values at column 0, ko, vo; `slots` says where each row's token lies; cosine, sine are
 * [positions][size/2]. q is [rows][heads][size]. */
void tunery_rotate(const float *y, int64_t ys, int64_t ko, int64_t vo, int64_t rows, int64_t heads, int64_t kv_heads, int64_t size,
                   const float *q_norm, const float *k_norm, double epsilon, const float *cosine, const float *sine, const int64_t *positions,
                   const int64_t *slots, void *q, void *keys, void *values, int64_t wide) {
#pragma omp parallel for num_threads(team()) schedule(static) if (rows > 2)
    for (int64_t i = 0; i < rows; i++) {
        float head[size];
        const float *c = cosine + positions[i] * size / 2, *s = sine + positions[i] * size / 2;
        int64_t page = slots[i] / PAGE, at = slots[i] % PAGE;
        for (int64_t h = 0; h < heads; h++) {
            head_in(y + i * ys + h * size, size, q_norm, epsilon, c, s, head);
            int64_t to = (i * heads + h) * size;
            if (wide) memcpy((float *)q + to, head, size * sizeof(float));
            else for (int64_t k = 0; k < size; k += 16) narrow((bf16 *)q + to + k, _mm512_loadu_ps(head + k));
        }
        for (int64_t h = 0; h < kv_heads; h++) {
            head_in(y + i * ys + ko + h * size, size, k_norm, epsilon, c, s, head);
            const float *value = y + i * ys + vo + h * size;
            int64_t to = (page * kv_heads + h) * size * PAGE;
            if (wide) {
                float *k_to = (float *)keys + to, *v_to = (float *)values + to + at * size;
                for (int64_t k = 0; k < size; k++) k_to[k * PAGE + at] = head[k];
                memcpy(v_to, value, size * sizeof(float));
            } else {
                bf16 *k_to = (bf16 *)keys + to, *v_to = (bf16 *)values + to + at * size;
                for (int64_t k = 0; k < size; k++) k_to[k / 2 * 2 * PAGE + at * 2 + k % 2] = narrow1(head[k]);
                for (int64_t k = 0; k < size; k += 16) narrow(v_to + k, _mm512_loadu_ps(value + k));
            }
        }
    }
}

/* scores[N][PAGE] of one page. */
#define SCORES(N)                                                                                                              \
    INLINE void scores_##N(const void *const *q, const void *keys, int64_t size, float *out, int64_t os, int wide) {           \
        __m512 acc[N];                                                                                                         \
        UNROLL for (int i = 0; i < N; i++) acc[i] = _mm512_setzero_ps();                                                       \
        if (wide) {                                                                                                            \
            for (int64_t k = 0; k < size; k++) {                                                                               \
                __m512 key = _mm512_loadu_ps((const float *)keys + k * PAGE);                                                  \
                UNROLL for (int i = 0; i < N; i++) acc[i] = _mm512_fmadd_ps(_mm512_set1_ps(((const float *)q[i])[k]), key, acc[i]); \
            }                                                                                                                  \
        } else {                                                                                                               \
            for (int64_t k = 0; k < size; k += 2) {                                                                            \
                __m512bh key = (__m512bh)_mm512_loadu_si512((const bf16 *)keys + k * PAGE);                                    \
                UNROLL for (int i = 0; i < N; i++) {                                                                           \
                    int pair;                                                                                                  \
                    memcpy(&pair, (const bf16 *)q[i] + k, 4);                                                                  \
                    acc[i] = _mm512_dpbf16_ps(acc[i], (__m512bh)_mm512_set1_epi32(pair), key);                                 \
                }                                                                                                              \
            }                                                                                                                  \
        }                                                                                                                      \
        UNROLL for (int i = 0; i < N; i++) _mm512_storeu_ps(out + i * os, acc[i]);                                             \
    }

/* acc[N][V] += p[N][tokens] values[tokens][16 V]. */
#define MIXED(N, V)                                                                                                            \
    INLINE void mixed_##N##_##V(const float *p, int64_t ps, const void *values, int64_t vs, int64_t tokens, __m512 acc[][4], int wide) { \
        for (int64_t j = 0; j < tokens; j++) {                                                                                 \
            __m512 value[V];                                                                                                   \
            UNROLL for (int v = 0; v < V; v++) value[v] = wide ? _mm512_loadu_ps((const float *)values + j * vs + 16 * v)      \
                                                               : widen((const bf16 *)values + j * vs + 16 * v);                \
            UNROLL for (int i = 0; i < N; i++) {                                                                               \
                __m512 weight = _mm512_set1_ps(p[i * ps + j]);                                                                 \
                UNROLL for (int v = 0; v < V; v++) acc[i][v] = _mm512_fmadd_ps(weight, value[v], acc[i][v]);                   \
            }                                                                                                                  \
        }                                                                                                                      \
    }
SCORES(1) SCORES(2) SCORES(3) SCORES(4) SCORES(5) SCORES(6)
MIXED(1, 4) MIXED(2, 4) MIXED(3, 4) MIXED(4, 4) MIXED(5, 4) MIXED(6, 4) MIXED(1, 1) MIXED(2, 1) MIXED(3, 1) MIXED(4, 1) MIXED(5, 1) MIXED(6, 1)

/* Rows [start, end) are the newest tokens of one sequence whose `length` tokens, the last row's included, lie in `pages`. */
struct span {
    int64_t start, end, length;
    const int32_t *pages;
};

struct attention {
    const void *q, *keys, *values;
    void *out;
    int64_t heads, kv_heads, size, window, wide;
    double scale;
};

/* Softmax in place of scores [length], of which [first, last] count; the others become zero. */
static float softmax(float *p, int64_t from, int64_t to, int64_t first, int64_t last, float scale) {
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    __m512 top = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    for (int64_t j = from; j < to; j += 16) {
        __m512i at = _mm512_add_epi32(lanes, _mm512_set1_epi32(j));
        __mmask16 live = _mm512_cmpge_epi32_mask(at, _mm512_set1_epi32(first)) & _mm512_cmple_epi32_mask(at, _mm512_set1_epi32(last));
        __m512 v = _mm512_mask_mul_ps(_mm512_set1_ps(-INFINITY), live, _mm512_loadu_ps(p + j - from), _mm512_set1_ps(scale));
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

/* Up to ATTEND rows that share a key-value head: row r is query head `head + r % group` of token `token + r / group` of the span. */
static void attend(const struct attention *a, const struct span *span, int64_t kv, int64_t row, int n, float *p) {
    int64_t group = a->heads / a->kv_heads, size = a->size, element = a->wide ? 4 : 2, past = span->length - (span->end - span->start);
    int64_t newest = past + (row + n - 1) / group, oldest = past + row / group, begin = 0, stride = (span->length + PAGE - 1) / PAGE * PAGE;
    if (a->window && oldest - a->window + 1 > 0) begin = (oldest - a->window + 1) / PAGE * PAGE;
    const void *q[ATTEND];
    for (int i = 0; i < n; i++)
        q[i] = (const char *)a->q + (((span->start + (row + i) / group) * a->heads + kv * group + (row + i) % group) * size) * element;
    for (int64_t j = begin; j <= newest; j += PAGE) {
        const void *keys = (const char *)a->keys + ((int64_t)span->pages[j / PAGE] * a->kv_heads + kv) * size * PAGE * element;
#define CASE(N)                                                          \
    case N:                                                              \
        if (a->wide) scores_##N(q, keys, size, p + j - begin, stride, 1); \
        else scores_##N(q, keys, size, p + j - begin, stride, 0);         \
        break;
        switch (n) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) }
#undef CASE
    }
    float total[ATTEND];
    int64_t end = newest / PAGE * PAGE + PAGE;
    for (int i = 0; i < n; i++) {
        int64_t own = past + (row + i) / group;
        total[i] = softmax(p + i * stride, begin, end, a->window && own - a->window + 1 > 0 ? own - a->window + 1 : 0, own, (float)a->scale);
    }
    int vectors = size % 64 ? 1 : 4;
    for (int64_t d = 0; d < size; d += 16 * vectors) {
        __m512 acc[ATTEND][4];
        for (int i = 0; i < n; i++) for (int v = 0; v < vectors; v++) acc[i][v] = _mm512_setzero_ps();
        for (int64_t j = begin; j <= newest; j += PAGE) {
            int64_t tokens = newest + 1 - j < PAGE ? newest + 1 - j : PAGE;
            const void *values = (const char *)a->values + (((int64_t)span->pages[j / PAGE] * a->kv_heads + kv) * size * PAGE + d) * element;
#define CASE(N)                                                                                     \
    case N:                                                                                         \
        if (vectors == 1) mixed_##N##_1(p + j - begin, stride, values, size, tokens, acc, a->wide);  \
        else if (a->wide) mixed_##N##_4(p + j - begin, stride, values, size, tokens, acc, 1);        \
        else mixed_##N##_4(p + j - begin, stride, values, size, tokens, acc, 0);                     \
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

/* Causal attention over pages (PagedAttention, arXiv 2309.06180) of grouped queries (arXiv 2305.13245), within `window` tokens unless 0.
 * out, q: [rows][heads][size]. */
void tunery_attend(const struct span *spans, int64_t count, const void *q, const void *keys, const void *values, int64_t heads, int64_t kv_heads,
                   int64_t size, double scale, int64_t window, void *out, int64_t wide) {
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
