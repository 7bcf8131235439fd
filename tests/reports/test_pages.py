"""The whole report: its files, its page as a browser takes it, and hostile runs."""

import base64
import os
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from bnlab.errors import InputError
from bnlab.files.durable_files import write_durably
from bnlab.reports import CLAIMS, Report, collect, write_report
from bnlab.reports.figures.plans import plan_figures
from bnlab.reports.report import address
from tests.reports.study_files import curve_rows, write_fit_run, write_pair, write_run

VOID = {"meta", "img", "link", "br", "hr", "input", "col"}
HOSTILE = "mlp_'\"><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}"


class Page(HTMLParser):
    """What a page consists of; every element must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> without a beginning"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    def values(self, tag: str, name: str) -> list[str]:
        return [value for kind, attributes in self.tags if kind == tag and (value := attributes.get(name)) is not None]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def study(root: Path) -> None:
    gradients = [{"00_net.fc1": 0.1, "01_net.logits": 0.2}, {"00_net.fc1": 0.3, "01_net.logits": 0.4}]
    for flag in (False, True):
        rows = curve_rows([0.5, 0.7], gradients=gradients)
        write_run(root, rows, batch_norm=flag, test_acc=0.98 + 0.01 * flag)
        write_run(root, rows, batch_norm=flag, batch_size=32, test_acc=0.97 + 0.02 * flag)
    write_run(root, experiment="mlp_init_high", status="diverged", test_acc=0.098)
    (root / "mlp_relu" / "broken").mkdir()
    (root / "mlp_relu" / "broken" / "result.json").write_text("{")


def reported(root: Path, **options: object) -> Report:
    return write_report(collect([root]), root / "report", **options)  # type: ignore[arg-type]


def page_of(report: Report) -> Page:
    return Page((report.folder / "report.html").read_text())


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """One report that the tests which change nothing share."""
    root = tmp_path_factory.mktemp("study")
    study(root)
    return reported(root)


@pytest.fixture
def one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports draw their first figure alone."""
    from bnlab.reports import report as module

    monkeypatch.setattr(module, "plan_figures", lambda *given: plan_figures(*given)[:1])


def test_everything_is_written(report: Report) -> None:
    on_disk = {path.relative_to(report.folder).as_posix() for path in report.folder.rglob("*") if path.is_file()}
    assert on_disk == {path.relative_to(report.folder).as_posix() for path in report.files}
    figures = {f"{name}_mlp_relu" for name in ("curves", "gradients", "difference_grad_mean_abs", "wall_time")}
    figures |= {f"{name}_mlp_init_high" for name in ("curves", "gradients", "wall_time")} | {"batch_size_mlp"}
    tables = {"table_b_1_test_accuracy_mlp", "table_b_3_epoch_seconds_mlp", "figure_7_15_batch_size_mlp"}
    tables |= {"runs", "conclusions"}
    assert on_disk == {
        *("report.md", "report.html"),
        *(f"tables/{name}.{kind}" for name in tables for kind in ("csv", "md")),
        *(f"figures/{name}.{kind}" for name in figures for kind in ("png", "svg")),
    }
    assert len(report.conclusions) == len(CLAIMS)
    assert dict(report.overview.signs) == {"agree": 1, "differ": 0, "within the interval": 0}


@pytest.mark.usefixtures("one_figure")
@pytest.mark.parametrize(
    ("formats", "kinds"),
    [(["csv"], {".csv"}), (["md", "svg"], {".md", ".svg"}), (["html"], {".html"}), (["png"], {".png"})],
)
def test_only_what_is_asked_for_is_written(tmp_path: Path, formats: list[str], kinds: set[str]) -> None:
    study(tmp_path)
    told: list[str] = []
    report = reported(tmp_path, formats=formats, progress=told.append)
    assert {path.suffix for path in report.files} == kinds
    assert ("figure 1 of 1" in told) == (formats != ["csv"])


def test_the_page_stands_alone(report: Report) -> None:
    page, text = page_of(report), (report.folder / "report.html").read_text()
    assert not {"script", "iframe", "object", "embed", "link", "form"} & {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    sources = page.values("img", "src")
    assert len(sources) == 8
    assert all(source.startswith(("data:image/svg+xml;base64,", "data:image/png;base64,")) for source in sources)
    assert "url(" not in text
    assert "@import" not in text
    policy = next(value for value in page.values("meta", "content") if "default-src" in value)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert "width=device-width, initial-scale=1" in page.values("meta", "content")
    assert "prefers-color-scheme: dark" in text
    for source in sources:
        kind, content = source.split(";base64,")
        picture = base64.b64decode(content)
        if kind == "data:image/svg+xml":
            ElementTree.fromstring(picture)
            assert not re.findall(rb'(?:href|src)="(?!#|data:)', picture)
        else:
            assert picture.startswith(b"\x89PNG")


def test_the_page_says_what_was_found(report: Report) -> None:
    page = page_of(report)
    for words in (
        "5 runs on MNIST; 1 left out.",
        "Test accuracy of the MLP in percent (thesis: table B.1)",
        "Seconds per epoch of the MLP, ReLU (thesis: table B.3)",
        "AMD EPYC (2 cpus, 1 thread)",
        "torch 2.14.1",
        "2a66be899b",
        "Batch norm makes the MLP more accurate at batch sizes below 256.",
        "† 1 run diverged",
        "mlp_relu/broken : result.json is not whole or no JSON",
        "mlp_init_high/mnist-vanilla-seed0 : no records.csv",
        "The sigmoid CNN trains only with batch norm.",
    ):
        assert words in page.words, words
    ids = [value for _, attributes in page.tags if (value := attributes.get("id"))]
    assert len(ids) == len(set(ids))
    inner = [link[1:] for link in page.values("a", "href") if link.startswith("#")]
    assert inner
    assert set(inner) <= set(ids)


def test_links_lead_to_files_and_run_folders(report: Report) -> None:
    for link in page_of(report).values("a", "href"):
        if not link.startswith("#"):
            assert link.startswith("./")
            assert (report.folder / unquote(link)).exists(), link
    for link in re.findall(r"\]\((\S+?)\)", (report.folder / "report.md").read_text()):
        assert (report.folder / unquote(link)).exists(), link


def test_hostile_runs_are_text(tmp_path: Path) -> None:
    root = tmp_path / "javascript:alert(1)"
    for flag in (False, True):
        rows = curve_rows([0.5, 0.6], gradients=[{"00_<svg onload=alert(3)>": 0.1}])
        write_run(
            root,
            rows,
            experiment=HOSTILE,
            architecture="mlp",
            dataset='x"><svg/onload=alert(4)>',
            batch_norm=flag,
            hardware={"name": "<b>Xeon</b>"},
            versions={"torch": "</style><script>alert(5)</script>"},
            overrides={"model.<i>": "</td>|`"},
            git={"commit": '"><script>'},
        )
    (root / "<code><script>").mkdir()
    (root / "<code><script>" / "result.json").write_text('{"schema": "<script>alert(6)</script>"}')
    report = reported(root, formats=["md", "csv", "html", "svg"])
    page, text = page_of(report), (report.folder / "report.html").read_text()
    tags = {tag for tag, _ in page.tags}
    assert not {"script", "svg", "i"} & tags
    assert HOSTILE in page.words
    assert "49" not in re.findall(r"mlp_.{0,80}?(49)", text)  # no template within a name
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert all(link.startswith(("#", "./")) for link in page.values("a", "href"))
    markdown = (report.folder / "report.md").read_text()
    assert "<script" not in markdown
    for path in report.files:
        assert path.parent in (report.folder, report.folder / "tables", report.folder / "figures")
        if path.suffix == ".svg":
            drawn = ElementTree.fromstring(path.read_bytes())
            assert not [part.tag for part in drawn.iter() if part.tag.endswith("script")]


def test_a_folder_called_like_a_scheme_is_a_folder(tmp_path: Path) -> None:
    target = tmp_path / "javascript:alert(1)" / "a b#c?d%"
    target.mkdir(parents=True)
    link = address(target, tmp_path)
    assert link == "./javascript%3Aalert%281%29/a%20b%23c%3Fd%25"
    assert unquote(link[2:]) == "javascript:alert(1)/a b#c?d%"
    assert address(tmp_path, target) == "./../.."


@pytest.mark.usefixtures("one_figure")
def test_names_that_are_no_unicode_are_shown_and_linked(tmp_path: Path) -> None:
    write_run(tmp_path / os.fsdecode(b"caf\xe9"))
    report = reported(tmp_path, formats=["html", "md", "csv"])
    links = page_of(report).values("a", "href")
    assert "./../caf%E9/mlp_relu/mnist-vanilla-seed0" in links
    assert "caf�/mlp_relu" in (report.folder / "tables" / "runs.csv").read_text()


@pytest.mark.usefixtures("one_figure")
def test_a_report_of_plain_fits_says_how_to_test(tmp_path: Path) -> None:
    write_fit_run(tmp_path / "version_0")
    report = reported(tmp_path, formats=["md", "html"])
    assert "bnlab fit does not test" in page_of(report).words
    assert "bnlab fit does not test" in (report.folder / "report.md").read_text()


def test_36_runs_make_a_page_below_5_megabytes(tmp_path: Path) -> None:
    """Nine experiments on two datasets, judged by one."""
    layers = [f"{place:02d}_net.fc{place}" for place in range(4)]
    long = [0.9 + 0.0005 * epoch for epoch in range(100)]
    gradients = [
        {layer: 0.01 / (1 + (epoch * 7 + place) % 11) for place, layer in enumerate(layers)} for epoch in range(100)
    ]
    for dataset in ("mnist", "cifar10_jpeg"):
        for flag in (False, True):
            write_run(tmp_path, curve_rows(long, gradients=gradients), dataset=dataset, batch_norm=flag)
    report = reported(tmp_path, formats=["html"])
    assert len(page_of(report).values("img", "src")) == 4
    assert 9 * (report.folder / "report.html").stat().st_size < 4e6


@pytest.mark.usefixtures("one_figure")
def test_a_second_report_replaces_the_first(tmp_path: Path) -> None:
    study(tmp_path)
    first = reported(tmp_path, formats=["csv", "html"])
    before = (first.folder / "report.html").read_text()
    assert not [run for run in collect([tmp_path]).runs if first.folder in run.folder.parents]
    write_pair(tmp_path, 0.9, 0.95, experiment="mlp_elu")
    again = reported(tmp_path, formats=["csv", "html"])
    assert (again.folder / "report.html").read_text() != before
    assert {path.name for path in first.folder.iterdir()} == {"report.html", "tables"}


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    study(tmp_path)
    (tmp_path / "report").write_text("a file")
    with pytest.raises(InputError, match=r"report cannot be written \(File exists\); give another one with --output"):
        reported(tmp_path)
    with pytest.raises(InputError, match="unknown format pdf; there are md, csv, html, png, svg"):
        reported(tmp_path, formats=["pdf"])


def test_no_runs_no_report(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "result.json").write_text("{")
    with pytest.raises(
        InputError, match=r"no run that ended lies below .* 1 left out, the first .*a: result.json is not"
    ):
        reported(tmp_path)
    assert not (tmp_path / "report").exists()


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a" / "b.txt"
    write_durably(path, "one")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_durably(path, "two")
    assert path.read_text() == "one"
    assert [file.name for file in path.parent.iterdir()] == ["b.txt"]
