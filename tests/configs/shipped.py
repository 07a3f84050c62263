"""The configs that are shipped, and data for those of photos."""

import io
import runpy
from pathlib import Path

import ml_collections
from PIL import Image

CONFIGS = Path(__file__).parents[2] / "configs"


def load(name: str, arg: str = "") -> ml_collections.ConfigDict:
  """Returns the config of a file, by its name, for an argument."""
  return runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](arg)


def photo(i: int) -> dict:
  """Returns a record as ImageNet's: a JPEG of its own size, and a label."""
  content = io.BytesIO()
  Image.new("RGB", (20 + i, 24), (25 * i, 99, 9)).save(content, "jpeg")
  return {"image": content.getvalue(), "label": i}
