/* Fetching adapters' weights into the second-level cache before they are needed: hundreds of adapters do not fit, and
 * each is read once a step. It changes when memory is read, never a result. */
#pragma once
#include "lora.h"

#ifdef NATIVE

/* Addresses of the cache lines that a thread is about to need: while it computes a panel, the B of the next one, and
 * then the A of the layer that follows. The last five fields say how far that is. */
struct prefetch {
    const char **lines;
    int64_t count, room, segment, target, offset, base;
};

/* Note the cache lines of a range, eight at a time; `lines` has room for seven more than `room`. */
INLINE void note_lines(struct prefetch *p, const void *from, int64_t bytes) {
    int64_t count = least((bytes + 63) / 64, p->room - p->count);
    __m512i at =
        _mm512_add_epi64(_mm512_set1_epi64((int64_t)from), _mm512_set_epi64(448, 384, 320, 256, 192, 128, 64, 0));
    for (int64_t i = 0; i < count; i += 8, at = _mm512_add_epi64(at, _mm512_set1_epi64(512)))
        _mm512_storeu_si512(p->lines + p->count + i, at);
    p->count += count;
}

/* Note what is needed after the panel before `panel` of target t. */
static void plan_prefetch(struct prefetch *p, const struct linear *c, const struct part *part, int64_t t,
                          int64_t panel) {
    p->count = 0;
    if (panel == c->w[t].panels) panel = 0, t++;
    for (int64_t g = 0; g < c->count && t < c->targets; g++) {
        const struct lora *lora = lora_of(c, g, t);
        int64_t size = lora->rank * PANEL * c->element;
        note_lines(p, (const char *)lora->b + panel * size, size);
    }
    while (p->count < p->room && p->segment < c->count) {
        const struct lora *lora = lora_of(c, p->segment, c->targets + p->target);
        int64_t length = length_of(c->segments + p->segment), size = lora->rank * lora->k * c->element,
                before = p->count;
        if (p->target < c->following && p->base < part->end && p->base + length > part->begin && p->offset < size) {
            note_lines(p, (const char *)lora->a + p->offset, size - p->offset);
            p->offset += (p->count - before) * 64;
            if (p->offset < size) break;
        }
        p->offset = 0;
        if (++p->target >= c->following) p->target = 0, p->base += length, p->segment++;
    }
}
#endif
