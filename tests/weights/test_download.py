"""Fetching from a server that breaks off, changes its mind or is not there."""

import concurrent.futures
import errno
import fcntl
import hashlib
import http.server
import os
from pathlib import Path
import re
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from vpt_jax.utils import signals, system_errors
from vpt_jax.weights import download

ROOT = Path(__file__).parents[2]
CONTENT = np.random.default_rng(0).bytes(1_500_000)
OTHER = np.random.default_rng(1).bytes(1_400_000)


def sums(content: bytes) -> tuple[str, str]:
  return (
    f"sha256:{hashlib.sha256(content).hexdigest()}",
    f"md5:{hashlib.md5(content).hexdigest()}",
  )


class Handler(http.server.BaseHTTPRequestHandler):
  """Serves `server.content`; first `server.faults` go wrong, in this order."""

  def do_GET(self):
    server = self.server
    server.requests.append(dict(self.headers))
    fault = server.faults.pop(0) if server.faults else ""
    if isinstance(fault, int):
      self.send_error(fault)
      return
    if "change" in fault:
      server.content, server.etag = OTHER, '"two"'
    content, start, status = server.content, 0, 200
    span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
    fresh = self.headers.get("If-Range") in (server.etag, server.date)
    if span and server.ranges and (fresh or "resume" in fault):
      start, status = int(span[1]), 206
    if start and start >= len(content):
      self.send_error(416)
      return
    body = content[start:]
    if fault == "short range":  # A server may send less than was asked for.
      body = body[: len(body) // 2]
    self.send_response(status)
    if server.length:
      self.send_header("Content-Length", str(len(body)))
    if server.etag:
      self.send_header("ETag", server.etag)
    if server.date:
      self.send_header("Last-Modified", server.date)
    if status == 206:
      self.send_header(
        "Content-Range", f"bytes {start}-{start + len(body) - 1}/{len(content)}"
      )
    self.end_headers()
    if fault in ("break", "stall"):
      body = body[: len(body) // 2]
    self.wfile.write(body)
    if fault == "stall":
      server.release.wait(20)

  def log_message(self, *args):
    del args


@pytest.fixture
def server():
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  server.content, server.etag, server.date = CONTENT, '"one"', ""
  server.ranges, server.length = True, True
  server.faults, server.requests = [], []
  server.release = threading.Event()
  server.url = f"http://127.0.0.1:{server.server_port}/some/model.npz"
  thread = threading.Thread(target=server.serve_forever, args=(0.01,))
  thread.start()
  yield server
  server.release.set()
  server.shutdown()
  thread.join()
  server.server_close()


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
  monkeypatch.setattr(download, "BACKOFF", 0)
  monkeypatch.setenv("VPT_JAX_CACHE", str(tmp_path))
  monkeypatch.setenv("no_proxy", "*")


def beside(path: Path) -> set[str]:
  """What lies in the folder of the file, but for the lock."""
  if not path.parent.exists():
    return set()
  return {p.name for p in path.parent.iterdir()} - {path.name + ".lock"}


def test_fetched_once(server):
  path = download.fetch(server.url)
  assert path.read_bytes() == CONTENT
  assert path.name == "model.npz"
  assert beside(path) == {"model.npz"}
  sha256, md5 = sums(CONTENT)
  for checksum in ("", sha256, md5, "md5:" + md5[4:10].upper()):
    assert download.fetch(server.url, checksum) == path
  assert len(server.requests) == 1
  assert "Range" not in server.requests[0]


@pytest.mark.parametrize("checksum", [*sums(CONTENT), sums(CONTENT)[1][:10]])
def test_checksum(server, checksum):
  assert download.fetch(server.url, checksum).read_bytes() == CONTENT


def test_wrong_checksum(server):
  path = download.location(server.url)
  with pytest.raises(download.FetchError) as error:
    download.fetch(server.url, "md5:012345")
  for text in (server.url, "md5:012345", sums(CONTENT)[1]):
    assert text in str(error.value)
  assert beside(path) == set()
  assert len(server.requests) == 1

  path.write_bytes(b"put here by hand")
  with pytest.raises(download.FetchError, match="delete it") as error:
    download.fetch(server.url, sums(CONTENT)[0])
  assert str(path) in str(error.value)
  assert path.read_bytes() == b"put here by hand"
  assert len(server.requests) == 1


@pytest.mark.parametrize(
  "checksum",
  ["crc32:123456", "123456", "md5:", "md5:12345", "sha256:nothexdigits"],
)
def test_malformed_checksum(server, checksum):
  with pytest.raises(ValueError, match="checksum"):
    download.fetch(server.url, checksum)
  assert not server.requests


@pytest.mark.parametrize(
  "etag, date",
  [
    ('"one"', ""),
    ("", "Tue, 01 Jul 2025 00:00:00 GMT"),
    ('W/"weak"', "Tue, 01 Jul 2025 00:00:00 GMT"),
  ],
)
def test_broken_transfer_is_resumed(server, etag, date):
  server.etag, server.date, server.faults = etag, date, ["break", "break"]
  path = download.fetch(server.url, sums(CONTENT)[0])
  assert path.read_bytes() == CONTENT
  assert beside(path) == {"model.npz"}
  half, three_quarters = len(CONTENT) // 2, len(CONTENT) // 4 * 3
  assert [r.get("Range") for r in server.requests] == [
    None,
    f"bytes={half}-",
    f"bytes={three_quarters}-",
  ]
  assert server.requests[1]["If-Range"] == (date or etag)


def test_broken_transfer_is_resumed_by_the_next_call(server, monkeypatch):
  monkeypatch.setattr(download, "TRIES", 1)
  server.faults = ["break"]
  path = download.location(server.url)
  with pytest.raises(download.FetchError, match="broke off after 750000 of 15"):
    download.fetch(server.url)
  assert beside(path) == {"model.npz.part", "model.npz.part.tag"}
  assert download.fetch(server.url).read_bytes() == CONTENT
  assert server.requests[1]["Range"] == "bytes=750000-"
  assert beside(path) == {"model.npz"}


@pytest.mark.parametrize(
  "faults",
  [
    ["break", "change"],  # The server answers with the whole new file.
    ["break", "change, resume"],  # It resumes although the file changed.
    ["break", 416],
  ],
)
def test_changed_file_starts_afresh(server, faults):
  server.faults = faults
  assert download.fetch(server.url).read_bytes() == server.content
  assert "Range" in server.requests[1]
  if len(server.requests) > 2:
    assert "Range" not in server.requests[2]


def test_no_ranges(server):
  server.ranges, server.faults = False, ["break"]
  assert download.fetch(server.url).read_bytes() == CONTENT
  assert len(server.requests) == 2


def test_unnamed_version_is_not_resumed(server):
  server.etag, server.faults = "", ["break"]
  assert download.fetch(server.url).read_bytes() == CONTENT
  assert "Range" not in server.requests[1]


def test_range_in_pieces(server):
  server.faults = ["break", "short range"]
  assert download.fetch(server.url).read_bytes() == CONTENT
  assert len(server.requests) == 3


def test_unknown_length(server):
  server.length = False
  assert download.fetch(server.url, sums(CONTENT)[0]).read_bytes() == CONTENT


def test_server_error_is_tried_again(server):
  server.faults = [500]
  assert download.fetch(server.url).read_bytes() == CONTENT
  server.url += "?other"
  server.faults = [503, 500, 502]
  with pytest.raises(download.FetchError, match="HTTP 502"):
    download.fetch(server.url)
  assert len(server.requests) == 5


def test_missing_file_is_not_tried_again(server):
  server.faults = [404]
  path = download.location(server.url)
  with pytest.raises(download.FetchError, match="HTTP 404") as error:
    download.fetch(server.url)
  assert str(path) in str(error.value)
  assert len(server.requests) == 1


def test_offline(tmp_path):
  with socket.socket() as closed:
    closed.bind(("127.0.0.1", 0))
    port = closed.getsockname()[1]
  url = f"http://127.0.0.1:{port}/model.npz"
  with pytest.raises(download.FetchError, match="refused") as error:
    download.fetch(url)
  path = download.location(url)
  for text in (url, str(path), "config.backbone.checkpoint"):
    assert text in str(error.value)
  # The advice works: the folder is there, and a file put there is taken.
  path.write_bytes(CONTENT)
  assert download.fetch(url, sums(CONTENT)[0]) == path


def test_silent_server(server, monkeypatch):
  monkeypatch.setattr(download, "TIMEOUT", 0.2)
  server.faults = ["stall"]
  assert download.fetch(server.url).read_bytes() == CONTENT
  assert server.requests[1]["Range"].startswith("bytes=")


def test_killed(server):
  """No final file; what had arrived is the beginning of the next download."""
  server.faults = ["stall"]
  path = download.location(server.url)
  part = path.with_name("model.npz.part")
  child = subprocess.Popen(
    [
      sys.executable,
      "-c",
      f"from vpt_jax.weights import download; download.fetch({server.url!r})",
    ],
    env={**os.environ, "PYTHONPATH": str(ROOT)},
  )
  try:
    deadline = time.monotonic() + 20
    while not (part.exists() and part.stat().st_size > 500_000):
      assert child.poll() is None and time.monotonic() < deadline
      time.sleep(0.01)
  finally:
    child.kill()
    child.wait()
  assert not path.exists()
  assert download.fetch(server.url).read_bytes() == CONTENT
  assert "Range" in server.requests[1]


@pytest.mark.parametrize("locks", [True, False])
def test_at_once(server, monkeypatch, locks):
  if not locks:

    def flock(file, how):
      raise OSError(errno.ENOTSUP, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
  with concurrent.futures.ThreadPoolExecutor(6) as pool:
    paths = list(
      pool.map(lambda _: download.fetch(server.url, sums(CONTENT)[0]), range(6))
    )
  assert len(set(paths)) == 1
  assert paths[0].read_bytes() == CONTENT
  assert beside(paths[0]) == {"model.npz"}
  if locks:
    assert len(server.requests) == 1


def test_two_processes_at_once(server):
  code = f"from vpt_jax.weights import download; download.fetch({server.url!r})"
  children = [
    subprocess.Popen(
      [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    for _ in range(2)
  ]
  assert [child.wait(30) for child in children] == [0, 0]
  path = download.location(server.url)
  assert path.read_bytes() == CONTENT
  assert beside(path) == {"model.npz"}
  assert len(server.requests) == 1


def test_location(tmp_path, monkeypatch):
  one, two = (download.location(f"https://x.org/{d}/model.npz") for d in "ab")
  assert one.name == two.name == "model.npz"
  assert one != two
  assert tmp_path in one.parents
  assert download.location("gs://b/m.npz") == download.location(
    "https://storage.googleapis.com/b/m.npz"
  )
  assert download.location("http://x.org/a%2F..%2F.b?c=/d").name == "b"
  assert download.location("http://x.org").name == "file"
  assert download.location("http://x.org/m", tmp_path / "c").parents[1] == (
    tmp_path / "c"
  )
  monkeypatch.delenv("VPT_JAX_CACHE")
  assert download.location("http://x.org/m").parents[1] == (
    Path.home() / ".cache" / "vpt_jax"
  )
  with pytest.raises(ValueError, match="unknown scheme .* 'ftp'"):
    download.location("ftp://x.org/m")


def test_cache_that_cannot_be_written(server, tmp_path):
  (tmp_path / "file").write_text("in the way")
  with pytest.raises(download.FetchError, match="VPT_JAX_CACHE"):
    download.fetch(server.url, cache=tmp_path / "file")


def interrupting(function, count, error):
  """Does what `function` does, but raises at its call of this number."""
  calls = []

  def call(*args, **options):
    calls.append(args)
    if len(calls) == count:
      raise error
    return function(*args, **options)

  return call


@pytest.mark.parametrize("error", [KeyboardInterrupt(), signals.Preempted()])
@pytest.mark.parametrize(
  "where,name,count",
  [
    (os, "replace", 1),
    (Path, "unlink", 1),
    (Path, "unlink", 2),
    (Path, "write_bytes", 1),
    (Path, "write_text", 1),
    (system_errors, "append", 1),
    (system_errors, "append", 2),
    (download, "verify", 1),
  ],
)
def test_a_signal_at_any_step_of_a_download(
  server, monkeypatch, where, name, count, error
):
  """It stays that signal, and the next call has the whole file."""
  monkeypatch.setattr(download, "_CHUNK", len(CONTENT) // 2 + 1)
  with monkeypatch.context() as patch:
    patch.setattr(where, name, interrupting(getattr(where, name), count, error))
    with pytest.raises(type(error)):
      download.fetch(server.url, sums(CONTENT)[0])
  path = download.fetch(server.url, sums(CONTENT)[0])
  assert path.read_bytes() == CONTENT
  assert beside(path) == {"model.npz"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_is_not_taken_for_the_network(server, monkeypatch, number):
  """It is said at once, with the path; what has arrived is not asked again."""
  monkeypatch.setattr(download, "_CHUNK", len(CONTENT) // 2 + 1)
  full = OSError(number, os.strerror(number))
  append = system_errors.append

  def fill(file, chunk, part):
    append(file, chunk, part)
    with system_errors.naming(part):
      raise full

  with monkeypatch.context() as patch:
    patch.setattr(system_errors, "append", fill)
    with pytest.raises(OSError) as caught:
      download.fetch(server.url)
  path = download.location(server.url)
  assert f"{path}.part: {os.strerror(number)}; " in (
    system_errors.explain(caught.value)
  )
  assert len(server.requests) == 1
  assert download.fetch(server.url).read_bytes() == CONTENT
  assert server.requests[1]["Range"] == f"bytes={len(CONTENT) // 2 + 1}-"


def test_what_was_begun_is_deleted_when_the_file_comes_otherwise(server):
  """The user put it there by hand, as the error had said."""
  server.faults = ["break"] * download.TRIES
  with pytest.raises(download.FetchError):
    download.fetch(server.url)
  path = download.location(server.url)
  assert beside(path) == {"model.npz.part", "model.npz.part.tag"}
  path.write_bytes(CONTENT)
  assert download.fetch(server.url) == path
  assert beside(path) == {"model.npz"}
