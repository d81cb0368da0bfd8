"""Process-wide matters: memory allocator, threads, devices, logging and the loading of native libraries."""
