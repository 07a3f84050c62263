"""Tables and reports: rows of finished runs, and what papers report of them."""
