"""Eight CPU devices for every test, set before JAX starts.

And programs that compile quickly, or that any process has compiled before: most
of a test's time is XLA's. Programs are the same from a cache or not;
`pytest --cache-clear` forgets them.
"""

import os
import pathlib

os.environ["XLA_FLAGS"] = " ".join(
  [
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    os.environ.get("XLA_FLAGS", ""),
  ]
)
os.environ.setdefault(
  "JAX_COMPILATION_CACHE_DIR",
  str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "programs"),
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def _no_more_programs_than_linux_maps():
  """Drops compiled programs before a process has too many of them.

  Each takes some of the 65,530 memory maps that Linux allows a process by
  default; whoever asks for one more dies, in the middle of any test.
  """
  yield
  maps = pathlib.Path("/proc/self/maps")
  if maps.exists() and maps.read_text().count("\n") > 20_000:
    jax.clear_caches()
