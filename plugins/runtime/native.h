/* What every library of native kernels begins with: whether the CPU can run it, its number of threads, and e^x.
 *
 * Code after the include is compiled for AVX-512 with bfloat16 products. Where the compiler cannot do that, NATIVE is
 * not defined; every source wraps its code in `#ifdef NATIVE`.
 */
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#endif

/* Whether this CPU has the instructions that the kernels are compiled for. */
static inline int supported(void) {
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bf16");
#else
    return 0;
#endif
}

#if defined(__x86_64__) && defined(__GNUC__)
#define NATIVE 1
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma,avx2")
#include <immintrin.h>
#include <omp.h>

#define INLINE static inline __attribute__((always_inline))

/* The most threads of a parallel region, 0 for OpenMP's own choice. Another thread may set it while kernels run. Each
 * library defines it. */
extern int tunery_thread_limit;

/* Threads for the next parallel region. */
INLINE int team(void) {
    const int most = omp_get_max_threads(), limit = __atomic_load_n(&tunery_thread_limit, __ATOMIC_RELAXED);
    return limit > 0 && limit < most ? limit : most;
}

typedef uint16_t bf16;

/* e^x to about one unit in the last place, zero below -87 (Cody-Waite reduction, polynomial of degree 6). NaN stays
 * NaN: minimum and maximum return their second operand where either is NaN. */
INLINE __m512 exp16(__m512 x) {
    __mmask16 live = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_NLE_UQ);
    x = _mm512_min_ps(_mm512_set1_ps(88.0f), _mm512_max_ps(_mm512_set1_ps(-87.0f), x));
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
    return _mm512_maskz_scalef_ps(live, p, n);
}
#endif
