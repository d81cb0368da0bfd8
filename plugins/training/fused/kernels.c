/* Owns the arithmetic of training that is no matrix product, on CPUs with AVX-512 and its bfloat16 conversions: norms, rotary positions,
 * gated activations and causal softmax, each forward and backward in one pass over memory. torch has a plain way beside each (operations.py).
 *
 * Elements are bfloat16, sums float32. Every row is computed by one thread in one order, so results do not depend on the number of threads.
 */
#include <math.h>
#include <stdint.h>

/* Whether this CPU has the instructions that the rest of the file is compiled to. */
int tunery_supported(void) {
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bf16");
#else
    return 0;
#endif
}

#if defined(__x86_64__) && defined(__GNUC__)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma,avx2")
#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))
#define LANES 16

typedef uint16_t bf16;

/* The lanes of a vector at `i` that lie before `n`. */
INLINE __mmask16 lanes(int64_t i, int64_t n) { return n - i >= LANES ? 0xFFFF : (__mmask16)((1u << (n - i)) - 1); }

INLINE __m512 load(const bf16 *p, __mmask16 m) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, p)), 16));
}

INLINE void store(bf16 *p, __mmask16 m, __m512 v) { _mm256_mask_storeu_epi16(p, m, (__m256i)_mm512_cvtneps_pbh(v)); }

/* e^x to about one unit in the last place, zero below -87, what is no number kept (Cody-Waite reduction, polynomial of degree 6). */
INLINE __m512 exponential(__m512 x) {
    const __mmask16 lost = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512 given = x;
    __mmask16 live = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_GT_OQ);
    x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-87.0f)), _mm512_set1_ps(88.0f));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)), 8);
    __m512 f = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    f = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), f);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(f, f), _mm512_add_ps(f, _mm512_set1_ps(1.0f)));
    return _mm512_mask_mov_ps(_mm512_maskz_scalef_ps(live, p, n), lost, given);
}

/* 1 / (1 + e^-x); the reciprocal is an estimate of 14 bits with one step of Newton's method. */
INLINE __m512 logistic(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    __m512 d = _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), x)));
    __m512 r = _mm512_rcp14_ps(d);
    return _mm512_mul_ps(r, _mm512_fnmadd_ps(d, r, _mm512_set1_ps(2.0f)));
}

/* y = weight * x / root(mean(x^2) + eps). x, y [rows][width]; weight float32 [width]; scale float32 [rows] keeps the inverse root. */
void tunery_norm(const bf16 *x, const float *weight, bf16 *y, float *scale, int64_t rows, int64_t width, double eps) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const bf16 *from = x + row * width;
        __m512 sum = _mm512_setzero_ps();
        for (int64_t i = 0; i < width; i += LANES) {
            __m512 v = load(from + i, lanes(i, width));
            sum = _mm512_fmadd_ps(v, v, sum);
        }
        scale[row] = 1.0f / sqrtf(_mm512_reduce_add_ps(sum) / (float)width + (float)eps);
        const __m512 factor = _mm512_set1_ps(scale[row]);
        for (int64_t i = 0; i < width; i += LANES) {
            __mmask16 m = lanes(i, width);
            __m512 w = _mm512_maskz_loadu_ps(m, weight + i);
            store(y + row * width + i, m, _mm512_mul_ps(_mm512_mul_ps(load(from + i, m), factor), w));
        }
    }
}

/* The gradient of tunery_norm, added to `carried` (which may be `out`): slope is that of y. y is written again for who needs it. */
void tunery_norm_backward(const bf16 *slope, const bf16 *x, const float *weight, const float *scale, const bf16 *carried, bf16 *out, bf16 *y,
                          int64_t rows, int64_t width) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const int64_t at = row * width;
        __m512 sum = _mm512_setzero_ps();
        for (int64_t i = 0; i < width; i += LANES) {
            __mmask16 m = lanes(i, width);
            __m512 g = _mm512_mul_ps(load(slope + at + i, m), _mm512_maskz_loadu_ps(m, weight + i));
            sum = _mm512_fmadd_ps(g, load(x + at + i, m), sum);
        }
        const float s = scale[row];
        const __m512 factor = _mm512_set1_ps(s);
        const __m512 along = _mm512_set1_ps(s * s * s * _mm512_reduce_add_ps(sum) / (float)width);
        for (int64_t i = 0; i < width; i += LANES) {
            __mmask16 m = lanes(i, width);
            __m512 w = _mm512_maskz_loadu_ps(m, weight + i), v = load(x + at + i, m);
            __m512 g = _mm512_mul_ps(load(slope + at + i, m), w);
            __m512 d = _mm512_fnmadd_ps(v, along, _mm512_mul_ps(g, factor));
            store(y + at + i, m, _mm512_mul_ps(_mm512_mul_ps(v, factor), w));
            store(out + at + i, m, _mm512_add_ps(d, load(carried + at + i, m)));
        }
    }
}

/* Rotary positions in place: x [rows][heads][2 * half]; cosine, sine float32 [rows][2 * half], of which the first half counts; `sign` -1 undoes. */
void tunery_rotate(bf16 *x, const float *cosine, const float *sine, int64_t rows, int64_t heads, int64_t half, double sign) {
    const __m512 way = _mm512_set1_ps((float)sign);
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++)
        for (int64_t head = 0; head < heads; head++) {
            bf16 *low = x + (row * heads + head) * 2 * half, *high = low + half;
            for (int64_t i = 0; i < half; i += LANES) {
                __mmask16 m = lanes(i, half);
                __m512 c = _mm512_maskz_loadu_ps(m, cosine + row * 2 * half + i);
                __m512 s = _mm512_mul_ps(way, _mm512_maskz_loadu_ps(m, sine + row * 2 * half + i));
                __m512 a = load(low + i, m), b = load(high + i, m);
                store(low + i, m, _mm512_fnmadd_ps(b, s, _mm512_mul_ps(a, c)));
                store(high + i, m, _mm512_fmadd_ps(a, s, _mm512_mul_ps(b, c)));
            }
        }
}

#define STRIP 4096 /* elements of a strip that one thread computes */

/* out = silu(gate) * up, n elements each. */
void tunery_swiglu(const bf16 *gate, const bf16 *up, bf16 *out, int64_t n) {
#pragma omp parallel for schedule(static)
    for (int64_t strip = 0; strip < n; strip += STRIP)
        for (int64_t i = strip; i < n && i < strip + STRIP; i += LANES) {
            __mmask16 m = lanes(i, n);
            __m512 g = load(gate + i, m);
            store(out + i, m, _mm512_mul_ps(_mm512_mul_ps(g, logistic(g)), load(up + i, m)));
        }
}

/* The gradients of tunery_swiglu; `slope` is that of its output and is overwritten with the output itself. */
void tunery_swiglu_backward(bf16 *slope, const bf16 *gate, const bf16 *up, bf16 *of_gate, bf16 *of_up, int64_t n) {
    const __m512 one = _mm512_set1_ps(1.0f);
#pragma omp parallel for schedule(static)
    for (int64_t strip = 0; strip < n; strip += STRIP)
        for (int64_t i = strip; i < n && i < strip + STRIP; i += LANES) {
            __mmask16 m = lanes(i, n);
            __m512 d = load(slope + i, m), g = load(gate + i, m), u = load(up + i, m);
            __m512 share = logistic(g), active = _mm512_mul_ps(g, share);
            __m512 steep = _mm512_fmadd_ps(active, _mm512_sub_ps(one, share), share);
            store(of_gate + i, m, _mm512_mul_ps(_mm512_mul_ps(d, u), steep));
            store(of_up + i, m, _mm512_mul_ps(d, active));
            store(slope + i, m, _mm512_mul_ps(active, u));
        }
}

/* Causal softmax in place: scores [rows][length], of which row r may see the first r mod length + 1; the others become zero. */
void tunery_softmax(bf16 *scores, int64_t rows, int64_t length, double scale) {
    const __m512 factor = _mm512_set1_ps((float)scale);
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        bf16 *at = scores + row * length;
        const int64_t seen = row % length + 1;
        __m512 most = _mm512_set1_ps(-INFINITY);
        for (int64_t i = 0; i < seen; i += LANES) {
            __mmask16 m = lanes(i, seen);
            most = _mm512_mask_max_ps(most, m, most, _mm512_mul_ps(load(at + i, m), factor));
        }
        const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(most));
        __m512 sum = _mm512_setzero_ps();
        for (int64_t i = 0; i < seen; i += LANES) {
            __mmask16 m = lanes(i, seen);
            sum = _mm512_mask_add_ps(sum, m, sum, exponential(_mm512_fmsub_ps(load(at + i, m), factor, top)));
        }
        const __m512 share = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(sum));
        for (int64_t i = 0; i < length; i += LANES) {
            __mmask16 m = lanes(i, length), live = i < seen ? lanes(i, seen) : 0;
            __m512 e = exponential(_mm512_fmsub_ps(load(at + i, live), factor, top));
            store(at + i, m, _mm512_maskz_mul_ps(live, e, share));
        }
    }
}

/* The gradient of tunery_softmax by its scores, in place of `slope`, that of its output `shares`; both [rows][length]. */
void tunery_softmax_backward(const bf16 *shares, bf16 *slope, int64_t rows, int64_t length, double scale) {
    const __m512 factor = _mm512_set1_ps((float)scale);
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const bf16 *p = shares + row * length;
        bf16 *d = slope + row * length;
        const int64_t seen = row % length + 1;
        __m512 sum = _mm512_setzero_ps();
        for (int64_t i = 0; i < seen; i += LANES) {
            __mmask16 m = lanes(i, seen);
            sum = _mm512_fmadd_ps(load(p + i, m), load(d + i, m), sum);
        }
        const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum));
        for (int64_t i = 0; i < length; i += LANES) {
            __mmask16 m = lanes(i, length), live = i < seen ? lanes(i, seen) : 0;
            __m512 v = _mm512_mul_ps(_mm512_mul_ps(load(p + i, live), factor), _mm512_sub_ps(load(d + i, live), mean));
            store(d + i, m, _mm512_maskz_mov_ps(live, v));
        }
    }
}
/* Cross-entropy of logits [rows][size] with int64 `targets`, in nats, to float32 `losses`. With `slope`, logits become its gradient. */
void tunery_cross_entropy(bf16 *logits, const int64_t *targets, float *losses, int64_t rows, int64_t size, int64_t slope) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        bf16 *at = logits + row * size;
        __m512 most = _mm512_set1_ps(-INFINITY);
        for (int64_t i = 0; i < size; i += LANES) {
            __mmask16 m = lanes(i, size);
            most = _mm512_mask_max_ps(most, m, most, load(at + i, m));
        }
        const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(most));
        __m512 sum = _mm512_setzero_ps();
        for (int64_t i = 0; i < size; i += LANES) {
            __mmask16 m = lanes(i, size);
            sum = _mm512_mask_add_ps(sum, m, sum, exponential(_mm512_sub_ps(load(at + i, m), top)));
        }
        const float total = _mm512_reduce_add_ps(sum), wanted = (float)_mm512_cvtss_f32(load(at + targets[row], 1));
        losses[row] = logf(total) + _mm512_cvtss_f32(top) - wanted;
        if (!slope) continue;
        const __m512 share = _mm512_set1_ps(1.0f / total);
        for (int64_t i = 0; i < size; i += LANES) {
            __mmask16 m = lanes(i, size);
            store(at + i, m, _mm512_mul_ps(exponential(_mm512_sub_ps(load(at + i, m), top)), share));
        }
        store(at + targets[row], 1, _mm512_set1_ps(expf(-losses[row]) - 1.0f));
    }
}
#pragma GCC pop_options
#endif
