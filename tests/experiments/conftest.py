"""What tests that start processes share."""

import pytest


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
  """Settings under which a process takes its programs from a former one."""
  return {
    "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
