"""Files as those of MNIST."""

import numpy as np


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    """An IDX file, not packed."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, kind, array.ndim]) + sizes + array.astype(np.uint8).tobytes()
