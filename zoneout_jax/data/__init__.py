"""Corpora and images as NumPy arrays, and their batches; independent of any model."""

from zoneout_jax.data.batching import chunk_starts as chunk_starts
from zoneout_jax.data.batching import gather as gather
from zoneout_jax.data.batching import pad_rows as pad_rows
from zoneout_jax.data.batching import permutation as permutation
from zoneout_jax.data.batching import shuffled_chunks as shuffled_chunks
from zoneout_jax.data.batching import shuffled_examples as shuffled_examples
from zoneout_jax.data.batching import steps_per_epoch as steps_per_epoch
from zoneout_jax.data.batching import stream_chunks as stream_chunks
from zoneout_jax.data.loaders import load_corpus as load_corpus
from zoneout_jax.data.loaders import load_images as load_images
from zoneout_jax.data.raw import DataError as DataError
from zoneout_jax.data.raw import RawFile as RawFile
from zoneout_jax.data.raw import default_data_dir as default_data_dir
from zoneout_jax.data.raw import fetch as fetch
from zoneout_jax.data.types import Corpus as Corpus
from zoneout_jax.data.types import Images as Images
from zoneout_jax.data.types import ImageSplit as ImageSplit
from zoneout_jax.data.types import cut_split as cut_split
