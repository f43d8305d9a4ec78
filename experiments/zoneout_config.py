"""The flags of zoneout that experiments have in common."""

import dataclasses
from typing import Any

from zoneout_jax import Zoneout
from zoneout_jax.training import Probability, RunConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZoneoutConfig(RunConfig):
    """Settings of a run with zoneout."""

    z_prob_cells: Probability = 0.0
    """Zoneout: probability that a cell keeps its previous value."""
    z_prob_states: Probability = 0.0
    """Zoneout: probability that a hidden state keeps its previous value."""
    share_mask: bool = False
    """One mask for cells and states."""

    def masks(self, update_drop: float = 0.0, **kinds: Any) -> Zoneout:
        """The masks. A rate of 0 costs nothing: none is drawn.

        Args:
          update_drop: rate of recurrent dropout.
          **kinds: how masks are drawn: `static`, `per_layer`, `gaussian`.
        """
        return Zoneout(
            cells=self.z_prob_cells or None,
            states=self.z_prob_states or None,
            update_drop=update_drop or None,
            shared=self.share_mask,
            **kinds,
        )
