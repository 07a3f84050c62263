"""Pictures: each function takes values and a file.

Nothing is computed here, and no table or driver is imported. Matplotlib is
loaded when a picture is drawn.
"""
