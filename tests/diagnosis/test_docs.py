"""What docs/diagnosis.md says: every finding is explained, and the rule of one's own runs."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import bnlab_callbacks.diagnosis
from bnlab_callbacks.diagnosis.findings import Finding
from bnlab_callbacks.diagnosis.rules.advice import ADVICE
from bnlab_callbacks.diagnosis.rules.catalogue import RULES
from tests.diagnosis.test_rules import history

DIAGNOSIS = Path(bnlab_callbacks.diagnosis.__file__).parent
PAGE = (Path(__file__).parents[2] / "docs" / "diagnosis.md").read_text(encoding="utf-8")


def test_every_finding_is_explained() -> None:
    table = PAGE.split("A finding is *failing*")[0]
    for name in {rule.name for rule in RULES}:
        shown = name if not name.startswith("batch_norm_") else name.removeprefix("batch_norm_")
        assert f"`{shown}`" in table, name


def run_example(function: str) -> Any:
    """Run the page's example that has this function; gives the function."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (block,) = (block for block in blocks if f"def {function}(" in block)
    names: dict[str, Any] = {}
    exec(compile(block, "diagnosis.md", "exec"), names)
    return names[function]


def test_the_rule_of_one_s_own() -> None:
    judge = run_example("heavy_updates")
    assert judge(history(update_ratio={"fc1": -2.0})) is None
    verdict = judge(history(update_ratio={"fc1": -2.0, "fc2": -0.5}))
    assert (verdict.layer, verdict.evidence) == ("fc2", "1 layers move by more than 10 % in a step")


def test_the_alert(monkeypatch: pytest.MonkeyPatch) -> None:
    alerts: list[dict[str, str]] = []
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(alert=lambda **alert: alerts.append(alert)))
    tell = run_example("tell")
    tell(Finding("dead_units", "warning", "fc1", 3, "9 of 10 units", ("leaky ReLU",), 7))
    line = "warning: dead units at fc1 since step 3: 9 of 10 units. Try: leaky ReLU"
    assert alerts == [{"title": "dead units at fc1", "text": line, "level": "WARN"}]


def test_every_key_of_an_advice_is_listed() -> None:
    (listed,) = re.findall(r"^The keys: (.*?)\.$", PAGE, re.MULTILINE | re.DOTALL)
    assert re.findall(r"`(\w+)`", listed) == sorted(ADVICE)
    source = "".join(file.read_text(encoding="utf-8") for file in DIAGNOSIS.rglob("*.py") if file.name != "advice.py")
    assert [key for key in ADVICE if f'"{key}"' not in source] == []
