"""Environments of child processes."""

import os


def environment(devices: int) -> dict[str, str]:
    """That of a process with so many virtual devices; XLA's other flags are as in this process."""
    count = f"--xla_force_host_platform_device_count={devices}"  # the last one counts
    flags = f"{os.environ.get('XLA_FLAGS', '')} {count}".strip()
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
