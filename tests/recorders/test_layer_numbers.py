"""The recorder of gradients: which numbers layers have, also those that are trained later."""

import torch
from torch import nn

from bnlab_callbacks.core.ranks import Ranks
from bnlab_callbacks.core.records import Moment
from bnlab_callbacks.recorders.gradient_tables import GradientTables
from bnlab_callbacks.recorders.gradients import GradientRecorder
from tests.recorders.everything import Everything


def train(recorder: GradientRecorder, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    recorder.begin_batch()
    optimizer.zero_grad()
    model["last"](model["first"](model["middle"](torch.ones(2, 3)))).sum().backward()  # type: ignore[index]
    recorder.before_optimizer_step(optimizer, "only", Moment(step, 0), lambda: 1.0)
    optimizer.step()
    recorder.end_batch(Moment(step, 0))


def test_a_layer_that_is_set_free_gets_the_next_number_and_its_place() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({name: nn.Linear(3, 3) for name in ("last", "first", "middle")})
    model["middle"].requires_grad_(False)
    reader = Everything()
    recorder = GradientRecorder(model, Ranks())
    recorder.join(reader)
    assert recorder.layers == ["last", "first"]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(recorder, model, optimizer, 0)
    model["middle"].requires_grad_(True)
    train(recorder, model, optimizer, 1)
    tables = [GradientTables().read([step])[0] for step in reader.steps]
    tags = [[tag for tag in table.tags if tag.startswith("grad_rms/")] for table in tables]
    assert tags[0] == ["grad_rms/00_first", "grad_rms/01_last"]
    assert tags[1] == ["grad_rms/02_middle", "grad_rms/00_first", "grad_rms/01_last"]  # by execution
    values = dict(zip(tables[1].tags, tables[1].values[0].tolist(), strict=True))
    wanted = model["middle"].weight.grad.square().mean().sqrt()  # type: ignore[union-attr, operator]
    torch.testing.assert_close(torch.tensor(values["grad_rms/02_middle"]), wanted.double(), check_dtype=False)
    together = GradientTables().read(reader.steps)
    assert [table.tags for table in together] == [table.tags for table in tables]


def test_weights_that_get_their_shape_in_the_first_batch_are_recorded() -> None:
    model = nn.ModuleDict({"middle": nn.LazyLinear(3), "first": nn.Linear(3, 3), "last": nn.Linear(3, 3)})
    reader = Everything()
    recorder = GradientRecorder(model, Ranks())
    recorder.join(reader)
    assert recorder.layers == ["first", "last"]
    train(recorder, model, torch.optim.SGD(model.parameters(), lr=0.1), 0)
    assert list(reader.steps[0].numbered.values()) == ["00_middle", "01_first", "02_last"]
