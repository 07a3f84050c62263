"""What elementwise operations make of one known number.

A masked model has the same number at all removed indices of most activations:
zero, or what the layers since make of it. Whether it is zero again where these
are summed is decided here. None stands for a number that is not known, FIXED
for numbers that differ from index to index of that axis, but are the same for
all inputs and all indices of other axes.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

FIXED = "fixed"
Number = float | str | None

ELEMENTWISE = frozenset({
  "abs", "add", "add_any", "and", "asinh", "atan2", "cbrt", "ceil", "clamp",
  "convert_element_type", "copy", "copy_p", "cos", "cosh", "div", "eq", "erf",
  "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow",
  "is_finite", "le", "log", "log1p", "logistic", "lt", "max", "min", "mul",
  "name", "ne", "neg", "nextafter", "not", "optimization_barrier", "or", "pow",
  "reduce_precision", "rem", "round", "rsqrt", "select_n", "shift_left",
  "shift_right_arithmetic", "shift_right_logical", "sign", "sin", "sinh",
  "sqrt", "square", "stop_gradient", "sub", "tan", "tanh", "xor",
})  # fmt: skip

_AT: dict[str, Callable[..., float]] = {
  "abs": abs,
  "add": lambda x, y: x + y,
  "add_any": lambda x, y: x + y,
  "asinh": math.asinh,
  "cbrt": math.cbrt,
  "ceil": math.ceil,
  "clamp": lambda low, x, high: min(max(x, low), high),
  "cos": math.cos,
  "cosh": math.cosh,
  "eq": lambda x, y: x == y,
  "erf": math.erf,
  "erfc": math.erfc,
  "exp": math.exp,
  "exp2": lambda x: 2.0**x,
  "expm1": math.expm1,
  "floor": math.floor,
  "ge": lambda x, y: x >= y,
  "gt": lambda x, y: x > y,
  "is_finite": math.isfinite,
  "le": lambda x, y: x <= y,
  "log": math.log,
  "log1p": math.log1p,
  "logistic": lambda x: 1 / (1 + math.exp(-x)),
  "lt": lambda x, y: x < y,
  "max": max,
  "min": min,
  "ne": lambda x, y: x != y,
  "neg": lambda x: -x,
  "pow": lambda x, y: x**y,
  "rsqrt": lambda x: 1 / math.sqrt(x),
  "sign": lambda x: (x > 0) - (x < 0),
  "sin": math.sin,
  "sinh": math.sinh,
  "sqrt": math.sqrt,
  "square": lambda x: x * x,
  "sub": lambda x, y: x - y,
  "tan": math.tan,
  "tanh": math.tanh,
}  # fmt: skip
_JUMPS = frozenset({
  "ceil", "eq", "floor", "ge", "gt", "le", "lt", "ne", "sign",
})  # fmt: skip
_SAME = frozenset({
  "convert_element_type", "copy", "copy_p", "name", "optimization_barrier",
  "reduce_precision", "stop_gradient",
})  # fmt: skip


def at(name: str, params: dict[str, Any], xs: Sequence[Number]) -> Number:
  """Computes an elementwise primitive of numbers, some of them not known.

  Args:
    name: The primitive's name.
    params: Its parameters.
    xs: Its operands.

  Returns:
    The number; None if it is not known, or not finite.

  Example:
    >>> at("mul", {}, [0.0, None]), at("logistic", {}, [0.0])
    (0.0, 0.5)
    >>> at("add", {}, [0.0, None])
  """
  if name in ("mul", "and") and 0 in xs:
    return 0.0
  if name == "div" and xs[0] == 0:
    return 0.0
  if name == "select_n":
    return same(xs[1:])
  if None in xs:
    return None
  if FIXED in xs:
    return FIXED
  if name in _SAME:
    return _converted(xs[0], params)
  if name == "mul":
    return xs[0] * xs[1]
  if name == "integer_pow":
    name, xs = "pow", [xs[0], params["y"]]
  if name not in _AT:
    return None
  if name in _JUMPS and not all(x in (-1, 0, 1) for x in xs):
    return None  # the model rounds, and might end on the other side
  try:
    value = _AT[name](*xs)
  except (ArithmeticError, ValueError):  # such as the log of zero
    return None
  if isinstance(value, complex) or not math.isfinite(value):
    return None
  return float(value)


def same(numbers: Sequence[Number]) -> Number:
  """Returns the number that all of some are, or None."""
  first = numbers[0]
  equal = all(number == first for number in numbers)
  return first if equal and first != FIXED else None


def beside(numbers: Sequence[Number]) -> Number:
  """Returns the number of parts side by side, at different indices."""
  if len(set(numbers)) == 1:
    return numbers[0]
  return None if None in numbers else FIXED


def _converted(x: float, params) -> Number:
  """The number in another dtype, of which only 0 and 1 are surely the same."""
  return x if x in (0, 1) or "new_dtype" not in params else None
