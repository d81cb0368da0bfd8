/* Entry points that are there on every CPU: whether the kernels can run here, and how many threads they may take. */
#include "common.h"

/* Whether this CPU has the instructions that the rest is compiled to. */
int tunery_supported(void) { return supported(); }

int tunery_thread_limit = 0;

void tunery_limit_threads(int limit) { __atomic_store_n(&tunery_thread_limit, limit, __ATOMIC_RELAXED); }
