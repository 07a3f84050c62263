"""Configs: keys and defaults, checks, and what their names stand for.

`algorithms` is the registry, `parts` makes functions and optimizers of names,
`args` parses a config file's argument, `grid` plans its runs. Papers' values
are not here, but in configs/.
"""
