"""Notebooks; `python -m notebooks.execute` runs them all."""
