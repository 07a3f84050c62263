"""Configs: their keys, their checks, and what their names stand for."""
