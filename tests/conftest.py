"""Eight virtual CPU devices and strict dtypes for every test. Runs before anything imports JAX.

Code is compiled without LLVM's optimizations and without XLA's fusion emitters: the tests, mostly
compilation, take a third of the time. CONTRIBUTING has the flags that test the code of users. If a
newer JAX ends with "Unknown flags in XLA_FLAGS", the flag goes, here and there.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
for flag in (
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
):
    flags = os.environ.get("XLA_FLAGS", "")
    if flag.split("=")[0] not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()

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
