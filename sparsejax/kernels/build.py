"""Builds the kernels on first use, and keeps what was built.

They are compiled against the headers of the installed jaxlib, into a directory
named after jaxlib's version, the compiler's and the sources.
"""

import ctypes
import functools
import hashlib
import os
import pathlib
import platform
import shutil
import subprocess
import tempfile
import warnings

import jax
import jaxlib

_SOURCES = pathlib.Path(__file__).parent
_COMMON = (
  *("dispatch.cc", "selection.cc", "handlers.cc", "masked_handlers.cc"),
  "attention_handlers.cc",
)
FLAGS = (
  *("-std=c++17", "-O3", "-fPIC", "-ffp-contract=fast"),
  *("-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"),
)
INSTRUCTION_SETS = {"plain": ()}
if platform.machine().lower() in ("x86_64", "amd64"):
  _AVX512 = (
    *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma"),
    "-mprefer-vector-width=512",
  )
  INSTRUCTION_SETS |= {
    "avx2": ("-mavx2", "-mfma"),
    "avx512": _AVX512,
    # All processors that have VBMI2 have VNNI, too.
    "avx512_vbmi2": (
      *(*_AVX512, "-mavx512vbmi", "-mavx512vbmi2", "-mavx512vnni"),
    ),
  }
# Compiled once for each of these instruction sets.
_PER_SET = {
  "products.cc": ("plain", "avx2", "avx512"),
  "attention.cc": ("plain", "avx2", "avx512"),
  "masked.cc": tuple(INSTRUCTION_SETS),
  "integers.cc": tuple(INSTRUCTION_SETS),
}
TARGETS = (
  *("sparsejax_layer", "sparsejax_multiply_one", "sparsejax_top_k"),
  *("sparsejax_multiply_masked", "sparsejax_attend"),
)


def available(*, quiet: bool = False) -> bool:
  """Tells whether the kernels can be used; builds them if necessary.

  Args:
    quiet: Whether to give no warning if they cannot.

  Returns:
    False, with one warning that says why, if there is no compiler or it fails;
    False without a warning if `SPARSEJAX_KERNELS=0` is in the environment.
  """
  if os.environ.get("SPARSEJAX_KERNELS") == "0":
    return False
  reason = _registered()
  if reason is not None and not quiet:
    _warn(reason)
  return reason is None


def loaded() -> bool:
  """Tells whether the kernels are available without building anything."""
  return bool(_registered.cache_info().currsize) and available(quiet=True)


@functools.cache
def _registered() -> str | None:
  """Registers the kernels; returns the reason if that fails."""
  try:
    library = ctypes.cdll.LoadLibrary(str(_built()))
    for name in TARGETS:
      jax.ffi.register_ffi_target(
        name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu"
      )
  except (OSError, AttributeError, subprocess.SubprocessError) as error:
    return str(getattr(error, "stderr", None) or error)
  return None


@functools.cache
def _warn(reason: str) -> None:
  warnings.warn(
    "the sparse kernels cannot be used, and products with packed weights are "
    f"made dense instead, with the same results but slower: {reason}. They "
    "need a C++ compiler such as g++, named by CXX in the environment if it is "
    "not c++; SPARSEJAX_KERNELS=0 does without them",
    stacklevel=3,
  )


def cache_directory() -> pathlib.Path:
  """Returns where built kernels are kept: `SPARSEJAX_CACHE`, or a cache."""
  if "SPARSEJAX_CACHE" in os.environ:
    return pathlib.Path(os.environ["SPARSEJAX_CACHE"])
  home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(home) / "sparsejax"


def _built() -> pathlib.Path:
  """Returns the library's path; compiles it if it is not there."""
  if platform.system() == "Windows":
    raise OSError("they are not built on Windows")
  compiler = os.environ.get("CXX", "c++")
  if shutil.which(compiler) is None:
    raise OSError(f"there is no compiler {compiler}")
  version = _run(compiler, "--version")
  key = hashlib.sha256()
  parts = [jaxlib.__version__, platform.machine(), version, str(FLAGS)]
  parts += [str(INSTRUCTION_SETS)]
  parts += [p.read_text() for p in sorted(_SOURCES.glob("*.[ch]*"))]
  for part in parts:
    key.update(part.encode() + b"\0")
  directory = cache_directory()
  library = directory / f"kernels-{key.hexdigest()[:16]}.so"
  if not library.exists():
    directory.mkdir(parents=True, exist_ok=True)
    # Beside its place, then moved there at once: others may build it, too.
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
      new = compiled(compiler, pathlib.Path(scratch), FLAGS)
      os.replace(new, library)
  return library


def compiled(
  compiler: str, scratch: pathlib.Path, flags: tuple[str, ...]
) -> pathlib.Path:
  """Compiles all sources into one library in a directory."""
  include = f"-I{jax.ffi.include_dir()}"
  objects = []
  for name, instructions in INSTRUCTION_SETS.items():
    for source, names in _PER_SET.items():
      if name not in names:
        continue
      target = scratch / f"{source}-{name}.o"
      _run(
        *(compiler, *flags, *instructions, f"-DSPARSEJAX_ISA={name}"),
        *("-c", _SOURCES / source, "-o", target),
      )
      objects.append(target)
  library = scratch / "kernels.so"
  _run(
    *(compiler, *flags, include, "-shared", "-pthread", *objects),
    *(*(_SOURCES / name for name in _COMMON), "-o", library),
  )
  return library


def _run(*command) -> str:
  return subprocess.run(
    [str(c) for c in command],
    check=True,
    capture_output=True,
    text=True,
    timeout=600,
  ).stdout
