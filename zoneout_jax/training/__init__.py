"""Training of any task: state, steps over all devices, the loop, checkpoints and logs."""

from zoneout_jax.training.cli import launch as launch
from zoneout_jax.training.cli import prepare as prepare
from zoneout_jax.training.config import RunConfig as RunConfig
from zoneout_jax.training.config import fail as fail
from zoneout_jax.training.config import parse as parse
from zoneout_jax.training.config import parse_preset as parse_preset
from zoneout_jax.training.loop import Evaluation as Evaluation
from zoneout_jax.training.loop import Task as Task
from zoneout_jax.training.loop import fit as fit
from zoneout_jax.training.metrics import RunDirectory as RunDirectory
from zoneout_jax.training.metrics import draw_curves as draw_curves
from zoneout_jax.training.metrics import versions as versions
from zoneout_jax.training.metrics import write_json as write_json
from zoneout_jax.training.parallel import AXIS as AXIS
