"""Packing, names, the order of execution, the schedule of records."""

import copy
import math
import pickle
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnlab_callbacks.core.device import pack, to_host
from bnlab_callbacks.core.hooks import ForwardOrder
from bnlab_callbacks.core.naming import clean_name, layer_filter, number, with_new_names
from bnlab_callbacks.core.records import EpochMeans, Moment, Table, epoch_tag
from bnlab_callbacks.core.schedule import RecordSchedule
from bnlab_callbacks.recorders.activation_calls import larger


def test_packing_keeps_order_and_values_over_mixed_dtypes() -> None:
    tensors = [
        torch.tensor(2**40 + 1),
        torch.tensor(0.1),
        torch.tensor(True),
        torch.tensor(0.1, dtype=torch.float64),
        torch.tensor(-3, dtype=torch.int32),
        torch.tensor(0.5, dtype=torch.bfloat16),
        torch.tensor(math.nan),
        torch.tensor(0.2),
    ]
    values = to_host(tensors)
    assert values[:6] == [2.0**40 + 1, float(torch.tensor(0.1)), 1.0, 0.1, -3.0, 0.5]
    assert math.isnan(values[6])
    assert values[7] == float(torch.tensor(0.2))


def test_packing_of_several_shapes_says_where_each_lies() -> None:
    tensors = [torch.arange(3.0), torch.tensor([[True, False]]), torch.tensor(7), torch.arange(2.0) + 5]
    vector, where = pack(tensors)
    assert vector.dtype == torch.float64
    assert [vector[place].tolist() for place in where] == [[0, 1, 2], [1, 0], [7], [5, 6]]


def test_packing_nothing_gives_nothing() -> None:
    assert to_host([]) == []


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("_orig_mod.net.fc1", "net.fc1"),
        ("net._orig_mod.0", "net.0"),
        ("net.0._checkpoint_wrapped_module", "net.0"),
        ("_fsdp_wrapped_module._orig_mod.fc", "fc"),
        ("_orig_mod", ""),
        ("my_orig_mod.fc", "my_orig_mod.fc"),
        ("net.fc1", "net.fc1"),
    ],
)
def test_wrappers_prefixes_are_stripped(name: str, clean: str) -> None:
    assert clean_name(name) == clean


def test_numbers_are_padded_to_two_digits_or_more() -> None:
    assert number(["b", "a"]) == {"b": "00_b", "a": "01_a"}
    assert list(number([f"l{i}" for i in range(100)]).values())[::99] == ["00_l0", "99_l99"]
    assert list(number([f"l{i}" for i in range(101)]).values())[::100] == ["000_l0", "100_l100"]


def test_tags_hold_no_characters_that_a_logger_refuses() -> None:
    assert number(["a b", "net.0/x-y_z", "ä<x>"]) == {
        "a b": "00_a_b",
        "net.0/x-y_z": "01_net.0/x-y_z",
        "ä<x>": "02___x_",
    }


def test_states_of_earlier_versions_get_todays_names() -> None:
    tensor = torch.ones(2)
    old = {"numbered": {"relu#2": "01_relu#2"}, "totals": [["act_mean/01_relu#12", "relu"], tensor, (None, 0.5)]}
    new = with_new_names(old)
    assert new["totals"][1] is tensor
    assert new["numbered"] == {"relu.2": "01_relu.2"}
    assert new["totals"][::2] == [["act_mean/01_relu.12", "relu"], (None, 0.5)]


def test_a_bad_filter_is_refused_with_an_example() -> None:
    with pytest.raises(ValueError, match=r"layers='\('.*conv\|fc1"):
        layer_filter("(")
    assert layer_filter(None).search("anything")


def test_epoch_means_leave_out_what_is_not_finite() -> None:
    means = EpochMeans()
    assert not means
    for record in ({"a/x": 1.0, "b/x": math.nan}, {"a/x": 3.0, "c/x": -math.inf}, {"a/x": math.inf, "c/x": -2.0}):
        means.add(*Table.of(record))
    assert means
    resumed = EpochMeans(means.state_dict())
    assert means.pop() == resumed.pop() == {"a_epoch/x": 2.0, "c_epoch/x": -2.0}
    assert means.pop() == {}
    assert epoch_tag("grad_rms/00_a/b") == "grad_rms_epoch/00_a/b"


def test_epoch_means_are_the_same_bit_by_bit_however_records_are_grouped() -> None:
    values = torch.randn(20, 3, dtype=torch.float64) * torch.logspace(-8, 8, 20, dtype=torch.float64)[:, None]
    one, many = EpochMeans(), EpochMeans()
    one.add(("a", "b", "c"), values)
    for part in values.split([1, 7, 3, 9]):
        many.add(("a", "b", "c"), part)
    assert one.pop() == many.pop()


class Crossed(nn.Module):
    """Defined in another order than it runs; `spare` never runs; `held` runs inside attention only."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(4, 4)
        self.last = nn.Linear(4, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.first = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x, _ = self.attention(x, x, x)
        out: Tensor = self.last(self.last(x))
        return out


def watched(net: nn.Module) -> tuple[ForwardOrder, list[tuple[str, str]]]:
    layers = [
        (name, name) for name, module in net.named_modules() if next(module.parameters(recurse=False), None) is not None
    ]
    order = ForwardOrder((n, m) for n, m in net.named_modules() if n in dict(layers))
    return order, layers


def test_layers_sort_by_execution_and_uncalled_ones_with_their_parents() -> None:
    net = Crossed()
    order, layers = watched(net)
    order.gate.open = True
    net(torch.randn(3, 2, 4))
    assert order.sort(layers) == ["first", "attention", "attention.out_proj", "last", "spare"]
    order.remove()
    order.remove()
    assert all(not module._forward_pre_hooks for module in net.modules())


def test_nothing_is_seen_through_a_shut_gate() -> None:
    net = Crossed()
    order, layers = watched(net)
    net(torch.randn(3, 2, 4))
    assert order.sort(layers) == [name for name, _ in layers]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_of_a_watched_net_record_nothing(duplicate: Any) -> None:
    """An EMA's deepcopy, a pickled module: hooks are copied with the modules."""
    net = Crossed()
    order, _ = watched(net)
    order.gate.open = True
    duplicate(net)(torch.randn(3, 2, 4))
    assert order.names == []


def at(step: int, epoch: int = 0) -> Moment:
    return Moment(step, epoch)


def recorded(schedule: RecordSchedule, steps_per_epoch: int, epochs: int, every: int = 50) -> list[int]:
    schedule.start(every)
    steps = []
    for step in range(steps_per_epoch * epochs):
        now = at(step, step // steps_per_epoch)
        if schedule.due(now):
            schedule.mark(now)
            steps.append(step)
    return steps


def test_every_nth_step_and_the_first_of_each_epoch_are_recorded() -> None:
    assert recorded(RecordSchedule(4), 10, 2) == [0, 4, 8, 10, 12, 16]
    assert recorded(RecordSchedule(4), 3, 3) == [0, 3, 4, 6, 8]
    assert recorded(RecordSchedule(1), 2, 2) == [0, 1, 2, 3]
    assert recorded(RecordSchedule(1000), 5, 3) == [0, 5, 10]


def test_by_default_the_trainers_interval_counts() -> None:
    assert recorded(RecordSchedule(), 10, 1, every=5) == [0, 5]
    assert recorded(RecordSchedule(), 10, 1, every=0) == []


def test_streams_have_slots_of_their_own() -> None:
    schedule = RecordSchedule(5)
    schedule.mark(at(0), "g")
    assert not schedule.due(at(1), "g")
    assert schedule.due(at(1), "d")


def test_a_schedules_state_goes_on_where_it_stopped_and_restarts() -> None:
    schedule, other = RecordSchedule(5), RecordSchedule(5)
    schedule.mark(at(0))
    state = schedule.state_dict()
    other.load_state_dict(state)
    assert not other.due(at(4))
    assert other.due(at(5))
    other.mark(at(5))
    assert state == {"recorded": {"": [0, 0]}, "not_before": 0}  # not shared
    other.restart()
    assert other.due(at(5))


@pytest.mark.parametrize(("every", "pause", "first"), list(product([1, 3, 4], [0, 1, 9], [0, 5])))
def test_a_step_is_due_in_a_new_slot_and_after_the_pause(every: int, pause: int, first: int) -> None:
    schedule = RecordSchedule(every)
    for stream, step in (("0", first), ("1", first + 1)):
        schedule.mark(at(step, 2), stream)
    schedule.wait(at(first + 1, 2), pause)
    slots = {first // every, (first + 1) // every}
    for now in range(first + 2, first + 20):
        due = [step for step in range(now, 99) if step > first + pause and slots != {step // every}]
        assert any(schedule.due(at(now, 2), stream) for stream in ("0", "1")) is (due[0] == now)
        assert schedule.any_due(at(now, 2)) is (due[0] == now)


def test_a_stream_that_was_never_recorded_and_a_new_epoch_are_due_at_once() -> None:
    schedule = RecordSchedule(4)
    schedule.mark(at(0, 0), "0")
    assert not schedule.due(at(3, 0), "0")
    assert schedule.due(at(4, 0), "0")
    assert schedule.due(at(1, 0), "1")
    assert not schedule.any_due(at(1, 0))
    assert schedule.due(at(1, 1), "0")


def test_an_interval_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="every_n_steps=0 is below 1"):
        RecordSchedule(0)


def test_the_larger_number_does_not_hide_nan() -> None:
    assert larger(1.0, 2.0) == larger(2.0, 1.0) == 2.0
    assert math.isnan(larger(math.nan, 1.0))
    assert math.isnan(larger(1.0, math.nan))


def test_a_packed_vector_is_laid_out_alike_in_float32_and_float64() -> None:
    """Ranks with batches of different sizes may compute the same fields in different dtypes."""

    def packed(dtype: torch.dtype) -> tuple[Tensor, list[slice]]:
        fields = [
            torch.tensor(0.5, dtype=dtype),
            torch.tensor(2**24 + 1),
            torch.tensor([True, False]),
            torch.tensor(0.25),
        ]
        return pack(fields)

    (narrow, places), (wide, same_places) = packed(torch.float32), packed(torch.float64)
    assert places == same_places
    assert torch.equal(narrow, wide)
    assert [narrow[place].tolist() for place in places] == [[0.5], [2**24 + 1], [1, 0], [0.25]]
