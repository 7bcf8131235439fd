"""The address that gloo, on CPUs, gives other machines to reach this one."""

import ipaddress
import os
import socket

from lightning.pytorch import Trainer


def unreachable(trainer: Trainer) -> str | None:
    """Why gloo, on a CPU, would give the other machines an address at which they find themselves; None if it does not.

    It takes the address of the machine's own name, and many systems write 127.0.0.1 or 127.0.1.1 beside that in
    /etc/hosts. One rank then fails to connect, and the other waits for it for half an hour.
    """
    if trainer.num_nodes == 1 or trainer.strategy.root_device.type != "cpu" or "GLOO_SOCKET_IFNAME" in os.environ:
        return None
    meeting_point = trainer._accelerator_connector.cluster_environment.main_address
    name = socket.gethostname()
    address = _address(name)
    if address is None or not _loops_back(address) or _loops_back(_address(meeting_point) or address):
        return None
    return (
        f"this machine's name, {name}, stands for {address}, which gloo tells the other machines to connect to. Set "
        f"GLOO_SOCKET_IFNAME to the network interface that reaches {meeting_point} (`ip route get` tells it)."
    )


def _address(name: str) -> str | None:
    try:
        return socket.gethostbyname(name)
    except OSError:
        return None


def _loops_back(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback
