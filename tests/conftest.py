import os
import tempfile

from hypothesis import settings

# Deadlines are timing asserts, and the machines that run this are slow and shared.
settings.register_profile("mlxpipe", deadline=None, max_examples=60)
settings.load_profile("mlxpipe")

# Nothing is written to, or read from, the cache of whoever runs the tests; processes inherit it.
_CACHE = tempfile.TemporaryDirectory(prefix="mlxpipe-test-cache-")
os.environ["MLXPIPE_CACHE"] = _CACHE.name
