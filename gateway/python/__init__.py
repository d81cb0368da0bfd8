"""The Python API behind `import tunery`; what is public of it is listed in `gateway/python/tunery/__init__.py`."""
