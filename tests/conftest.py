"""Eight CPU devices for every test, set before JAX starts.

And programs that compile quickly: most of a test's time is LLVM's.
"""

import os

os.environ["XLA_FLAGS"] = " ".join(
  [
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    os.environ.get("XLA_FLAGS", ""),
  ]
)
