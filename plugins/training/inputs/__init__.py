"""What a training job is given: the request, the base, the parent version, and the checked and rendered rows."""
