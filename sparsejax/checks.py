"""Refusals that depend on values, which compiled functions do not know yet."""

from collections.abc import Callable

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
