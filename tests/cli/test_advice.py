"""Advice in the words of `bnlab`: its flags, and nothing that a run's configuration already has."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bnlab.cli.advice import _ADVICE, _NUMBERS, advice_for
from bnlab.cli.main import main
from bnlab_callbacks.diagnosis.findings import Advice, advised
from bnlab_callbacks.diagnosis.rules.advice import ADVICE
from bnlab_callbacks.diagnosis.rules.catalogue import RULES
from tests.helpers.command_line import CONFIGS, fit

BARE = {  # a configuration that has none of what could be advised
    "model": {"activation": "sigmoid", "init": "normal", "batch_norm": False},
    "data": {"standardize": "none"},
    "trainer": {"gradient_clip_val": None, "sync_batchnorm": False},
}
INIT = "the activation's own initialization (--model.init auto)"
BATCH_NORM = "batch normalization (--model.batch_norm true)"
BETTER_INIT = f"{INIT}, or {BATCH_NORM}"
LOWER_LR = "a lower learning rate (--model.lr)"
OF_RULES = {
    ("non_finite", f"{LOWER_LR}, or gradient clipping (--trainer.gradient_clip_val 1)"),
    ("exploding", f"a learning rate ten times lower (--model.lr) or {INIT}"),
    ("exploding", BATCH_NORM),
    ("not_learning", "another learning rate (--model.lr)"),
    ("loss_scale_overflow", "bf16-mixed instead of 16-mixed (--trainer.precision)"),
    ("learning_rate_too_high", "a learning rate three to ten times lower (--model.lr)"),
    ("learning_rate_too_high", "a learning rate ten times lower (--model.lr)"),
    ("learning_rate_too_low", "a learning rate ten to a hundred times higher (--model.lr)"),
    ("vanishing", BETTER_INIT),
    (
        "vanishing_with_depth",
        "an activation that does not saturate (--model.activation relu), or skip connections",
    ),
    ("vanishing_with_depth", BETTER_INIT),
    ("no_gradient", BETTER_INIT),
    ("clipping_too_tight", "a clip near the usual norm of the gradient (--trainer.gradient_clip_val)"),
    ("dead_units", f"{LOWER_LR} or {BATCH_NORM}"),
    ("dead_units", "leaky_relu or elu (--model.activation)"),
    ("saturated", BETTER_INIT),
    ("saturated", LOWER_LR),
    ("batch_norm_gamma_collapsed", LOWER_LR),
    ("batch_norm_running_statistics", LOWER_LR),
    ("collapsed_output", BETTER_INIT),
    ("poor_initialisation", BETTER_INIT),
    ("poor_initialisation", "random weights: --model.init auto"),
    (
        "inputs_not_standardised",
        "subtract the training set's mean and divide by its standard deviation (--data.standardize global)",
    ),
    ("batch_of_one", "a larger batch (--data.batch_size)"),
    (
        "updates_lost_to_rounding",
        "mixed instead of true precision (--trainer.precision bf16-mixed), or an optimizer with stochastic rounding",
    ),
    ("epsilon_underflow", "16-mixed or bf16-true instead of 16-true (--trainer.precision)"),
    (
        "batch_norm_small_batch",
        "a larger batch (--data.batch_size), group or layer norm, or --trainer.sync_batchnorm true on several GPUs",
    ),
}
OF_PREFLIGHT = {
    "check_inputs_or_better_init": f"look at the inputs; {BETTER_INIT}",
    "larger_batch": "a larger batch (--data.batch_size)",
    "larger_batch_or_other_norm": "a larger batch (--data.batch_size), or group or layer norm",
    "smaller_last_layer_or_better_init": f"smaller weights in the last layer; {BETTER_INIT}",
    "zero_biases_or_leaky_activation": "biases of 0; leaky_relu or elu (--model.activation)",
    "stable_learning_rate": "a learning rate of 0.02, or a warm-up (--model.lr)",
}


def config(**changes: Any) -> Any:
    return {section: {**values, **changes.get(section, {})} for section, values in BARE.items()}


def test_rules_advise_flags() -> None:
    found = {(rule.name, advice.text) for rule in RULES for advice in advised(rule.keyed_advice, advice_for(config()))}
    assert {(name, text) for name, text in found if "--" in text} == OF_RULES


def test_the_preflight_advises_flags() -> None:
    say = advice_for(config())
    assert {key: say(key, "a learning rate of 0.02, or a warm-up") for key in OF_PREFLIGHT} == OF_PREFLIGHT


def test_every_key_that_is_mapped_is_one_of_the_diagnosis() -> None:
    assert {*_ADVICE, *_NUMBERS} <= ADVICE.keys()


def test_what_is_not_mapped_is_said_as_it_is() -> None:
    assert advice_for(config())("warm_up", "a warm-up") == "a warm-up"
    assert advice_for(config())("", "some text") == "some text"


@pytest.mark.parametrize(
    ("changes", "key", "said"),
    [
        ({"model": {"init": "auto"}}, "better_init", BATCH_NORM),
        ({"model": {"init": "xavier"}}, "better_init", BATCH_NORM),  # the sigmoid's own
        ({"model": {"init": "kaiming"}}, "better_init", BETTER_INIT),
        ({"model": {"batch_norm": True}}, "better_init", INIT),
        ({"model": {"init": "auto", "batch_norm": True}}, "better_init", None),
        ({"model": {"init": "auto"}}, "random_weights", None),
        ({"model": {"batch_norm": True}}, "batch_norm", None),
        ({"model": {"batch_norm": True}}, "warm_up_or_batch_norm", "a warm-up"),
        ({"model": {"batch_norm": True}}, "lower_learning_rate_or_batch_norm", LOWER_LR),
        ({"model": {"activation": "elu"}}, "leaky_activation", None),
        ({"model": {"activation": "relu"}}, "unsaturated_activation_or_skips", "skip connections"),
        ({"data": {"standardize": "channel"}}, "standardise", None),
        ({"trainer": {"gradient_clip_val": 1.0}}, "lower_learning_rate_or_clip", LOWER_LR),
        (
            {"trainer": {"sync_batchnorm": True}},
            "larger_batch_or_sync",
            "a larger batch (--data.batch_size), group or layer norm",
        ),
    ],
)
def test_what_a_run_has_is_not_advised(changes: dict[str, Any], key: str, said: str | None) -> None:
    assert advice_for(config(**changes))(key, "plain") == said


def test_where_a_run_has_all_of_it_the_plain_words_stay() -> None:
    say = advice_for(config(model={"init": "auto", "batch_norm": True}))
    init, other = Advice("better_init", "plain"), Advice("larger_init", "larger weights")
    assert advised([init], say) == (init,)
    assert advised([init, other], say) == (other,)


def test_a_run_prints_flags_and_not_what_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    short = ("--trainer.max_epochs", "1")
    explodes = fit(*short, "--model.lr", "1000", "--model.activation", "relu")
    (found, *_) = json.loads((explodes / "diagnosis.json").read_text(encoding="utf-8"))["findings"]
    said = {
        "exploding": ["a learning rate ten times lower (--model.lr)", BATCH_NORM],
        "non_finite": [f"{LOWER_LR}, or gradient clipping (--trainer.gradient_clip_val 1)"],
    }[found["name"]]
    assert found["advice"][: len(said)] == said
    assert len(found["advice_keys"]) == len(found["advice"])
    vanishes = fit(*short, "--model.init", "normal", "--model.init_std", "0.0001")
    found = json.loads((vanishes / "diagnosis.json").read_text(encoding="utf-8"))["findings"]
    assert [one["advice"] for one in found if one["name"] == "vanishing"] == [[BETTER_INIT, "larger initial weights"]]
    assert f"Try: {BETTER_INIT}\n" in capsys.readouterr().out


def test_the_preflight_command_prints_flags_and_not_what_the_run_has(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["preflight", "--trainer.accelerator", "cpu"]
    with pytest.raises(SystemExit):
        main([*words, "--config", str(CONFIGS / "mlp_init_low.yaml"), "--json", "found.json"])
    assert f"try: {BETTER_INIT}\n" in capsys.readouterr().out
    main([*words, "--config", str(CONFIGS / "mlp_lr_high.yaml"), "--model.lr", "5", "--data.batch_size", "2"])
    screen = capsys.readouterr().out
    assert re.search(r"try: a learning rate of \S+, or a warm-up \(--model\.lr\)\n", screen)
    checks = json.loads(Path("found.json").read_text())["checks"]
    assert all(bool(check["advice"]) == bool(check["advice_key"]) for check in checks)
