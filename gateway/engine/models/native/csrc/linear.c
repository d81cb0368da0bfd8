/* Linear layers that share their input, with the LoRA deltas of every row's adapter, and rows of a packed embedding. */
#include "prefetch.h"

#ifdef NATIVE

#define DEPTH                                                                                                          \
    768 /* k unpacked at a time, a multiple of SUM: such a piece of a panel stays in the second-level cache            \
         */

/* y += x W^T in one panel of the base's weight, at `y`; fetches the cache lines of `prefetch`, which may be null,
 * meanwhile. */
static void base_product(const struct linear *c, const struct weight *w, int64_t panel, float *y, void *scratch,
                         const struct prefetch *prefetch) {
    if (c->rows <= 4 && w->format == NF4 && !c->wide) {
        gemm_nf4(c->rows, w, panel, (const bf16 *)c->x, c->xs, y, c->ys);
        return;
    }
    int64_t next = 0, lines = prefetch ? prefetch->count & ~1 : 0;
    for (int64_t k = 0; k < w->k; k += DEPTH) {
        int64_t depth = least(w->k - k, DEPTH);
        const char *values = unpack(w, panel, k, k + depth, scratch, c->wide);
        for (int64_t i = 0; i < c->rows; i += BLOCK) {
            const char *x = c->x + (i * c->xs + k) * c->element;
            int64_t fetching = c->rows - i >= BLOCK ? least(lines - next, depth) : 0;
            if (fetching)
                gemm_prefetching((const bf16 *)x, c->xs, (const bf16 *)values, fetching, y + i * c->ys, c->ys,
                                 prefetch->lines + next);
            if (fetching < depth)
                gemm(least(c->rows - i, BLOCK), x + fetching * c->element, c->xs,
                     values + fetching * PANEL * c->element, depth - fetching, y + i * c->ys, c->ys, c->wide);
            next += fetching;
        }
    }
}

/* A thread's panels: the LoRA deltas first, the base's products on top, then gains and biases. */
static void compute_panels(const struct linear *c, const struct part *p) {
    int64_t t = 0, skipped = 0, room = c->rows / BLOCK * c->w->k;
    int prefetching = c->count && room && room <= 1 << 14 && !c->wide;
    struct prefetch prefetch = {.lines = prefetching ? malloc((room + 7) * sizeof(char *)) : NULL, .room = room};
    void *scratch = c->w->format >= NF4 ? aligned_alloc(64, DEPTH * PANEL * sizeof(float)) : NULL;
    for (int64_t at = p->low; at < p->high; at++) {
        while (at - skipped >= c->w[t].panels) skipped += c->w[t++].panels;
        int64_t panel = at - skipped;
        float *y = c->y + at * PANEL;
        for (int64_t i = 0; i < c->rows; i++) memset(y + i * c->ys, 0, PANEL * sizeof(float));
        lora_expand(c, t, panel, y);
        if (prefetching) plan_prefetch(&prefetch, c, p, t, panel + 1);
        base_product(c, c->w + t, panel, y, scratch, prefetching ? &prefetch : NULL);
        gain_and_bias(c, t, panel, y);
    }
    free(scratch);
    free(prefetch.lines);
}

/* y[rows][ys] = `targets` linear layers that share the input x[rows][xs], their outputs side by side, plus each
 * segment's LoRA deltas on its rows. Segments are in order of rows; several may name the same rows, one after the
 * other, as compositions of adapters do. Target t is entry `first` + t of a segment's table; the `following` entries
 * after the call's own are needed by the next call and prefetched. `s` is scratch, float32 [rows of all
 * segments][targets][ranks], with `ranks` the largest rank. */
void tunery_linear(const struct weight *w, int64_t targets, const void *x, int64_t xs, int64_t rows, float *y,
                   int64_t ys, const struct segment *segments, int64_t count, int64_t first, int64_t following,
                   float *s, int64_t ranks, int64_t wide) {
    const struct linear call = {w,  x,     y,     s,         segments, targets, xs,          rows,
                                ys, count, first, following, ranks,    wide,    wide ? 4 : 2};
    int64_t panels = 0, adapted = 0;
    for (int64_t t = 0; t < targets; t++) panels += w[t].panels;
    for (int64_t g = 0; g < count; g++) adapted += length_of(segments + g);
#pragma omp parallel num_threads(team())
    {
        int64_t threads = omp_get_num_threads(), me = omp_get_thread_num(), tiles = (adapted + 3) / 4;
        const struct part part = {panels * me / threads, panels * (me + 1) / threads, tiles * me / threads * 4,
                                  least(tiles * (me + 1) / threads * 4, adapted)};
        if (count) {
            lora_shrink(&call, &part);
#pragma omp barrier
        }
        compute_panels(&call, &part);
    }
}

/* An embedding that shares the packed weight of the head: out[n][k] = row tokens[n], float32; bf16 and f32 formats
 * only. */
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
#endif
