"""A look inside finished runs."""
