"""What config files share: data, small twins, grids of runs.

The papers' values (batch sizes, learning rates, schedules, mask updates) stand
in the config files, so that each shows its whole recipe on its own page.
"""
