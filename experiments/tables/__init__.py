"""Tables and reports of finished runs: `python -m experiments.tables`.

Rows, intervals and published orders are computed here and written as text,
Markdown, CSV or HTML. Pictures are drawn in plots/, runs are read by
runs/finished.py.
"""
