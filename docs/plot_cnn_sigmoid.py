"""The README's picture: gradients and accuracy of the sigmoid CNN, vanilla beside batch norm, from two runs' events.

python docs/plot_cnn_sigmoid.py VANILLA_RUN BATCH_NORM_RUN docs/cnn_sigmoid.png
"""

from __future__ import annotations

import sys

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Scalars = dict[str, list[tuple[int, float]]]


def read(folder: str) -> Scalars:
    """Every scalar of a run: tag → (step, value) pairs."""
    events = EventAccumulator(folder, size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def draw(runs: dict[str, Scalars], path: str) -> None:
    """One column a run: mean gradient of every layer (log scale) above, validation accuracy below."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 6), sharex="col", sharey="row", height_ratios=[2, 1])
    for column, (title, scalars) in enumerate(runs.items()):
        gradients, accuracy = axes[0, column], axes[1, column]
        layers = sorted(tag for tag in scalars if tag.startswith("grad_mean_abs/"))
        for position, tag in enumerate(layers):
            colour = plt.get_cmap("viridis")(position / (len(layers) - 1))
            label = tag.split("/")[1] if position in (0, len(layers) - 1) else None
            gradients.plot(*zip(*scalars[tag], strict=True), color=colour, label=label, linewidth=1.2)
        gradients.set(yscale="log", title=title)
        if column:
            gradients.legend(loc="lower right", fontsize=9)
        accuracy.plot(*zip(*scalars["val_acc"], strict=True), color="tab:blue" if column == 0 else "tab:green")
        accuracy.set(ylim=(0, 1.05), xlabel="optimizer step")
        for axis in (gradients, accuracy):
            axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("mean |gradient| per layer\nfirst (dark) to last (light)")
    axes[1, 0].set_ylabel("validation accuracy")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    draw({"vanilla": read(sys.argv[1]), "batch norm": read(sys.argv[2])}, sys.argv[3])
