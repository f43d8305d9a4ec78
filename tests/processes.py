"""Environments of child processes."""

import os
import pathlib


def environment(devices: int, cache: pathlib.Path | None = None) -> dict[str, str]:
    """Returns the environment for a process; keeps XLA's other flags.

    Args:
      devices: number of virtual devices.
      cache: folder of compiled code to share with other processes.
    """
    count = f"--xla_force_host_platform_device_count={devices}"  # the last flag counts
    flags = f"{os.environ.get('XLA_FLAGS', '')} {count}".strip()
    shared = {}
    if cache is not None:
        shared = {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags} | shared
