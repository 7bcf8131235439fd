"""A machine that would tell others an address of its own."""

import socket

import pytest
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.pytorch import Trainer

from bnlab.training.gloo_address import unreachable

NAMES = {"here": "127.0.1.1", "head": "10.9.0.1", "127.0.0.1": "127.0.0.1"}


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Call this machine `here`, a name that stands for a loopback address."""

    def address(name: str) -> str:
        if name not in NAMES:
            raise OSError
        return NAMES[name]

    monkeypatch.setattr(socket, "gethostname", lambda: "here")
    monkeypatch.setattr(socket, "gethostbyname", address)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)


def trainer(monkeypatch: pytest.MonkeyPatch, meeting_point: str, nodes: int = 2) -> Trainer:
    """A Trainer as in the first of two torchruns, which does not connect yet."""
    for name, value in {"MASTER_ADDR": meeting_point, "MASTER_PORT": "1", "WORLD_SIZE": str(nodes)}.items():
        monkeypatch.setenv(name, value)
    for name in ("RANK", "LOCAL_RANK", "GROUP_RANK"):
        monkeypatch.setenv(name, "0")
    return Trainer(
        **{"accelerator": "cpu", "devices": 1, "num_nodes": nodes, "strategy": "ddp", "logger": False},
        **{"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False},
        plugins=[TorchElasticEnvironment()],
    )


def test_a_name_that_stands_for_a_loopback_address_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = unreachable(trainer(monkeypatch, "head"))
    assert told is not None
    assert "this machine's name, here, stands for 127.0.1.1" in told
    assert "GLOO_SOCKET_IFNAME to the network interface that reaches head" in told


@pytest.mark.parametrize(
    ("meeting_point", "nodes", "name", "interface"),
    [
        ("127.0.0.1", 2, "here", None),  # all on one machine
        ("unknown", 2, "here", None),
        ("head", 1, "here", None),
        ("head", 2, "head", None),
        ("head", 2, "nameless", None),  # gloo has its own way then
        ("head", 2, "here", "eth0"),
    ],
)
def test_nothing_is_told_where_it_may_be_right(
    monkeypatch: pytest.MonkeyPatch, meeting_point: str, nodes: int, name: str, interface: str | None
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    if interface is not None:
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", interface)
    assert unreachable(trainer(monkeypatch, meeting_point, nodes)) is None
