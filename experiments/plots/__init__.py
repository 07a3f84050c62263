"""Pictures: each function takes values and a file, and computes no result."""
