"""Eight CPU devices for every test, and a limit on what a quick test costs.

Both are set before JAX starts. Programs compile with little optimization, or
come from a cache in `.pytest_cache/`, for most of a test's time is XLA's. The
programs are the same either way; `pytest --cache-clear` empties the cache.

Two lanes see one device instead, and XLA as users have it: `-m compiled`, of
programs that are compiled for an H100 without one, and `-m gpu`, of what means
something on a machine with one GPU.
"""

import os
import pathlib
import tempfile
from collections.abc import Iterator

os.environ.setdefault(
  "JAX_COMPILATION_CACHE_DIR",
  str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "programs"),
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import pytest

# CPU seconds that a test without the mark `slow` may take, and its fixtures,
# which other tests of the module share. On slower machines, times a factor.
CPU_SECONDS = {"call": 10.0, "setup": 20.0}
CPU_FACTOR = float(os.environ.get("SPARSEJAX_TEST_CPU_FACTOR", "1"))


# What the lane `gpu` runs, because a GPU may compute it otherwise than a CPU,
# but for what is slow, needs several devices or is about CPUs.
HERE = pathlib.Path(__file__).parent
FOR_A_GPU = (
  "conformance",
  "experiments/runs/test_resume.py",
  "experiments/runs/test_run_modes.py",
  "experiments/runs/test_train.py",
  "experiments/sweep/test_populations.py",
  "kernels/test_blocks.py",
  "kernels/test_products.py",
  "modes",
  "packed",
  "patterns",
  "select",
  "test_initial.py",
  "test_linear.py",
  "test_masks.py",
  "test_population.py",
  "test_rules.py",
  "test_scores.py",
  "transform",
  "updates",
)
NOT_FOR_A_GPU = {"cpu", "mesh", "slow"}


def lane(config: pytest.Config) -> str:
  """Names the lane that `-m` chooses, or none of them."""
  word = (config.option.markexpr or "").split(" ")[0]
  return word if word in ("compiled", "gpu") else ""


def pytest_configure(config: pytest.Config) -> None:
  """Chooses devices, before a test makes JAX look for them."""
  flags = [os.environ.get("XLA_FLAGS", "")]
  if lane(config) == "compiled":
    jax.config.update("jax_platforms", "cpu")
    # The plugin would look for a driver, which compiling does not need.
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
  elif lane(config) == "gpu":
    # float32 as it is, where a GPU's default is 10 bits of its 23.
    os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
    jax.config.update("jax_default_matmul_precision", "highest")
    # Several processes share the card.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    # The same bits from the same program: a run that resumes has those of one
    # that was never stopped.
    flags.append("--xla_gpu_deterministic_ops=true")
  else:
    flags = [
      "--xla_force_host_platform_device_count=8",
      "--xla_backend_optimization_level=0",
      "--xla_llvm_disable_expensive_passes=true",
      # A fifth less to compile than 32 parts of each program, for other cores.
      "--xla_cpu_parallel_codegen_split_count=1",
      # Without fused multiply-add, which LLVM uses or not as operations happen
      # to lie together, so that different programs compute the same bits.
      "--xla_cpu_max_isa=AVX",
      # Halves what compiling costs on JAX 0.10; newer ones ignore it.
      "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters",
      *flags,
    ]
  os.environ["XLA_FLAGS"] = " ".join(flags)


def pytest_ignore_collect(
  collection_path: pathlib.Path, config: pytest.Config
) -> bool | None:
  """Spares a lane the import of the other tests."""
  rooms = {"compiled": ("compiled",), "gpu": FOR_A_GPU}.get(lane(config))
  if rooms is None or collection_path.suffix != ".py":
    return None
  return not _is_in(collection_path, rooms) or None


def _is_in(path: pathlib.Path, rooms: tuple[str, ...]) -> bool:
  return any(path.is_relative_to(HERE / room) for room in rooms)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Marks what the lane `gpu` runs."""
  for item in items:
    marks = {mark.name for mark in item.iter_markers()}
    if _is_in(item.path, FOR_A_GPU) and not marks & NOT_FOR_A_GPU:
      item.add_marker("gpu")


@pytest.fixture(autouse=True, scope="session")
def _temporary_files(
  tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[None]:
  """Has packages leave files where pytest removes them, not in /tmp.

  TFDS leaves an empty folder for every builder of a set that is not prepared.
  """
  tempfile.tempdir = str(tmp_path_factory.mktemp("left"))
  yield
  tempfile.tempdir = None


@pytest.fixture(autouse=True, scope="module")
def _no_more_programs_than_linux_maps() -> Iterator[None]:
  """Drops compiled programs before a process has too many of them.

  Each takes some of the 65,530 memory maps that Linux allows a process by
  default; whoever asks for one more dies, in the middle of any test.
  """
  yield
  maps = pathlib.Path("/proc/self/maps")
  if maps.exists() and maps.read_text().count("\n") > 20_000:
    jax.clear_caches()


@pytest.fixture(autouse=True, scope="session")
def _kernels() -> None:
  """Builds the kernels, which takes longer than a quick test may."""
  from sparsejax import kernels

  kernels.available(quiet=True)


@pytest.fixture
def no_data_sets(
  monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> Iterator[None]:
  """Makes a machine without any data set, whichever of them this one has."""
  from experiments.config import grid, parts, smoke
  from experiments.data import sets

  monkeypatch.setattr(sets, "DEBIAN_FASHION_MNIST", str(tmp_path / "none"))
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
  cached = (parts._load, smoke._missing, smoke._tell, grid.rows, grid.plan)
  for function in cached:
    function.cache_clear()
  yield
  for function in cached:
    function.cache_clear()


def _cpu_seconds() -> float:
  """CPU seconds of this process and of the children that it waited for."""
  return sum(os.times()[:4])


def _limited(item: pytest.Item, phase: str) -> Iterator[None]:
  """Fails a test whose phase took more CPU than a quick test may."""
  begin = _cpu_seconds()
  result = yield
  if lane(item.config):
    return result
  seconds = _cpu_seconds() - begin
  limit = CPU_SECONDS[phase] * CPU_FACTOR
  # CPU and not wall time, which grows by far more on a busy machine.
  if seconds > limit and not item.get_closest_marker("slow"):
    pytest.fail(
      f"the {phase} of {item.nodeid} took {seconds:.1f} CPU seconds, more than "
      f"the {limit:g} of a quick test: make it cheaper, or mark it with "
      "@pytest.mark.slow. On a slow machine, raise "
      "SPARSEJAX_TEST_CPU_FACTOR (default 1).",
      pytrace=False,
    )
  return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
  """Limits the CPU seconds of fixtures."""
  return (yield from _limited(item, "setup"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
  """Limits the CPU seconds of tests."""
  return (yield from _limited(item, "call"))


def pytest_terminal_summary(
  terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
  """Says how to run the slow tests where they were left out."""
  if config.option.markexpr.startswith("not slow"):
    terminalreporter.write_line(
      'The slow tests were left out; to run all: python -m pytest -m ""'
    )
