"""What TFDS knows of a dataset before it is prepared."""

import tensorflow_datasets as tfds


class DatasetInfo(tfds.core.DatasetInfo):
    """Facts of a dataset that TFDS's bucket does not have.

    TFDS would look there, and leave an empty temporary folder behind at each look.
    """

    def initialize_from_bucket(self) -> None:
        """Leaves the metadata as they are."""
