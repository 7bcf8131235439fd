"""The two distributions, `bnlab-callbacks` and `bnlab`: what their wheels and source archives hold and require."""

import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest

import bnlab

PROJECT = Path(__file__).parents[2]
FOLDERS = {"bnlab-callbacks": PROJECT / "callbacks", "bnlab": PROJECT}
BOTH = pytest.mark.parametrize("name", FOLDERS)
BUILD = (
    "import sys; from hatchling import build\nfor kind in sys.argv[2:]: getattr(build, f'build_{kind}')(sys.argv[1])"
)


def build(name: str, folder: Path, *kinds: str) -> None:
    """Build a distribution with its own backend, without the network."""
    command = [sys.executable, "-c", BUILD, str(folder), *kinds]
    subprocess.run(command, cwd=FOLDERS[name], check=True, capture_output=True)


class Built:
    """A distribution's wheel and source archive."""

    def __init__(self, name: str, folder: Path) -> None:
        build(name, folder, "wheel", "sdist")
        (self.wheel,) = folder.glob("*.whl")
        (archive,) = folder.glob("*.tar.gz")
        with zipfile.ZipFile(self.wheel) as wheel:
            self.files = {path: wheel.read(path) for path in wheel.namelist()}
        with tarfile.open(archive) as sources:
            self.sources = {member.name.partition("/")[2] for member in sources if member.isfile()}
        self.metadata: Message = message_from_string(self.info("METADATA"))

    def info(self, name: str) -> str:
        """A file of the wheel's metadata, empty if there is none."""
        found = [text.decode() for path, text in self.files.items() if path.endswith(f".dist-info/{name}")]
        return "".join(found)

    def requires(self, extra: str | None = None) -> dict[str, str]:
        """What it requires, with an extra or without any: name → bounds and extras."""
        found = {}
        for line in self.metadata.get_all("Requires-Dist", []):
            requirement, _, marker = line.partition(";")
            name, bounds = re.fullmatch(r"([\w-]+)(.*)", requirement.strip()).groups()  # type: ignore[union-attr]
            if marker.strip() == (f"extra == '{extra}'" if extra else ""):
                found[name] = bounds
        return found


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Built]:
    return {name: Built(name, tmp_path_factory.mktemp(name)) for name in FOLDERS}


@BOTH
@pytest.mark.slow
def test_both_have_one_version_a_license_and_types(name: str, distributions: dict[str, Built]) -> None:
    built = distributions[name]
    assert (built.metadata["Name"], built.metadata["Version"]) == (name, bnlab.__version__)
    assert built.metadata["License-Expression"] == "MIT"
    assert built.info("licenses/LICENSE") == (PROJECT / "LICENSE").read_text(encoding="utf-8")
    assert {"LICENSE", "README.md", "pyproject.toml"} <= built.sources
    (package,) = {path.split("/")[0] for path in built.files if ".dist-info/" not in path}
    assert package == name.replace("-", "_")
    assert f"{package}/py.typed" in built.files
    assert "Typing :: Typed" in built.metadata.get_all("Classifier", [])
    assert "Framework :: Pytest" not in built.metadata.get_all("Classifier", [])
    assert built.metadata["Project-URL"] is None


@BOTH
@pytest.mark.slow
def test_the_long_description_needs_no_other_file(name: str, distributions: dict[str, Built]) -> None:
    description = str(distributions[name].metadata.get_payload())
    assert len(description) > 500
    assert "![" not in description
    links = re.findall(r"\]\(([^)]*)\)", description)
    assert all(link.startswith("#") for link in links), links


@pytest.mark.slow
def test_the_callbacks_require_torch_alone(distributions: dict[str, Built]) -> None:
    callbacks = distributions["bnlab-callbacks"]
    assert callbacks.requires().keys() == {"torch"}
    assert set(callbacks.metadata.get_all("Provides-Extra", [])) == {
        "lightning",
        "pytorch-lightning",
        "pictures",
        "parquet",
    }
    for extra in ("lightning", "pytorch-lightning"):
        (bounds,) = callbacks.requires(extra).values()
        assert callbacks.requires(extra).keys() == {extra}
        assert {"!=2.6.2", "!=2.6.3"} < set(bounds.split(","))  # malicious releases
    assert callbacks.requires("pictures").keys() == {"matplotlib"}
    assert callbacks.requires("parquet").keys() == {"pyarrow"}


@pytest.mark.slow
def test_the_laboratory_requires_the_callbacks_of_its_own_version(distributions: dict[str, Built]) -> None:
    required = distributions["bnlab"].requires()
    assert required["bnlab-callbacks"] == f"[lightning,pictures]=={bnlab.__version__}"
    assert {"!=2.6.2", "!=2.6.3"} < set(required["lightning"].split(","))


@pytest.mark.slow
def test_the_plugin_belongs_to_the_callbacks(distributions: dict[str, Built]) -> None:
    point = "bnlab_callbacks = bnlab_callbacks.plugin:callbacks_from_environment"
    for package in ("lightning.pytorch", "pytorch_lightning"):
        assert f"[{package}.callbacks_factory]\n{point}\n" in distributions["bnlab-callbacks"].info("entry_points.txt")
    assert distributions["bnlab"].info("entry_points.txt") == "[console_scripts]\nbnlab = bnlab.cli.main:main\n"


@pytest.mark.slow
def test_source_archives_hold_what_a_checkout_holds(distributions: dict[str, Built]) -> None:
    command = ["git", "ls-files"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("no git checkout")
    tracked = {path for path in done.stdout.splitlines() if (PROJECT / path).is_file()}
    assert tracked - {"tb_logs/.gitkeep"} <= distributions["bnlab"].sources
    package = {path.removeprefix("callbacks/") for path in tracked if path.startswith("callbacks/bnlab_callbacks/")}
    assert package <= distributions["bnlab-callbacks"].sources


@pytest.mark.slow
def test_the_laboratorys_wheel_holds_the_thesiss_numbers_and_the_templates(distributions: dict[str, Built]) -> None:
    files = {"thesis/test_accuracy.csv", "thesis/epoch_seconds.csv", "thesis/mean_overhead.csv", "thesis/SOURCE.md"}
    files |= {f"pages/templates/report.{kind}" for kind in ("html.jinja", "md.jinja", "css")}
    assert {f"bnlab/reports/{name}" for name in files} <= distributions["bnlab"].files.keys()


@pytest.mark.slow
def test_the_wheels_work_beside_each_other(distributions: dict[str, Built], tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(installed)]
    wheels = [str(built.wheel) for built in distributions.values()]
    subprocess.run([*pip, *wheels], check=True, capture_output=True)
    code = (
        f"import sys; sys.path.insert(0, {str(installed)!r})\n"
        "import bnlab, bnlab_callbacks\n"
        f"assert all(p.__file__.startswith({str(installed)!r}) for p in (bnlab, bnlab_callbacks))\n"
        "from bnlab.studies.grid_inputs import find_configs\n"
        "print(*find_configs(['cnn_elu', 'configs/mlp_*.yaml']))\n"
        "from bnlab.cli.main import main\n"
        "main(['fit', '--trainer.fast_dev_run', '1', '--trainer.accelerator', 'cpu'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    configs = done.stdout.splitlines()[0].split()
    assert configs[0] == str(installed / "bnlab" / "configs" / "cnn_elu.yaml")
    assert len(configs) == 10
    assert Path(configs[0]).read_bytes() == (PROJECT / "configs" / "cnn_elu.yaml").read_bytes()
    assert (installed / "bin" / "bnlab").is_file()


@BOTH
@pytest.mark.slow
def test_an_editable_install_finds_its_package_in_the_checkout(name: str, tmp_path: Path) -> None:
    build(name, tmp_path, "editable")
    (path,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        (paths,) = (wheel.read(file).decode() for file in wheel.namelist() if file.endswith(".pth"))
    assert [Path(line) for line in paths.split()] == [FOLDERS[name]]


def test_the_readmes_two_commands_install_both() -> None:
    commands = re.findall(r"^python3 -m venv \.venv && .*$", (PROJECT / "README.md").read_text(encoding="utf-8"), re.M)
    assert len(commands) == 2  # .ci/run looks for them in this way
    assert "pip install -q -e ./callbacks -e . &&" in commands[0]
    assert "pip install -q -e ./callbacks -e '.[test]' &&" in commands[1]


def test_the_citation_has_the_version() -> None:
    assert f"\nversion: {bnlab.__version__}\n" in (PROJECT / "CITATION.cff").read_text(encoding="utf-8")


def test_no_module_is_called_callbacks() -> None:
    assert not (PROJECT / "callbacks" / "__init__.py").exists()
