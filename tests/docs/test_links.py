"""What the documents point at: files, sections, tests and benchmarks that exist."""

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(PROJECT)
    for path in (
        *PROJECT.glob("*.md"),
        *PROJECT.glob("callbacks/*.md"),
        *PROJECT.glob("docs/**/*.md"),
        *PROJECT.glob("examples/*.md"),
    )
)
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=str)


def read(page: Path) -> str:
    return (PROJECT / page).read_text(encoding="utf-8")


def sections(text: str) -> set[str]:
    """The headings of a page, as links write them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    """What a page links to within the repository, pictures included."""
    text = re.sub(r"^```.*?^```", "", read(page), flags=re.MULTILINE | re.DOTALL)
    picture = "!" if page.name == "report.md" else ""  # its other links are run folders, which are not kept
    found = re.findall(rf"{picture}\[[^\]]*\]\(([^)\s]+)\)", text)
    return [link for link in found if "://" not in link]


@EVERY_PAGE
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, section = link.partition("#")
        target = PROJECT / page.parent / path if path else PROJECT / page
        assert target.is_file(), f"{page} points at {link}"
        if section:
            assert section in sections(target.read_text(encoding="utf-8")), f"{page} points at {link}"


def test_pictures_are_seen_too() -> None:
    assert "docs/cnn_sigmoid.png" in links(Path("README.md"))
    assert len(links(Path("docs/thesis/report.md"))) > 20


@EVERY_PAGE
def test_benchmarks_and_tests_that_are_named_exist(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        return  # it tells of what was
    text = read(page)
    for module in re.findall(r"python -m (benchmarks(?:\.\w+)+)", text):
        path = PROJECT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), f"{page} names {module}"
    for name in re.findall(r"\b(?:tests|benchmarks|examples|configs)/[\w/]*\w+\.\w+", text):
        assert (PROJECT / name).is_file(), f"{page} names {name}"


def test_the_index_lists_every_document() -> None:
    listed = {(PROJECT / "docs" / link.partition("#")[0]).resolve() for link in links(Path("docs/index.md"))}
    pages = {(PROJECT / page).resolve() for page in PAGES}
    written_by_a_command = {PROJECT / "docs/thesis/report.md"}
    assert pages - listed - written_by_a_command == {PROJECT / "docs/index.md"}
