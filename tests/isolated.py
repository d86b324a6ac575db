"""A command in a network of its own that leads nowhere, and what it asked for.

`run` it, or `python -m` this. Names are asked of a resolver that knows none
and notes them; what found no route out is counted by the kernel. Both hold for
all processes that the command starts, and for C++ as for Python. Nothing has
to be installed, but Linux must let this process make namespaces.
"""

import contextlib
import ctypes
import dataclasses
import fcntl
import json
import os
import pathlib
import socket
import struct
import subprocess
import sys
import tempfile
import threading

import pytest

_NEW_MOUNTS, _NEW_USER, _NEW_NETWORK = 0x20000, 0x10000000, 0x40000000
_BIND, _RECURSIVE, _PRIVATE = 4096, 16384, 1 << 18
_SET_FLAGS, _UP = 0x8914, 1
_NOT_ALLOWED = 77  # exit status
_NO_SUCH_NAME = 0x8183  # flags of a DNS answer


@dataclasses.dataclass(frozen=True)
class Isolated:
    """What a command did.

    Args:
        output: Its standard output.
        errors: Its standard error.
        status: Its exit status.
        names: The names that it looked up, sorted.
        unroutable: How often the kernel found no route for it.
    """

    output: str
    errors: str
    status: int
    names: list[str]
    unroutable: int


def run(*command, answers=True, environment=None, timeout_s=300):
    """Run a command without a network; skips the test where that cannot be.

    Args:
        *command: Program and arguments.
        answers: Whether the resolver does, or is silent.
        environment: Variables to set.
        timeout_s: After how long to give up.

    Returns:
        An `Isolated`.
    """
    if sys.platform != "linux":
        pytest.skip("only Linux has network namespaces")
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder, "report.json")
        done = subprocess.run(
            [
                *(sys.executable, "-m", "tests.isolated"),
                *(report, json.dumps(answers), *command),
            ],
            cwd=pathlib.Path(__file__).parents[1],
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        if done.returncode == _NOT_ALLOWED:
            pytest.skip(f"this machine allows no namespaces: {done.stderr}")
        found = json.loads(report.read_text())
    return Isolated(done.stdout, done.stderr, done.returncode, **found)


def _main(report, answers, *command):
    try:
        _leave_the_network()
    except OSError as error:
        print(error, file=sys.stderr)
        return _NOT_ALLOWED
    _start_loopback()
    names = set()
    resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    resolver.bind(("127.0.0.1", 53))
    arguments = resolver, names, json.loads(answers)
    threading.Thread(target=_listen, args=arguments, daemon=True).start()
    status = subprocess.run(command).returncode
    found = {"names": sorted(names), "unroutable": _unroutable()}
    pathlib.Path(report).write_text(json.dumps(found))
    return status


def _leave_the_network():
    """Make namespaces for the network and for mounts, as any user."""
    user, group = os.getuid(), os.getgid()
    try:
        _call("unshare", _NEW_NETWORK | _NEW_MOUNTS)
    except PermissionError:
        _call("unshare", _NEW_NETWORK | _NEW_MOUNTS | _NEW_USER)
        pathlib.Path("/proc/self/setgroups").write_text("deny")
        pathlib.Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        pathlib.Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _call("mount", None, b"/", None, _RECURSIVE | _PRIVATE, None)
    # Names are looked up in /etc/hosts and at the resolver, not at a daemon
    # that is outside.
    _replace("/etc/resolv.conf", "nameserver 127.0.0.1\n")
    _replace("/etc/nsswitch.conf", "hosts: files dns\n")
    if os.path.isdir("/run/nscd"):
        _call("mount", b"none", b"/run/nscd", b"tmpfs", 0, None)


def _replace(path, text):
    """Show another text in place of a file, here only."""
    if os.path.exists(path):
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(text)
            file.flush()
            new, old = file.name.encode(), path.encode()
            _call("mount", new, old, None, _BIND, None)


def _call(name, *arguments):
    """A function of the C library, by name; Python 3.11 has none of these."""
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _start_loopback():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh22x", b"lo", _UP)
        fcntl.ioctl(any_socket, _SET_FLAGS, request)


def _listen(resolver, names, answers):
    """Note each name that is asked for, and answer that there is none."""
    while True:
        question, sender = resolver.recvfrom(4096)
        names.add(_name_in(question))
        if answers:
            answer = bytearray(question)
            answer[2:4] = _NO_SUCH_NAME.to_bytes(2)
            resolver.sendto(answer, sender)


def _name_in(question):
    parts, at = [], 12
    while size := question[at]:
        parts.append(question[at + 1 : at + 1 + size].decode())
        at += 1 + size
    return ".".join(parts)


def _unroutable():
    """How often this network's kernel found no route, for IPv4 and IPv6."""
    network = pathlib.Path("/proc/self/net")
    keys, values = (
        line.split()
        for line in (network / "snmp").read_text().splitlines()
        if line.startswith("Ip:")
    )
    count = int(dict(zip(keys, values, strict=True))["OutNoRoutes"])
    with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
        lines = (network / "snmp6").read_text().splitlines()
        count += int(dict(map(str.split, lines))["Ip6OutNoRoutes"])
    return count


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
