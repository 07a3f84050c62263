"""Ratios of times, interleaved in one process, and of memory.

Each module is a command that prints a table; measure.py has what they share.
Correctness is tested in tests/.
"""
