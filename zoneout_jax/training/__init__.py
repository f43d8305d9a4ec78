"""Training of any task: state, steps on all devices, training loop, checkpoints and logs."""

from zoneout_jax._needs import needs

with needs("zoneout_jax.training", "training"):
    from zoneout_jax.training.cli import launch as launch
    from zoneout_jax.training.cli import prepare as prepare
    from zoneout_jax.training.cli import program as program
    from zoneout_jax.training.config import RunConfig as RunConfig
    from zoneout_jax.training.errors import Diverged as Diverged
    from zoneout_jax.training.errors import RunError as RunError
    from zoneout_jax.training.errors import Stopped as Stopped
    from zoneout_jax.training.errors import fail as fail
    from zoneout_jax.training.files import exclusive as exclusive
    from zoneout_jax.training.files import new_folder as new_folder
    from zoneout_jax.training.files import output_folder as output_folder
    from zoneout_jax.training.files import write_json as write_json
    from zoneout_jax.training.files import write_text as write_text
    from zoneout_jax.training.flags import Measurement as Measurement
    from zoneout_jax.training.flags import parse as parse
    from zoneout_jax.training.flags import parse_measurement as parse_measurement
    from zoneout_jax.training.flags import parse_preset as parse_preset
    from zoneout_jax.training.loop import fit as fit
    from zoneout_jax.training.metrics import curves_figure as curves_figure
    from zoneout_jax.training.metrics import deviation as deviation
    from zoneout_jax.training.metrics import draw_curves as draw_curves
    from zoneout_jax.training.metrics import markdown_table as markdown_table
    from zoneout_jax.training.metrics import save_figure as save_figure
    from zoneout_jax.training.metrics import shown as shown
    from zoneout_jax.training.parallel import AXIS as AXIS
    from zoneout_jax.training.parallel import Batch as Batch
    from zoneout_jax.training.progress import Progress as Progress
    from zoneout_jax.training.run_directory import RunDirectory as RunDirectory
    from zoneout_jax.training.run_directory import commit as commit
    from zoneout_jax.training.run_directory import differences as differences
    from zoneout_jax.training.run_directory import versions as versions
    from zoneout_jax.training.settings import Count as Count
    from zoneout_jax.training.settings import DropRate as DropRate
    from zoneout_jax.training.settings import NotNegative as NotNegative
    from zoneout_jax.training.settings import Positive as Positive
    from zoneout_jax.training.settings import Probability as Probability
    from zoneout_jax.training.settings import Range as Range
    from zoneout_jax.training.settings import Seed as Seed
    from zoneout_jax.training.settings import Settings as Settings
    from zoneout_jax.training.state import Streams as Streams
    from zoneout_jax.training.state import TrainState as TrainState
    from zoneout_jax.training.stop import StopRequest as StopRequest
    from zoneout_jax.training.sweep import parse_sweep as parse_sweep
    from zoneout_jax.training.task import Evaluation as Evaluation
    from zoneout_jax.training.task import Task as Task
    from zoneout_jax.training.trained import Trained as Trained
    from zoneout_jax.training.trained import read_trained as read_trained
