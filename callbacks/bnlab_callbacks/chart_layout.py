"""`ChartLayout`: TensorBoard's Custom Scalars tab, with all layers of a quantity in one chart."""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from bnlab_callbacks.core.guard import keeps_training
from bnlab_callbacks.core.lightning.names import Trainer
from bnlab_callbacks.core.lightning.run_output import RunOutput
from bnlab_callbacks.core.lightning.tensorboard import tensorboard_writers
from bnlab_callbacks.core.naming import split_tag, with_new_names
from bnlab_callbacks.core.records import Record

Layout = dict[str, dict[str, list[object]]]

# what tells most stands first, and again in its own category
_OVERVIEW = ("loss", "acc", "grad_depth_slope", "update_ratio", "sat_frac", "dead_frac")
# by the beginning of a quantity that layers have
_CATEGORIES = {
    "Gradients": ("grad_", "update_"),
    "Weights": ("weight_",),
    "Activations": ("act_", "sat_", "zero_", "dead_", "dormant_"),
    "Attention": ("attn_",),
    "Batch norm": ("bn_", "ics_"),
    "Other layer values": ("",),
}
_WITHOUT_LAYER = "Time & training"
# what has no layer and yet belongs to another category, by its beginning
_OF_THE_WHOLE_NET = {"smoothness": "Batch norm", "grad_": "Gradients"}

_SET = re.compile(r"^(train|val|valid|test)[_/]|_(step|epoch)$")
_SECONDS = re.compile(r"time/(epoch|train|val)_s$")


class ChartLayout(RunOutput):
    """Lays out TensorBoard's Custom Scalars tab: a chart for each quantity, a line in it for each layer.

    The charts stand in the categories Gradients, Weights, Activations, Attention, Batch norm, Other layer values, and
    Time & training, which has what belongs to no layer: `train_loss` and `val_loss` in one chart, and so on. Charts of
    epoch means follow those of steps. Before them, Overview has what tells most: loss and accuracy, the slope over
    depth, the size of updates, saturated and dead units.

    Writes for every TensorBoard logger, on rank 0, at the end of the first epoch and of those that brought new
    quantities, the layout `custom_scalars__config__`. It names quantities, not layers: runs of different nets that are
    shown together share their charts.

    Args:
        enabled: False switches the callback off.
    """

    def __init__(self, enabled: bool = True) -> None:
        super().__init__(enabled)
        self._tags: set[str] = set()
        self._written: Layout = {}

    def begin(self, trainer: Trainer) -> None:
        """Look for TensorBoard."""
        self._tags, self._written = set(), {}
        if not list(tensorboard_writers(trainer)):
            self.give_up("no logger of this run writes for TensorBoard.")

    def take(self, trainer: Trainer, record: Record) -> None:
        """Note the record's tags."""
        self._tags |= record.values.keys()

    def epoch_ended(self, trainer: Trainer, step: int, epoch: int) -> None:
        """Write the layout, if it changed."""
        logged = trainer.logged_metrics  # on all ranks: Lightning may exchange values for them
        self._write(trainer, logged)

    @keeps_training
    def _write(self, trainer: Trainer, logged: Iterable[str]) -> None:
        self._tags |= set(logged)
        now = layout(self._tags)
        if now != self._written:
            for writer, prefix in tensorboard_writers(trainer):
                writer.add_custom_scalars(layout(self._tags, prefix))
            self._written = now

    def finish(self, trainer: Trainer) -> None:
        """Write the layout of a run that ended within its first epoch."""
        if not self._written and self._tags:
            self._write(trainer, ())

    def state_dict(self) -> dict[str, Any]:
        """The tags that are laid out: a resumed run must not lay out less than what is there."""
        return {"tags": sorted(self._tags), "written": bool(self._written)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint stopped."""
        self._tags = set(with_new_names(state_dict["tags"]))
        self._written = layout(self._tags) if state_dict["written"] else {}


def layout(tags: Iterable[str], prefix: str = "") -> Layout:
    r"""Charts for `tags`, as `SummaryWriter.add_custom_scalars` takes them.

    Args:
        tags: as recorded, without the logger's prefix.
        prefix: what the logger puts before each of them.

    Returns:
        category → chart's title → `["Multiline", [regular expressions that match the chart's tags from their start]]`.
    """
    charts: dict[str, dict[str, set[str]]] = {category: defaultdict(set) for category in (*_CATEGORIES, _WITHOUT_LAYER)}
    start = "^" + re.escape(prefix)
    for tag in tags:
        quantity, layer = split_tag(tag)
        if layer:
            category = next(name for name, starts in _CATEGORIES.items() if quantity.startswith(starts))
            charts[category][quantity].add(start + re.escape(quantity) + r"/\d{2,}_")
        else:
            category = next(
                (name for first, name in _OF_THE_WHOLE_NET.items() if tag.startswith(first)), _WITHOUT_LAYER
            )
            charts[category][_title(tag)].add(start + re.escape(tag) + "$")
    laid_out: Layout = {
        category: {title: ["Multiline", sorted(of_category[title])] for title in sorted(of_category, key=_place)}
        for category, of_category in charts.items()
        if of_category
    }
    every = {title: chart for of_category in laid_out.values() for title, chart in of_category.items()}
    overview = {title: every[title] for title in _OVERVIEW if title in every}
    return {"Overview": overview, **laid_out} if overview else laid_out


def _title(tag: str) -> str:
    """A chart for what belongs together: the seconds; a metric of training and of validation, its steps and epochs."""
    if tag.startswith(("time/", "diagnostics/")):
        return "seconds" if _SECONDS.match(tag) else tag
    return _SET.sub("", tag) or tag


def _place(title: str) -> tuple[bool, str]:
    return title.endswith("_epoch"), title
