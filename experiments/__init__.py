"""The paper's experiments, one file a task: `python -m experiments.<task>`."""
