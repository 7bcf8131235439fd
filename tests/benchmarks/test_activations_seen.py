"""The table of activations in public nets: the recorder sees what an independent trace sees."""

from pathlib import Path

import pytest

from benchmarks.activations_seen import CASES, main, seen

PAGE = Path(__file__).parents[2] / "docs" / "activations.md"
QUICK = {
    "torchvision ResNet-18": (17, 17, 17),
    "nn.Transformer": (0, 4, 4),
    "TCN, as in darts": (0, 4, 4),
    "LeNet, as in torch-uncertainty": (0, 4, 4),
    "U-Net": (0, 5, 5),
    "nn.LSTM": (0, 0, 0),
}


@pytest.mark.parametrize("name", QUICK)
def test_the_recorder_sees_what_the_trace_sees(name: str) -> None:
    assert seen(CASES[name]()) == QUICK[name]


def test_the_table_is_that_of_the_page(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warnings.filterwarnings", lambda *given: None)
    main(["u-net", "lenet, as"])
    rows = capsys.readouterr().out.splitlines()[2:]
    assert rows == ["| LeNet, as in torch-uncertainty | 0 | 4 | 4 |", "| U-Net | 0 | 5 | 5 |"]
    assert set(rows) <= set(PAGE.read_text(encoding="utf-8").splitlines())
