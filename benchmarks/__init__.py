"""Benchmarks of speed and memory: `python -m benchmarks.<name>`.

Each one compares its variants in one process. Results go to a new folder below `runs`;
`--out benchmarks/results` replaces the committed results.
"""
