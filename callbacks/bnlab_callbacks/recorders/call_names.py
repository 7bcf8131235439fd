"""Names of a batch's calls of layers: unique, the same in every batch, and one for what is called many times."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

# calls of a layer on what one layer before it produced, in one batch: of more, all are one, as in nets that unroll time
MOST_CALLS = 8


class CallKey(NamedTuple):
    """What is known of a call."""

    layer: str
    is_module: bool = True  # a module's own, which no other may have the name of
    behind: int | None = None  # tells apart the layers that produced what it was called with


class _Place(NamedTuple):
    """A call's place among those of its layer."""

    layer: str
    is_module: bool
    turn: int  # from 1


class CallNames:
    """Names calls: a layer's first one like the layer, the next ones `<layer>.2`, `<layer>.3`, ….

    Modules come first: what else would have a module's name takes the next free number.

    Args:
        modules: names that are taken.
    """

    def __init__(self, modules: Iterable[str] = ()) -> None:
        self._taken = set(modules)
        self._names: dict[_Place, str] = {}
        self._joined: set[CallKey] = set()
        self._last: tuple[list[CallKey], list[str]] = [], []

    def name(self, calls: list[CallKey]) -> list[str]:
        """The names of one batch's calls, in order."""
        if calls == self._last[0]:
            return self._last[1]
        self._joined.update(key for key, count in Counter(calls).items() if count > MOST_CALLS)
        turns: Counter[tuple[str, bool]] = Counter()
        first: dict[CallKey, _Place] = {}
        places = []
        for key in calls:
            if key in self._joined and key in first:
                places.append(first[key])
                continue
            turns[key[:2]] += 1
            place = _Place(key.layer, key.is_module, turns[key[:2]])
            first.setdefault(key, place)
            places.append(place)
        new = [place for place in dict.fromkeys(places) if place not in self._names]
        # modules' own names first, whatever ran before them
        for place in sorted(new, key=lambda one: not (one.is_module and one.turn == 1)):
            self._names[place] = self._free(place)
        self._last = list(calls), [self._names[place] for place in places]
        return self._last[1]

    def _free(self, place: _Place) -> str:
        if place.is_module and place.turn == 1:
            self._taken.add(place.layer)
            return place.layer
        number = 1
        name = place.layer
        while name in self._taken:
            number += 1
            name = f"{place.layer}.{number}"
        self._taken.add(name)
        return name
