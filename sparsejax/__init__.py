"""Sparse training in JAX: masks, mask updates, and one skin over optax."""
