"""Headless Chromium through its DevTools protocol, over a pair of pipes.

With --remote-debugging-pipe Chromium reads commands from descriptor 3, and
writes replies and events to descriptor 4: JSON, ended by a zero byte.
"""

import contextlib
import functools
import http.server
import json
import os
import select
import shutil
import subprocess
import tempfile
import threading
import time

NAMES = (
  "chromium-headless-shell",
  "chromium",
  "chromium-browser",
  "google-chrome",
)


def executable():
  """Path of Chromium, or None where there is none."""
  return next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
  """A tab and all events that it has sent.

  Attributes:
    events: (method, params), in the order in which they came.
  """

  def __init__(self, send, receive, timeout):
    self.events = []
    self._send, self._receive, self._timeout = send, receive, timeout
    self._data, self._last, self._session = b"", 0, None
    target = self.call("Target.createTarget", url="about:blank")["targetId"]
    self._session = self.call(
      "Target.attachToTarget", targetId=target, flatten=True
    )["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
      self.call(f"{domain}.enable")

  def call(self, method, **params):
    """The result of a command; events that come before it are kept."""
    self._last += 1
    command = {"id": self._last, "method": method, "params": params}
    if self._session:
      command["sessionId"] = self._session
    os.write(self._send, json.dumps(command).encode() + b"\0")
    while True:
      message = self._next()
      if message.get("id") == self._last:
        if "error" in message:
          raise RuntimeError(f"{method}: {message['error']['message']}")
        return message["result"]

  def open(self, url):
    """Loads a page, until MathJax has set all of its equations."""
    start = len(self.events)
    result = self.call("Page.navigate", url=url)
    if "errorText" in result:
      raise RuntimeError(f"{url}: {result['errorText']}")
    while "Page.loadEventFired" not in [m for m, _ in self.events[start:]]:
      self._next()
    self.value("window.MathJax ? MathJax.startup.promise.then(() => 0) : 0")

  def value(self, expression):
    """The value of a JavaScript expression, or of what it promises."""
    result = self.call(
      "Runtime.evaluate",
      expression=expression,
      awaitPromise=True,
      returnByValue=True,
    )
    if "exceptionDetails" in result:
      raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
    return result["result"].get("value")

  def _next(self):
    deadline = time.monotonic() + self._timeout
    while b"\0" not in self._data:
      left = max(deadline - time.monotonic(), 0)
      if not select.select([self._receive], [], [], left)[0]:
        raise TimeoutError(f"No message of Chromium for {self._timeout} s")
      chunk = os.read(self._receive, 1 << 20)
      if not chunk:
        raise RuntimeError("Chromium has ended")
      self._data += chunk
    text, _, self._data = self._data.partition(b"\0")
    message = json.loads(text)
    if "method" in message:
      self.events.append((message["method"], message["params"]))
    return message


@contextlib.contextmanager
def chromium(timeout=60):
  """A `Tab` of a Chromium that ends with the context."""
  (read, send), (receive, write) = os.pipe(), os.pipe()
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
    # Root has no sandbox; containers have little shared memory.
    words = [
      executable(), "--headless", "--no-sandbox", "--disable-dev-shm-usage",
      "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}",
      "--remote-debugging-pipe",
    ]  # fmt: skip
    # Plain sh knows descriptors below 10 only.
    process = subprocess.Popen(
      ["bash", "-c", f'exec "$@" 3<&{read} 4>&{write}', "bash", *words],
      pass_fds=(read, write),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    os.close(read)
    os.close(write)
    try:
      yield Tab(send, receive, timeout)
    finally:
      process.kill()
      process.wait()
      os.close(send)
      os.close(receive)


@contextlib.contextmanager
def served(folder):
  """The address at which the files of a folder are served on this machine."""

  class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
      pass

  handler = functools.partial(Quiet, directory=str(folder))
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
      yield f"http://127.0.0.1:{server.server_port}"
    finally:
      server.shutdown()
      thread.join()
