"""What docs/diagnosis.md says: every finding is explained, and the rule of one's own runs."""

import re
from pathlib import Path
from typing import Any

import bnlab_callbacks.diagnosis
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


def test_the_rule_of_one_s_own() -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(block, "diagnosis.md", "exec"), names)
    judge = names["heavy_updates"]
    assert judge(history(update_ratio={"fc1": -2.0})) is None
    verdict = judge(history(update_ratio={"fc1": -2.0, "fc2": -0.5}))
    assert (verdict.layer, verdict.evidence) == ("fc2", "1 layers move by more than 10 % in a step")


def test_every_key_of_an_advice_is_listed() -> None:
    (listed,) = re.findall(r"^The keys: (.*?)\.$", PAGE, re.MULTILINE | re.DOTALL)
    assert re.findall(r"`(\w+)`", listed) == sorted(ADVICE)
    source = "".join(file.read_text(encoding="utf-8") for file in DIAGNOSIS.rglob("*.py") if file.name != "advice.py")
    assert [key for key in ADVICE if f'"{key}"' not in source] == []
