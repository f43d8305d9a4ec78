"""Eight virtual CPU devices and strict dtypes for every test. Runs before anything imports JAX."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    ).strip()

from collections.abc import Iterator  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def x64() -> Iterator[None]:
    """64-bit types for the length of one test."""
    if hasattr(jax, "enable_x64"):
        context = jax.enable_x64(True)
    else:  # older JAX, as 0.7.0
        from jax.experimental import enable_x64

        context = enable_x64(True)
    with context:
        yield


@pytest.fixture
def standard_promotion() -> Iterator[None]:
    """JAX's own dtype promotion for one test; optax 0.2.8 needs it in Adam: `decay**count`."""
    with jax.numpy_dtype_promotion("standard"):
        yield
