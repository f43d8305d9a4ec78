"""Environments of child processes."""

import os


def environment(devices: int) -> dict[str, str]:
    """Environment for a process with this many virtual devices; keeps XLA's other flags."""
    count = f"--xla_force_host_platform_device_count={devices}"  # the last flag counts
    flags = f"{os.environ.get('XLA_FLAGS', '')} {count}".strip()
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
