/* Rotary positions, and writing keys and values into the paged KV cache.
 *
 * Keys of a page lie as [kv heads][size/2][PAGE][2] (float32: [kv heads][size][PAGE]), values as [kv
 * heads][PAGE][size].
 */
#include "common.h"

#ifdef NATIVE

/* One head of y[size] to out[size]: RMS norm with gain `norm` unless that is null, then the rotation of its halves. */
INLINE void norm_and_rotate(const float *y, int64_t size, const float *norm, double epsilon, const float *cosine,
                            const float *sine, float *out) {
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

/* Rotate queries and keys (RoPE, arXiv 2104.09864; halves as in Llama), after Qwen 3's norms unless those are null, and
 * write keys and values into the KV cache. y[rows][ys] holds queries, keys and values from columns 0, ko and vo; a
 * row's slot is page * PAGE + its place in the page; cosine and sine are [positions][size/2]. q is [rows][heads][size].
 */
void tunery_rotate(const float *y, int64_t ys, int64_t ko, int64_t vo, int64_t rows, int64_t heads, int64_t kv_heads,
                   int64_t size, const float *q_norm, const float *k_norm, double epsilon, const float *cosine,
                   const float *sine, const int64_t *positions, const int64_t *slots, void *q, void *keys, void *values,
                   int64_t wide) {
#pragma omp parallel for num_threads(team()) schedule(static) if (rows > 2)
    for (int64_t i = 0; i < rows; i++) {
        float head[size];
        const float *c = cosine + positions[i] * size / 2, *s = sine + positions[i] * size / 2;
        int64_t page = slots[i] / PAGE, at = slots[i] % PAGE;
        for (int64_t h = 0; h < heads; h++) {
            norm_and_rotate(y + i * ys + h * size, size, q_norm, epsilon, c, s, head);
            int64_t to = (i * heads + h) * size;
            if (wide) memcpy((float *)q + to, head, size * sizeof(float));
            else
                for (int64_t k = 0; k < size; k += 16) narrow((bf16 *)q + to + k, _mm512_loadu_ps(head + k));
        }
        for (int64_t h = 0; h < kv_heads; h++) {
            norm_and_rotate(y + i * ys + ko + h * size, size, k_norm, epsilon, c, s, head);
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
#endif
