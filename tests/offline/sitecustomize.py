"""Lets this process talk to loopback addresses and unix sockets only.

Python imports a module of this name when it starts. tests/conftest.py puts this directory on PYTHONPATH, so the rule
also holds in every Python process that a test starts.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from typing import Any

CONNECTING = ("socket.connect", "socket.sendto", "socket.sendmsg")
RESOLVING = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
# A machine may look up its own name, as torch.distributed does; None and "" mean any local interface.
OWN_NAMES = (None, "", "localhost", socket.gethostname())


def is_local(host: str | bytes | None) -> bool:
    """Whether a host name or address can only be this machine; unspecified addresses are."""
    name = host.decode() if isinstance(host, bytes) else host
    if name in OWN_NAMES:
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def refuse_outside(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: unlike a patched function, C code and code that imported `connect` before can't go around it."""
    if event in CONNECTING:
        connection, address = arguments
        internet = connection.family in (socket.AF_INET, socket.AF_INET6)
        if internet and address is not None and not is_local(address[0]):
            raise RuntimeError(f"tests are offline: {event} to {address[0]}")
    elif event in RESOLVING and not is_local(arguments[0]):
        raise RuntimeError(f"tests are offline: {event} of {arguments[0]}")


sys.addaudithook(refuse_outside)
