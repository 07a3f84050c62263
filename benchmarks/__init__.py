"""Measured ratios, interleaved in one process; never absolute times."""
