"""The experiments of the paper, one module each: `python -m experiments.<name>`."""
