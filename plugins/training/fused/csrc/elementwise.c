/* RMS norm, rotary positions, SwiGLU and cross-entropy, each forward and backward; operations.py has the torch version
 * of each.
 *
 * Every row is computed by one thread in one order, so results do not depend on the number of threads.
 */
#include "vectors.h"

/* Whether this CPU has the instructions that the kernels are compiled for. */
int tunery_supported(void) { return supported(); }

int tunery_thread_limit = 0;

void tunery_limit_threads(int limit) { __atomic_store_n(&tunery_thread_limit, limit, __ATOMIC_RELAXED); }

#ifdef NATIVE
/* y = weight * x / sqrt(mean(x^2) + eps) (RMSNorm, arXiv 1910.07467). x, y [rows][width]; weight float32 [width]; scale
 * float32 [rows] receives 1 / sqrt(...) for the backward pass. */
void tunery_norm(const bf16 *x, const float *weight, bf16 *y, float *scale, int64_t rows, int64_t width, double eps) {
#pragma omp parallel for num_threads(team()) schedule(static)
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

/* The gradient of tunery_norm by x, where `grad` is the gradient by y, plus `carried` (which may be `out`), to `out`;
 * y is computed again. */
void tunery_norm_backward(const bf16 *grad, const bf16 *x, const float *weight, const float *scale, const bf16 *carried,
                          bf16 *out, bf16 *y, int64_t rows, int64_t width) {
#pragma omp parallel for num_threads(team()) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const int64_t at = row * width;
        __m512 sum = _mm512_setzero_ps();
        for (int64_t i = 0; i < width; i += LANES) {
            __mmask16 m = lanes(i, width);
            __m512 g = _mm512_mul_ps(load(grad + at + i, m), _mm512_maskz_loadu_ps(m, weight + i));
            sum = _mm512_fmadd_ps(g, load(x + at + i, m), sum);
        }
        const float s = scale[row];
        const __m512 factor = _mm512_set1_ps(s);
        const __m512 along = _mm512_set1_ps(s * s * s * _mm512_reduce_add_ps(sum) / (float)width);
        for (int64_t i = 0; i < width; i += LANES) {
            __mmask16 m = lanes(i, width);
            __m512 w = _mm512_maskz_loadu_ps(m, weight + i), v = load(x + at + i, m);
            __m512 g = _mm512_mul_ps(load(grad + at + i, m), w);
            __m512 d = _mm512_fnmadd_ps(v, along, _mm512_mul_ps(g, factor));
            store(y + at + i, m, _mm512_mul_ps(_mm512_mul_ps(v, factor), w));
            store(out + at + i, m, _mm512_add_ps(d, load(carried + at + i, m)));
        }
    }
}

/* Rotary positions (arXiv 2104.09864) in place: x [rows][heads][2 * half]; cosine, sine float32 [rows][2 * half], of
 * which the first half is read; `sign` -1 rotates back. */
void tunery_rotate(bf16 *x, const float *cosine, const float *sine, int64_t rows, int64_t heads, int64_t half,
                   double sign) {
    const __m512 way = _mm512_set1_ps((float)sign);
#pragma omp parallel for num_threads(team()) schedule(static)
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

#define STRIP 4096 /* elements that one thread computes at a time */

/* out = silu(gate) * up (SwiGLU, arXiv 2002.05202), n elements each. */
void tunery_swiglu(const bf16 *gate, const bf16 *up, bf16 *out, int64_t n) {
#pragma omp parallel for num_threads(team()) schedule(static)
    for (int64_t strip = 0; strip < n; strip += STRIP)
        for (int64_t i = strip; i < n && i < strip + STRIP; i += LANES) {
            __mmask16 m = lanes(i, n);
            __m512 g = load(gate + i, m);
            store(out + i, m, _mm512_mul_ps(_mm512_mul_ps(g, logistic(g)), load(up + i, m)));
        }
}

/* The gradients of tunery_swiglu by gate and up; `grad` is the gradient by its output and is overwritten with the
 * output itself. */
void tunery_swiglu_backward(bf16 *grad, const bf16 *gate, const bf16 *up, bf16 *grad_gate, bf16 *grad_up, int64_t n) {
    const __m512 one = _mm512_set1_ps(1.0f);
#pragma omp parallel for num_threads(team()) schedule(static)
    for (int64_t strip = 0; strip < n; strip += STRIP)
        for (int64_t i = strip; i < n && i < strip + STRIP; i += LANES) {
            __mmask16 m = lanes(i, n);
            __m512 d = load(grad + i, m), g = load(gate + i, m), u = load(up + i, m);
            __m512 share = logistic(g), active = _mm512_mul_ps(g, share);
            __m512 steep = _mm512_fmadd_ps(active, _mm512_sub_ps(one, share), share);
            store(grad_gate + i, m, _mm512_mul_ps(_mm512_mul_ps(d, u), steep));
            store(grad_up + i, m, _mm512_mul_ps(d, active));
            store(grad + i, m, _mm512_mul_ps(active, u));
        }
}

/* Cross-entropy in nats of logits [rows][size] with int64 targets [rows], to float32 losses [rows]; `correct` [rows]
 * receives 1 where no logit is above the target's. With `grad`, the logits are overwritten with the gradient. */
void tunery_cross_entropy(bf16 *logits, const int64_t *targets, float *losses, uint8_t *correct, int64_t rows,
                          int64_t size, int64_t grad) {
#pragma omp parallel for num_threads(team()) schedule(static)
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
            sum = _mm512_mask_add_ps(sum, m, sum, exp16(_mm512_sub_ps(load(at + i, m), top)));
        }
        const float total = _mm512_reduce_add_ps(sum), wanted = (float)_mm512_cvtss_f32(load(at + targets[row], 1));
        losses[row] = logf(total) + _mm512_cvtss_f32(top) - wanted;
        correct[row] = wanted >= _mm512_cvtss_f32(top);
        if (!grad) continue;
        const __m512 share = _mm512_set1_ps(1.0f / total);
        for (int64_t i = 0; i < size; i += LANES) {
            __mmask16 m = lanes(i, size);
            store(at + i, m, _mm512_mul_ps(exp16(_mm512_sub_ps(load(at + i, m), top)), share));
        }
        store(at + targets[row], 1, _mm512_set1_ps(expf(-losses[row]) - 1.0f));
    }
}
#endif
