"""Training of any task: state, steps over all devices, the loop, checkpoints and logs."""

from zoneout_jax.training.cli import exits as exits
from zoneout_jax.training.cli import launch as launch
from zoneout_jax.training.cli import prepare as prepare
from zoneout_jax.training.config import Count as Count
from zoneout_jax.training.config import NotNegative as NotNegative
from zoneout_jax.training.config import Positive as Positive
from zoneout_jax.training.config import Probability as Probability
from zoneout_jax.training.config import Range as Range
from zoneout_jax.training.config import RunConfig as RunConfig
from zoneout_jax.training.config import RunError as RunError
from zoneout_jax.training.config import Stopped as Stopped
from zoneout_jax.training.config import check_ranges as check_ranges
from zoneout_jax.training.config import fail as fail
from zoneout_jax.training.config import parse as parse
from zoneout_jax.training.config import parse_preset as parse_preset
from zoneout_jax.training.loop import fit as fit
from zoneout_jax.training.metrics import draw_curves as draw_curves
from zoneout_jax.training.metrics import shown as shown
from zoneout_jax.training.parallel import AXIS as AXIS
from zoneout_jax.training.run_directory import RunDirectory as RunDirectory
from zoneout_jax.training.run_directory import versions as versions
from zoneout_jax.training.run_directory import write_json as write_json
from zoneout_jax.training.task import Calibration as Calibration
from zoneout_jax.training.task import Evaluation as Evaluation
from zoneout_jax.training.task import Task as Task
