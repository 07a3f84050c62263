"""Opens a prepared TensorFlow Datasets set for reading, without TensorFlow.

Nothing here downloads: a set that is missing gives the command that makes it.
"""

from collections.abc import Sequence
from typing import Any

from experiments.data.failures import MissingDataError
from experiments.errors import UserError


def open_split(
  name: str,
  split: str,
  *,
  data_dir: str | None = None,
  decoders: dict[str, Any] | None = None,
) -> Sequence[dict[str, Any]]:
  """Opens one split of a set as a sequence with random access.

  Args:
    name: The set's name in TFDS.
    split: The split's name, or a part of it such as "train[:45000]".
    data_dir: Where the set was prepared; None is TFDS's own default.
    decoders: as `tfds.data_source` takes them.

  Returns:
    A sequence of dicts, numpy values by feature.

  Raises:
    UserError: importlib_resources is not installed.
    MissingDataError: The set was not prepared there, or not as ArrayRecord.
  """
  try:
    import importlib_resources  # noqa: F401
  except ImportError as error:
    raise UserError(
      "tensorflow-datasets needs the package importlib_resources, which it "
      "does not declare: pip install importlib_resources"
    ) from error
  import tensorflow_datasets as tfds

  try:
    return tfds.data_source(
      name, split=split, data_dir=data_dir, decoders=decoders, download=False
    )
  # With a data_dir TFDS misses the format, without one it misses the split.
  except (KeyError, NotImplementedError) as error:
    where = data_dir or "TFDS's default folder"
    folder = f", data_dir={str(data_dir)!r}" if data_dir else ""
    raise MissingDataError(
      f"TFDS set {name!r}, split {split!r}: not found as ArrayRecord in "
      f"{where}. Prepare it once with\n"
      f'  python -c "import tensorflow_datasets as tfds; tfds.builder({name!r}'
      f"{folder}, file_format='array_record').download_and_prepare()\"\n"
      "This needs tensorflow, in any environment; reading does not. Or name "
      "the folder where it lies with --config.data.data_dir."
    ) from error
