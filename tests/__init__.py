"""The tests, and the environment that they and the processes they start run in.

It is set here, before anything else is imported, because torch reads OMP_NUM_THREADS when it is imported.
"""

import os

# The developer's own settings must not change what the tests see.
for variable in [name for name in os.environ if name.startswith("TUNERY_") and name != "TUNERY_TEST_CACHE"]:
    del os.environ[variable]
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"
# Each worker of pytest-xdist, and what it starts, computes on its share of the cores. More threads than cores wait for
# each other, which makes training on small models many times slower.
if (workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
