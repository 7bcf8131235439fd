"""Public Lightning libraries trained on small synthetic data, with and without the callbacks.

    python -m benchmarks.public_libraries --envs FOLDER --out FILE [--callbacks CHECKOUT/callbacks] [NAME ...]

Makes a virtual environment for each library, which shares torch and Lightning with the running interpreter, where
`bnlab-callbacks` must be installed; trains its fits there in a process of its own; prints a line for each: verdict,
steps, losses, whether weights and random states are the same bits with the callbacks as without, CPU time without and
with them after the first batch, then its findings. What cannot be installed or run is named, with the reason.
Environments are kept in the folder, with each library's output; without one they are removed at once.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.public_libraries.environments import REQUIREMENTS, InstallError, python_of, reason
from benchmarks.public_libraries.rows import Row, summary, table

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Run the libraries one after the other, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("libraries", nargs="*", metavar="NAME", help=f"of {', '.join(REQUIREMENTS)}; all if none")
    parser.add_argument("--envs", type=Path, help="where the environments are kept, for the next time")
    parser.add_argument("--out", type=Path, help="a file for the rows, as lines of JSON")
    parser.add_argument("--callbacks", type=Path, default=ROOT / "callbacks", help="where bnlab_callbacks lies")
    parser.add_argument("--limit", type=float, default=1800, help="seconds for the fits of a library")
    parser.add_argument("--install-limit", type=float, default=600, help="seconds for pip")
    parser.add_argument("--verdicts", action="store_true", help="with the callbacks alone, in about half the time")
    options = parser.parse_args()
    unknown = set(options.libraries) - REQUIREMENTS.keys()
    if unknown:
        parser.error(f"no such library: {', '.join(sorted(unknown))}")
    rows: list[Row] = []
    if options.out:
        options.out.write_text("", encoding="utf-8")
    for library in options.libraries or REQUIREMENTS:
        with _folder(options.envs) as folder:
            new = rows_of(library, folder, options)
        rows += new
        print(*table(new), sep="\n", flush=True)
        if options.out:
            with options.out.open("a", encoding="utf-8") as out:
                out.writelines(f"{row.to_json()}\n" for row in new)
    print(*summary(rows), sep="\n")


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given.resolve()
    else:
        with tempfile.TemporaryDirectory(prefix="public_libraries_") as folder:
            yield Path(folder)


def rows_of(library: str, folder: Path, options: argparse.Namespace) -> list[Row]:
    """Its fits; what went wrong, if so, is the last row."""
    try:
        python = python_of(library, folder, options.install_limit)
    except InstallError as error:
        return [Row(library, error=str(error))]
    out, log = folder / f"{library}.jsonl", folder / f"{library}.log"
    out.write_text("", encoding="utf-8")
    command = [str(python), "-m", "benchmarks.public_libraries.run", library, "--out", str(out)]
    command += ["--verdicts"] if options.verdicts else []
    paths = os.pathsep.join((str(ROOT), str(options.callbacks.resolve())))
    trouble = None
    with log.open("w", encoding="utf-8") as output:
        try:
            environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
            subprocess.run(command, stdout=output, stderr=output, env=environment, timeout=options.limit, check=True)
        except subprocess.TimeoutExpired:
            trouble = f"not ready after {options.limit:.0f} s"
        except subprocess.CalledProcessError as error:
            said = reason(log.read_text(encoding="utf-8", errors="replace"))
            trouble = f"ended with status {error.returncode}: {said}"
    rows = [Row.from_json(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return [*rows, Row(library, error=trouble)] if trouble else rows


if __name__ == "__main__":
    main()
