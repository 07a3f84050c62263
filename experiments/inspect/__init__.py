"""Measurements of trained networks: sensitivity, overlap, gradients, units."""
