"""Sets eight virtual CPU devices and strict dtypes for every test, before JAX is imported.

Code is compiled without LLVM's optimizations and, where XLA still has the option, without its
fusion emitters, since most of the test time is compilation. CONTRIBUTING.md has the flags to test
code as it is compiled for users.
"""

import gc
import importlib.metadata
import os

flags = [os.environ.get("XLA_FLAGS", "")]
if "xla_force_host_platform_device_count" not in flags[0]:
    flags.append("--xla_force_host_platform_device_count=8")
if "xla_backend_optimization_level" not in flags[0]:
    flags.append("--xla_backend_optimization_level=0")
    flags.append("--xla_cpu_parallel_codegen_split_count=1")  # programs are small
    if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
        flags.append("--xla_cpu_use_fusion_emitters=false")  # later XLA rejects this flag
os.environ["XLA_FLAGS"] = " ".join(flags).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from collections.abc import Iterator  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
# Tracing makes many objects that live on; Python's default would look through them again and again.
gc.set_threshold(100_000, 50, 100)


@pytest.fixture(autouse=True, scope="module")
def freed() -> Iterator[None]:
    """Frees compiled code after each file, since a process can hold only a limited amount."""
    yield
    jax.clear_caches()


@pytest.fixture
def x64() -> Iterator[None]:
    """Enables 64-bit types for one test."""
    if hasattr(jax, "enable_x64"):
        context = jax.enable_x64(True)
    else:  # older JAX, such as 0.7.0
        from jax.experimental import enable_x64

        context = enable_x64(True)
    with context:
        yield


@pytest.fixture
def standard_promotion() -> Iterator[None]:
    """Sets JAX's default dtype promotion for one test; `decay**count` in optax 0.2.8 needs it."""
    with jax.numpy_dtype_promotion("standard"):
        yield
