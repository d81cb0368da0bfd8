"""A job from the queue: the process that trains it, its heartbeat, and what it reports."""
