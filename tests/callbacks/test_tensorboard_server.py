"""What a real TensorBoard shows of a run."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

import pytest
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from bnlab_callbacks import ActivationMonitor, EpochTimer, GradientMonitor
from bnlab_callbacks.chart_layout import ChartLayout
from bnlab_callbacks.core.lightning.publisher import publish_epoch
from bnlab_callbacks.heatmap import QUANTITIES, LayerHeatmap
from bnlab_callbacks.record_file import RecordFile
from tests.callbacks.small_runs import Module, loader, mlp, trainer
from tests.callbacks.test_logging import events

STARTED = re.compile(r"http://127\.0\.0\.1:(\d+)/")

pytestmark = pytest.mark.slow


class Late(Callback):
    """Publishes a new quantity in the second epoch, so that the layout is written twice."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            publish_epoch(trainer, {"late/00_net.0": 1.0})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short runs; one has a prefix."""
    folder = tmp_path_factory.mktemp("runs")
    for name, prefix in [("plain", ""), ("other", "mine")]:
        log = TensorBoardLogger(folder, name="", version=name, prefix=prefix)
        callbacks = [ChartLayout(), LayerHeatmap(), RecordFile(), GradientMonitor(), ActivationMonitor(), EpochTimer()]
        trainer(*callbacks, Late(), logger=log, max_epochs=3).fit(Module(mlp()), loader(), loader(8))
    return folder


@pytest.fixture(scope="module", params=["auto", "false"], ids=["fast_loader", "python_loader"])
def server(request: pytest.FixtureRequest, runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a TensorBoard that shows the runs."""
    own = tmp_path_factory.mktemp("tensorboard")
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs), "--host", "127.0.0.1", "--port", "0"]
    command += ["--load_fast", request.param, "--reload_interval", "1"]
    log = own / "log"
    with log.open("wb") as out:  # a file, since a full pipe would stop it
        process = subprocess.Popen(
            command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=environment(own), cwd=own
        )
    try:
        until = time.monotonic() + 60
        while not (started := STARTED.search(log.read_text())) and time.monotonic() < until and process.poll() is None:
            time.sleep(0.05)
        assert started, log.read_text()
        yield started[0]
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    assert not list(own.rglob("*.info")), "it did not tidy up"


def environment(folder: Path) -> dict[str, str]:
    """TensorBoard keeps notes of its servers in the folder for temporary files."""
    return {**os.environ, "TMPDIR": str(folder), "NO_PROXY": "*", "no_proxy": "*"}


def ask(server: str, path: str, **query: str) -> Any:
    with build_opener(ProxyHandler({})).open(f"{server}data/{path}?{urlencode(query)}", timeout=20) as answer:
        return json.load(answer)


def wait_for(server: str, path: str, ready: Callable[[Any], bool]) -> Any:
    """The answer, once the server has read enough of the runs."""
    until = time.monotonic() + 30
    while not ready(answer := ask(server, path)):
        assert time.monotonic() < until, answer
        time.sleep(0.1)
    return answer


def test_tensorboard_serves_scalars_images_and_charts(server: str, runs: Path) -> None:
    written = {run: set(events(runs / run)) for run in ("plain", "other")}
    tags = wait_for(
        server,
        "plugin/scalars/tags",
        lambda answer: {run: set(of_run) for run, of_run in answer.items()} == written,
    )
    assert {"grad_rms/00_net.0", "act_std/01_net.3", "time/epoch_s", "val_loss"} <= tags["plain"].keys()
    assert "mine-grad_rms/00_net.0" in tags["other"]

    images = {
        "plain": {f"Heatmap/{quantity}" for quantity in QUANTITIES},
        "other": {f"mine-Heatmap/{quantity}" for quantity in QUANTITIES},
    }
    wait_for(
        server,
        "plugin/images/tags",
        lambda answer: {run: set(of_run) for run, of_run in answer.items()} == images,
    )
    (image,) = ask(server, "plugin/images/images", run="plain", tag="Heatmap/grad_rms", sample="0")
    assert image["step"] == 8
    address = f"{server}data/plugin/images/individualImage?{image['query']}"
    with build_opener(ProxyHandler({})).open(address, timeout=20) as answer:
        assert answer.read().startswith(b"\x89PNG")

    # both loaders serve the last layout of a run, though torch's documentation says that there can be one only
    expected = {"Overview", "Gradients", "Activations", "Other layer values", "Time & training"}
    layout = wait_for(
        server,
        "plugin/custom_scalars/layout",
        lambda answer: {category["title"] for category in answer.get("category", ())} == expected,
    )
    categories = {category["title"]: category["chart"] for category in layout["category"]}
    (late,) = [chart for chart in categories["Other layer values"] if chart["multiline"]["tag"][0].startswith("^late")]
    assert late["title"] == "late"  # it was not in the first layout
    for run, prefix in [("plain", ""), ("other", "mine-")]:
        shown = {title: ask_chart(server, run, categories, title) for title in ("grad_rms", "act_std_epoch", "loss")}
        assert shown["grad_rms"] == {f"{prefix}grad_rms/{layer}" for layer in ("00_net.0", "01_net.2", "02_net.4")}
        assert shown["act_std_epoch"] == {f"{prefix}act_std_epoch/{layer}" for layer in ("00_net.1", "01_net.3")}
        assert shown["loss"] == {f"{prefix}train_loss", f"{prefix}val_loss"}
    series = ask(server, "plugin/custom_scalars/scalars", run="plain", tag=r"^grad_rms/\d{2,}_")["tag_to_events"]
    assert [step for _, step, _ in series["grad_rms/00_net.0"]] == list(range(9))


def ask_chart(server: str, run: str, categories: dict[str, Any], title: str) -> set[str]:
    """The tags that a run has in the chart of that title; runs with different prefixes have one each."""
    tags: set[str] = set()
    for chart in (chart for charts in categories.values() for chart in charts if chart["title"] == title):
        for pattern in chart["multiline"]["tag"]:
            answer = ask(server, "plugin/custom_scalars/scalars", run=run, tag=pattern)
            assert answer["regex_valid"]
            tags |= answer["tag_to_events"].keys()
    return tags
