"""`LayerHeatmap`: what each layer did over the whole run, in one picture for each quantity."""

import math
from collections import defaultdict
from collections.abc import Sequence
from time import perf_counter
from typing import Any

from bnlab_callbacks.core.files import replace_file
from bnlab_callbacks.core.guard import keeps_training
from bnlab_callbacks.core.lightning.names import LightningModule, Trainer
from bnlab_callbacks.core.lightning.publisher import publish_kept
from bnlab_callbacks.core.lightning.run_output import RunOutput
from bnlab_callbacks.core.lightning.tensorboard import tensorboard_writers
from bnlab_callbacks.core.lightning.trainer import logged_step
from bnlab_callbacks.core.naming import split_tag, with_new_names
from bnlab_callbacks.core.records import Record
from bnlab_callbacks.pages.heatmap_drawing import draw, pixels
from bnlab_callbacks.pages.heatmap_grid import Grid

QUANTITIES = ("grad_rms", "act_std", "sat_frac", "dead_frac", "update_ratio")

_LOGARITHMIC = ("grad_mean_abs", "grad_rms")
_ALREADY_LOGARITHMIC = {"update_ratio": "log10(‖Δw‖/‖w‖)"}

_SHARE = 50  # drawing takes one part in so many of the time at most
_FIRST_S = 0.2  # what the first drawing is taken to last


class LayerHeatmap(RunOutput):
    """Draws recorded quantities as colours, layers from top to bottom in order of execution, steps from left to right.

    Writes, for each quantity that was recorded, on rank 0:

    - `heatmaps/<quantity>.png` in the run's folder
    - the image `Heatmap/<quantity>` for every TensorBoard logger, at the step of the last record; its capital makes it
      the first thing on TensorBoard's first page

    at the end of epochs, once 50 times the duration of the last drawing has passed since, and at the end of the run, in
    whatever way it ends. So a run of short epochs is drawn after some seconds for the first time.

    `grad_mean_abs` and `grad_rms` are shown as log10, `update_ratio` is one already; all others are linear, shares
    (`…_frac`) always from 0 to 1. Exact zeros of a logarithm are red; what was not recorded or is not finite is grey.
    When more than `max_columns` steps were recorded, neighbouring steps are merged: a colour is then the mean of their
    finite values, of the logarithms where these are shown. Checkpoints hold the values, so that a resumed run's
    pictures show all of it.

    Args:
        quantities: which to draw: what stands before the slash of a tag `<quantity>/<NN>_<layer>`.
        folder: where `heatmaps/` goes; None for the run's folder (`callbacks/README.md`): its logger's, or one of its
            own. Without matplotlib the callback says so and is off.
        max_columns: columns of a picture at most.
        enabled: False switches the callback off.

    Raises:
        ValueError: `max_columns` below 1.
    """

    def __init__(
        self,
        quantities: Sequence[str] = QUANTITIES,
        folder: str | None = None,
        max_columns: int = 400,
        enabled: bool = True,
    ) -> None:
        super().__init__(enabled)
        if max_columns < 1:
            raise ValueError(f"max_columns={max_columns} is below 1: give the number of columns of a picture.")
        self.quantities = tuple(quantities)
        self.folder = folder
        self.max_columns = max_columns
        self._grids: dict[str, Grid] = {}
        self._trainer: Trainer | None = None
        self._step = 0  # of the last record
        self._undrawn: set[str] = set()
        self._drawn_at = 0.0
        self._drawing_s = _FIRST_S

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin; a Trainer that goes on with what it trained goes on with its pictures."""
        if stage == "fit" and not logged_step(trainer):
            self._grids = {}
        super().setup(trainer, pl_module, stage)

    def begin(self, trainer: Trainer) -> None:
        """Find out where to draw, and whether it is possible."""
        import matplotlib.figure  # noqa: F401 - said at the start, not after the first epoch

        if self.place is not None:
            self.place.find(self.folder)  # an error is said now, too
        self._trainer = trainer
        self._undrawn = set()
        self._drawn_at, self._drawing_s = perf_counter(), _FIRST_S

    def take(self, trainer: Trainer, record: Record) -> None:
        """Add a record's values to the grids."""
        wanted: dict[str, dict[str, float]] = defaultdict(dict)
        for tag, value in record.values.items():
            quantity, layer = split_tag(tag)
            if layer and quantity in self.quantities:
                wanted[quantity][layer] = shown_value(quantity, value)
        for quantity, values in wanted.items():
            self._grids.setdefault(quantity, Grid(self.max_columns)).add(record.step, values)
        if wanted:
            self._undrawn |= wanted.keys()
            self._step = record.step

    def epoch_ended(self, trainer: Trainer, step: int, epoch: int) -> None:
        """Draw, if the last drawing was long enough ago."""
        if perf_counter() - self._drawn_at >= _SHARE * self._drawing_s:
            self._draw(trainer)

    @keeps_training
    def _draw(self, trainer: Trainer) -> None:
        """Draw every quantity that has new values."""
        start = perf_counter()
        due = [quantity for quantity in self.quantities if quantity in self._undrawn]
        if not due or self.place is None:
            return
        from matplotlib.image import imsave

        folder = self.place.make(self.folder) / "heatmaps"
        for quantity in due:
            limits = (0.0, 1.0) if quantity.endswith("_frac") else None
            image = pixels(draw(*self._grids[quantity].table(), quantity, value_label(quantity), limits))
            replace_file(folder / f"{quantity}.png", lambda path: imsave(path, image, format="png"))  # noqa: B023
            for writer, prefix in tensorboard_writers(trainer):
                writer.add_image(f"{prefix}Heatmap/{quantity}", image, self._step, dataformats="HWC")
        self._undrawn = set()
        self._drawn_at = perf_counter()
        self._drawing_s = self._drawn_at - start

    def finish(self, trainer: Trainer) -> None:
        """Draw what was recorded since the last time."""
        self._trainer = None
        self._draw(trainer)

    def state_dict(self) -> dict[str, Any]:
        """What the pictures are made of; tensors, numbers and lists only."""
        if self._trainer is not None:
            publish_kept(self._trainer)
        grids = {quantity: grid.state_dict() for quantity, grid in self._grids.items()}
        return {"grids": grids, "step": self._step, "folder": self.folder_to_keep(self.folder)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped."""
        state_dict = with_new_names(state_dict)
        self._grids = {name: Grid(self.max_columns) for name in state_dict["grids"] if name in self.quantities}
        for quantity, grid in self._grids.items():
            grid.load_state_dict(state_dict["grids"][quantity])
        self._undrawn = set(self._grids)  # the pictures may be older than the checkpoint, or newer
        self._step = state_dict.get("step", 0)
        self.go_on_in(state_dict.get("folder"))


def shown_value(quantity: str, value: float) -> float:
    """What is drawn for a value; −inf for the logarithm of 0, NaN for what is not finite."""
    if quantity in _LOGARITHMIC:
        return -math.inf if value == 0 else math.log10(value) if 0 < value < math.inf else math.nan
    if value == -math.inf and quantity in _ALREADY_LOGARITHMIC:
        return value
    return value if math.isfinite(value) else math.nan


def value_label(quantity: str) -> str:
    """What the colour bar says."""
    return f"log10 {quantity}" if quantity in _LOGARITHMIC else _ALREADY_LOGARITHMIC.get(quantity, quantity)
