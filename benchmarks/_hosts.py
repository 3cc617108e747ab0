"""Hosts of a trial: network namespaces of this machine, or its loopback.

Each namespace has an address, a host name and a cable of its own to one switch,
so that a partition is a cable that is pulled: nothing is refused, packets just
do not arrive. Namespaces need root and `ip` of iproute2.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from typing import Protocol

_NEW_UTS = 0x4000000  # CLONE_NEWUTS


class Hosts(Protocol):
  """Where the processes of a trial run.

  Attributes:
    name: "namespaces" or "loopback".
    prefix: Prefix of the names of the namespaces, or "".
  """

  name: str
  prefix: str

  def address(self, host: int) -> str:
    """Address of a host."""

  def enter(self, host: int) -> None:
    """Moves this process, which has one thread of Python, to a host."""

  def connect(self, host: int, connected: bool) -> None:
    """Pulls the cable of a host, or plugs it in."""


class Loopback:
  """All hosts are this machine; no cable can be pulled."""

  name, prefix = "loopback", ""

  def address(self, host: int) -> str:
    del host
    return "127.0.0.1"

  def enter(self, host: int) -> None:
    del host

  def connect(self, host: int, connected: bool) -> None:
    raise NotImplementedError("loopback has no cables; run as root with `ip`")


class Namespaces:
  """Network namespaces around a switch.

  Args:
    prefix: Prefix of the names of the namespaces.
  """

  name = "namespaces"

  def __init__(self, prefix: str):
    self.prefix = prefix

  def address(self, host: int) -> str:
    return f"10.77.0.{host + 1}"

  def enter(self, host: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{self.prefix}{host}", encoding="utf-8") as file:
      if libc.setns(file.fileno(), 0) or libc.unshare(_NEW_UTS):
        raise OSError(ctypes.get_errno(), "a namespace cannot be entered")
    # Gloo looks up the host name; that it is an address needs no /etc/hosts.
    socket.sethostname(self.address(host))

  def connect(self, host: int, connected: bool) -> None:
    state = "up" if connected else "down"
    self._ip("hub", f"link set port{host} {state}")

  def add(self, host: int) -> None:
    """Makes a namespace with its cable to the switch."""
    name = f"{self.prefix}{host}"
    _run("ip", "netns", "add", name)
    self._ip(
      "hub", f"link add port{host} type veth peer name eth0 netns {name}"
    )
    self._ip("hub", f"link set port{host} master switch up")
    self._ip(f"{host}", f"addr add {self.address(host)}/24 dev eth0")
    for link in ("lo", "eth0"):
      self._ip(f"{host}", f"link set {link} up")

  def add_switch(self) -> None:
    """Makes the namespace of the switch."""
    _run("ip", "netns", "add", f"{self.prefix}hub")
    self._ip("hub", "link add switch type bridge")
    self._ip("hub", "link set switch up")

  def remove(self, name: str | int) -> None:
    """Removes a namespace if it exists."""
    _run("ip", "netns", "del", f"{self.prefix}{name}", check=False)

  def _ip(self, name: str, words: str) -> None:
    _run("ip", "-n", f"{self.prefix}{name}", *words.split())


def named(prefix: str) -> Hosts:
  """The hosts of a prefix, which exist."""
  return Namespaces(prefix) if prefix else Loopback()


@contextlib.contextmanager
def hosts(count: int) -> Iterator[Hosts]:
  """Namespaces if this machine allows them, else the loopback.

  Args:
    count: Number of hosts.
  """
  if os.geteuid() or not (shutil.which("ip") and shutil.which("unshare")):
    yield Loopback()
    return
  spaces = Namespaces(f"figs{os.getpid()}-")
  try:
    spaces.add_switch()
    for host in range(count):
      spaces.add(host)
  except subprocess.CalledProcessError:
    for name in ("hub", *range(count)):
      spaces.remove(name)
    yield Loopback()
    return
  try:
    yield spaces
  finally:
    for name in ("hub", *range(count)):
      spaces.remove(name)


def _run(*words: str, check: bool = True) -> None:
  subprocess.run(words, check=check, capture_output=True)
