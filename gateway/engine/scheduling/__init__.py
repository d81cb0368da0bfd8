"""Continuous batching: the scheduler, the waiting queue, fairness, preemption, and the KV cache page allocator.

`scheduler.Scheduler` chooses the tokens of each forward pass, `admission` who starts to run, `fairness` (virtual token
counter) whose request comes first, `preemption` who makes room, `crowding` who sits out a pass, and `forward_batch`
describes the pass to the model.
"""
