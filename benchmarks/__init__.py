"""Speed and memory, measured side by side in one process: `python -m benchmarks.<name>`.

Results go to a new folder below `runs`; `--out benchmarks/results` replaces the committed ones.
"""
