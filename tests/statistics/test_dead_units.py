"""The ledger of dead units, by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from bnlab_callbacks.statistics.dead_units import DeadUnit, UnitLedger


def active(*units: int) -> Tensor:
    mask = torch.zeros(4, dtype=torch.bool)
    mask[list(units)] = True
    return mask


def add(ledger: UnitLedger, units: list[int], samples: int, step: int = 0) -> tuple[float, int]:
    (share,) = ledger.add(active(*units)[None], [samples], [step])
    return tuple(share)  # type: ignore[return-value]


def test_window_of_dead_units_by_hand() -> None:
    ledger = UnitLedger(2)
    assert add(ledger, [0], 8) == (0.75, 8)
    assert add(ledger, [1], 8) == (0.5, 16)
    assert add(ledger, [], 4) == (0.75, 12)  # the first record leaves the window
    assert ledger.pop_epoch() == (0.5, 20)
    assert add(ledger, [0, 1, 2], 8) == (0.25, 12)
    assert ledger.pop_epoch() == (0.25, 8)
    add(ledger, [3], 8)
    assert ledger.pop_epoch() == (0.75, 8)


def test_a_ledger_starts_anew_for_a_layer_of_another_size() -> None:
    ledger = UnitLedger(3)
    add(ledger, [0], 8)
    assert ledger.add(torch.tensor([[True, False]]), [5], [1]) == [(0.5, 5)]


def test_an_empty_ledger_has_nobody_dead() -> None:
    assert UnitLedger(3).pop_epoch() == (0.0, 0)
    assert UnitLedger(3).units("a") == []


def test_who_is_dead_since_when_and_who_came_back() -> None:
    ledger = UnitLedger(2)
    history = [[0, 1], [0], [0], [0, 1], [2], []]  # units that fire at steps 0, 10, 20, …
    for record, units in enumerate(history):
        add(ledger, units, 8, 10 * record)
    assert ledger.units("a") == [
        DeadUnit("a", 0, dead=True, since=40, samples=16, revivals=0),
        DeadUnit("a", 1, dead=True, since=40, samples=16, revivals=1),
        DeadUnit("a", 2, dead=False, since=40, samples=16, revivals=1),
        DeadUnit("a", 3, dead=True, since=0, samples=48, revivals=0),
    ]
    assert ledger.pop_revived() == 2
    assert ledger.pop_revived() == 0


def slow_units(history: Tensor, samples: list[int], steps: list[int], length: int) -> list[DeadUnit]:
    """The same, unit by unit and record by record."""
    rows = []
    for unit in range(history.shape[1]):
        silent, since, silent_samples = 0, -1, 0
        revivals, returned, returned_samples = 0, -1, 0
        for fired, number, step in zip(history[:, unit].tolist(), samples, steps, strict=True):
            if fired:
                if silent >= length:
                    revivals, returned, returned_samples = revivals + 1, step, 0
                silent, since, silent_samples = 0, -1, 0
            else:
                since = step if silent == 0 else since
                silent, silent_samples = silent + 1, silent_samples + number
            returned_samples += number
        if silent >= length:
            rows.append(DeadUnit("a", unit, True, since, silent_samples, revivals))
        elif revivals:
            rows.append(DeadUnit("a", unit, False, returned, returned_samples, revivals))
    return rows


def test_records_taken_together_or_one_by_one_or_over_a_checkpoint_equal_the_slow_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    history = torch.rand(60, 40, generator=generator) < torch.linspace(0, 0.5, 40)
    samples, steps = [5 + i % 3 for i in range(60)], [7 * i for i in range(60)]
    one, many, resumed = UnitLedger(4), UnitLedger(4), UnitLedger(4)
    shares: dict[str, list[tuple[float, int]]] = {"one": [], "many": []}
    for i in range(60):
        shares["one"] += one.add(history[i : i + 1], samples[i : i + 1], steps[i : i + 1])
    for start, stop in [(0, 16), (16, 17), (17, 33), (33, 60)]:
        shares["many"] += many.add(history[start:stop], samples[start:stop], steps[start:stop])
        if start == 16:
            resumed.load_state_dict(many.state_dict())
    resumed.add(history[17:], samples[17:], steps[17:])
    wanted = slow_units(history, samples, steps, 4)
    assert len(wanted) > 20
    assert one.units("a") == many.units("a") == resumed.units("a") == wanted
    assert shares["one"] == shares["many"]
    for i, (fraction, seen) in enumerate(shares["one"]):
        window = slice(max(i - 3, 0), i + 1)
        assert fraction == float((~history[window].any(0)).double().mean())
        assert seen == sum(samples[window])


def test_records_that_are_taken_in_together_count_as_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for units, rate in ((1, 0.3), (7, 0.2), (20, 0.6)):
        together, single = UnitLedger(3), UnitLedger(3)
        step = 0
        for records in (1, 4, 9, 2, 30):
            active = torch.rand(records, units, generator=generator) < rate
            samples = torch.randint(1, 50, (records,), generator=generator).tolist()
            steps = list(range(step, step + 5 * records, 5))
            step = steps[-1] + 5
            shares = [single.add(active[i : i + 1], samples[i : i + 1], steps[i : i + 1])[0] for i in range(records)]
            assert together.add(active, samples, steps) == shares
            assert together.units("act") == single.units("act")
            assert (together.pop_epoch(), together.pop_revived()) == (single.pop_epoch(), single.pop_revived())
        states = together.state_dict(), single.state_dict()
        assert {key: torch.as_tensor(value).tolist() for key, value in states[0].items()} == {
            key: torch.as_tensor(value).tolist() for key, value in states[1].items()
        }
