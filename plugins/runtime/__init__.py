"""Process-wide settings: memory allocator, threads, devices, logging, and the loading of native libraries."""
