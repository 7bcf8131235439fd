"""Rooms and arrows of a package, read from its files.

A room is a module or sub-package directly in a folder; an arrow is an import from one room into another, anywhere in
their files.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

Arrow = tuple[str, str]


def package_of(folder: Path) -> list[str]:
    """The names of a package, from the top."""
    names = [folder.name]
    while (folder.parent / "__init__.py").exists():
        folder = folder.parent
        names.insert(0, folder.name)
    return names


def imported(path: Path) -> Iterator[str]:
    """The full name of everything that a file imports: modules, and names from modules."""
    package = package_of(path.parent)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def rooms(folder: Path) -> set[str]:
    """The modules and sub-packages in a folder."""
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    return modules | {path.parent.name for path in folder.glob("*/*.py")}


def arrows(folder: Path) -> set[Arrow]:
    """The imports between the rooms of a folder."""
    prefix = ".".join(package_of(folder)) + "."
    found = set()
    for path in folder.rglob("*.py"):
        here = path.relative_to(folder).parts[0].removesuffix(".py")
        there = {name.removeprefix(prefix).split(".")[0] for name in imported(path) if name.startswith(prefix)}
        found |= {(here, room) for room in there if room != here}
    known = rooms(folder)
    return {(here, there) for here, there in found if here in known and there in known}


def circle(between: set[Arrow]) -> set[str]:
    """The rooms that are left when those that import no other are taken away again and again."""
    left = {room for arrow in between for room in arrow}
    while True:
        busy = {here for here, there in between if here in left and there in left}
        if busy == left:
            return left
        left = busy


def upward(between: set[Arrow], floors: tuple[set[str], ...]) -> list[Arrow]:
    """The arrows that do not lead to a lower floor; `floors` are the rooms, from the ground up."""
    floor = {room: number for number, some in enumerate(floors) for room in some}
    return [arrow for arrow in sorted(between) if floor[arrow[0]] <= floor[arrow[1]]]
