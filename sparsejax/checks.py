"""Refusals that depend on values, which compiled functions do not know yet."""

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import checkify


def refuse_unless(
  ok: jax.Array, summary: str, detail: Callable[[], str] | None = None
) -> jax.Array:
  """Raises a ValueError unless a condition holds, or lets `checkify` tell.

  Inside `jax.jit` and `jax.vmap` a condition has no value, and nothing can be
  raised. There `jax.experimental.checkify.checkify` collects what is refused,
  if the caller wraps the compiled function in it; otherwise it has no effect.

  Args:
    ok: A bool scalar.
    summary: What is wrong if it is False, and what to do.
    detail: Makes a longer message, from values; by default the summary is all.

  Returns:
    The condition, for results to depend on; True unless it is traced.

  Raises:
    ValueError: If it is False, and known.

  Example:
    >>> import jax.numpy as jnp
    >>> from jax.experimental import checkify
    >>> def positive(x):
    ...   refuse_unless(x > 0, "got no positive number")
    ...   return x
    >>> checked = checkify.checkify(jax.jit(positive))
    >>> error, _ = checked(jnp.float32(-1))
    >>> print(error.get())
    got no positive number (`check` failed)
  """
  if isinstance(ok, jax.core.Tracer):
    text = summary.replace("{", "{{").replace("}", "}}")
    checkify.debug_check(ok, text)
  elif not ok:
    raise ValueError(detail() if detail else summary)
  return ok


def refusing(function: Callable[..., Any]) -> Callable[..., Any]:
  """Compiles a function whose refusals are raised when it has run.

  Args:
    function: Of arrays, that calls `refuse_unless`.

  Returns:
    The compiled function. It raises a ValueError with the first summary.

  Example:
    >>> import jax.numpy as jnp
    >>> def root(x):
    ...   refuse_unless(jnp.all(x >= 0), "got a negative number")
    ...   return jnp.sqrt(x)
    >>> refusing(root)(jnp.array([-1.0]))
    Traceback (most recent call last):
    ValueError: got a negative number
  """
  checked = jax.jit(checkify.checkify(function, errors=checkify.user_checks))

  def run(*args: Any) -> Any:
    error, result = checked(*args)
    if message := error.get():
      raise ValueError(message.removesuffix(" (`check` failed)"))
    return result

  return run
