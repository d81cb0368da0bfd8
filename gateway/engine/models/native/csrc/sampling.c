/* What the sampler needs of a row of logits. */
#include "common.h"

#ifdef NATIVE

/* Of each row of logits[rows][ls], the index of the largest of its `size` values and the log of the sum of their
 * exponentials. */
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
        if (best[i] < 0) best[i] = 0; /* a row of NaN */
        log_z[i] = most + logf(_mm512_reduce_add_ps(sum));
    }
}
#endif
