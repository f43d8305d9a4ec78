"""TFDS metadata of a dataset before it is prepared."""

import tensorflow_datasets as tfds


class DatasetInfo(tfds.core.DatasetInfo):
    """Metadata of a dataset that is not in TFDS's bucket.

    TFDS would search the bucket, and leave an empty temporary folder behind each time.
    """

    def initialize_from_bucket(self) -> None:
        """Does nothing, so that the metadata stay the same."""
