"""What a gateway does for jobs besides HTTP: it checks uploaded files, names tuned models, and may run a worker."""
