"""Advice: a stable key each, plain words, and other words where somebody gives them."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import bnlab_callbacks
from bnlab_callbacks import TrainingDiagnosis, preflight
from bnlab_callbacks.diagnosis import Advice, Finding, History, Observation, Rule, Verdict
from bnlab_callbacks.diagnosis.findings import advised
from bnlab_callbacks.diagnosis.judging.latch import Latch
from bnlab_callbacks.diagnosis.rules.catalogue import RULES
from tests.diagnosis.small_runs import Net, fit, net
from tests.diagnosis.test_rules import history

PACKAGE = Path(bnlab_callbacks.__file__).parent
# a flag, a command, a class, a folder of the laboratory, and its name
OF_THE_LABORATORY = r"--[a-z_]+\.[a-z_]+|\bbnlab (?:fit|diagnose|preflight|study|report)|ImageDataModule|configs/"
IN_CODE = OF_THE_LABORATORY + r"|tests/|\bbnlab\b|\bClassifier\b"


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_the_package_speaks_of_no_laboratory(file: Path) -> None:
    assert re.findall(IN_CODE, file.read_text(encoding="utf-8")) == []


def test_the_readme_names_no_flag_or_command_of_a_laboratory() -> None:
    text = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
    assert re.findall(OF_THE_LABORATORY, text) == []


def test_every_advice_of_a_rule_has_a_key_of_its_own() -> None:
    advice = {one for rule in RULES for one in rule.keyed_advice}
    assert all(re.fullmatch(r"[a-z0-9_]+", key) for key, _ in advice)
    assert len({key for key, _ in advice}) == len({text for _, text in advice}) == len(advice)
    assert all(rule.advice for rule in RULES)


def test_a_rule_of_one_s_own_may_give_plain_texts() -> None:
    rule = Rule("r", lambda seen: Verdict("e"), "warning", ("do this", Advice("that", "do that")))
    assert rule.keyed_advice == (Advice("", "do this"), Advice("that", "do that"))
    finding = Latch(rule).update(history())
    assert finding is not None
    assert (finding.advice, finding.advice_keys) == (("do this", "do that"), ("", "that"))
    assert finding.line.endswith(": e. Try: do this; do that")
    silent = Latch(Rule("r", lambda seen: Verdict("e"), "warning", ())).update(history())
    assert silent is not None
    assert silent.line.endswith(": e")


def test_advice_in_other_words() -> None:
    given = (Advice("a", "one"), Advice("b", "two"), Advice("", "three"))
    words = {"a": "ONE", "b": None, "": "THREE"}
    assert advised(given, lambda key, text: words[key]) == (Advice("a", "ONE"), Advice("", "THREE"))
    assert advised(given, None) == given
    assert advised(given, lambda key, text: None) == given  # something is always advised


def test_findings_of_older_releases_are_read() -> None:
    old = {"name": "r", "severity": "note", "layer": None, "since": 0, "evidence": "e", "advice": ["a"], "noticed": 0}
    finding = Finding.from_dict(old)
    assert (finding.advice, finding.advice_keys, finding.ended) == (("a",), (), None)
    assert Finding.from_dict(finding.to_dict()) == finding


def test_a_diagnosis_and_its_preflight_give_advice_in_other_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = Net(net(nn.Linear(20, 20), nn.ReLU()), lr=1e-9)
    for parameter in module.parameters():
        nn.init.constant_(parameter, 1e-6)
    diagnosis = TrainingDiagnosis(folder=str(tmp_path), preflight=True)
    diagnosis.advise = lambda key, text: None if key == "skips" else f"<{key}>"
    fit(tmp_path, module, diagnosis=diagnosis, max_epochs=1)
    content = json.loads((tmp_path / "diagnosis.json").read_text(encoding="utf-8"))
    found = {one["name"]: (one["advice"], one["advice_keys"]) for one in content["findings"]}
    assert content["schema"] == 1
    assert found["vanishing_with_depth"] == (["<better_init>"], ["better_init"])
    screen = capsys.readouterr().out
    assert "Try: <random_weights>\n" in screen  # of the cause
    assert "try: <random_weights>\n" in screen


def test_checks_of_a_preflight_have_keys() -> None:
    module = Net(net(nn.Linear(20, 20), nn.ReLU()))
    batch = (torch.randn(64, 20) * 1000, torch.arange(64) % 5)
    plain, other = (preflight(module, batch, advise=how) for how in (None, lambda key, text: f"<{key}>"))
    advised = {check.advice_key: check.advice for check in plain.checks if check.advice}
    assert advised["standardise"] == "subtract the training set's mean and divide by its standard deviation"
    assert "" not in advised
    assert {check.advice for check in other.checks} - {""} == {f"<{key}>" for key in advised}
    assert [check["advice_key"] for check in other.to_dict()["checks"]] == [check.advice_key for check in plain.checks]


def test_the_names_that_rules_are_written_with() -> None:
    import bnlab_callbacks.diagnosis as room
    from bnlab_callbacks.diagnosis.preflight import preflight as of_its_room

    names = {"Advice", "Finding", "History", "LOSS_SPIKE", "Observation", "Preflight", "Rule", "Verdict"}
    assert names == set(dir(room))
    assert room.Preflight is bnlab_callbacks.Preflight
    assert of_its_room is bnlab_callbacks.preflight
    assert isinstance(history(), History)
    assert isinstance(history().now, Observation)
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = room.Nothing
