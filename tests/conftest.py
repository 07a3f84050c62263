"""Eight CPU devices for every test, set before JAX starts.

And programs that compile quickly: most of a test's time is LLVM's.
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
