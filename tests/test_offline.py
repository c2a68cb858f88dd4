"""The suite's own rule: nothing leaves the machine, and what stays on it works."""

from __future__ import annotations

import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

OUTSIDE = ("192.0.2.1", 80)  # reserved for documentation, RFC 5737


def test_an_outside_address_is_refused() -> None:
    with pytest.raises(RuntimeError, match="offline"):
        socket.create_connection(OUTSIDE, timeout=1)
    with socket.socket(type=socket.SOCK_DGRAM) as udp, pytest.raises(RuntimeError, match="offline"):
        udp.sendto(b"x", OUTSIDE)
    with socket.socket(socket.AF_INET6) as tcp, pytest.raises(RuntimeError, match="offline"):
        tcp.connect_ex(("2001:db8::1", 80))


def test_an_outside_name_is_not_looked_up() -> None:
    with pytest.raises(RuntimeError, match="offline"):
        urllib.request.urlopen("http://example.com", timeout=1)


def test_processes_started_by_a_test_are_held_to_it() -> None:
    connect = f"import socket; socket.create_connection({OUTSIDE!r}, timeout=1)"
    result = subprocess.run([sys.executable, "-c", connect], capture_output=True, text=True)
    assert result.returncode == 1
    assert "tests are offline" in result.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_works(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection((host, server.getsockname()[1]), timeout=5) as client:
            client.sendall(b"hello")
        connection, _ = server.accept()
        with connection:
            assert connection.recv(5) == b"hello"


def test_unix_sockets_work(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(tmp_path / "s"))
        server.listen()
        client.connect(str(tmp_path / "s"))
        client.sendall(b"hello")
        connection, _ = server.accept()
        with connection:
            assert connection.recv(5) == b"hello"
