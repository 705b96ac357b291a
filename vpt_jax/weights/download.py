"""A file at an address, fetched once into a local cache.

Broken transfers resume with the conditional range requests of RFC 9110,
sections 13.1.5 and 14.
"""

from collections.abc import Iterator, Mapping
import contextlib
import hashlib
import http.client
import logging
import os
from pathlib import Path
import re
import tempfile
import time
from typing import IO
import urllib.error
import urllib.parse
import urllib.request

from vpt_jax.utils import lookup

log = logging.getLogger("vpt_jax")

try:
  import fcntl
except ImportError:  # No POSIX system.
  fcntl = None

TRIES = 3
BACKOFF = 1.0  # Seconds after the first failure, twice that after the second.
TIMEOUT = 30.0  # Seconds for connecting, and again for every read.
_CHUNK = 1 << 18


class FetchError(ValueError):
  """A file could not be fetched or is not the one that was expected."""


def fetch(
  url: str, checksum: str = "", cache: str | Path | None = None
) -> Path:
  """Local path of the file at `url`, fetched unless it is there already.

  Args:
    url: `https://`, `http://` or `gs://` address.
    checksum: `sha256:HEX` or `md5:HEX`, see `verify`; "": any content will do.
    cache: folder; default is `$VPT_JAX_CACHE`, else `~/.cache/vpt_jax`.

  Raises:
    FetchError: no connection, no such file, or another content; the text says
      where to put a file that was downloaded elsewhere.
    ValueError: unknown scheme of the address or malformed checksum.
  """
  _parse(checksum)
  path = location(url, cache)
  if not path.is_file():
    with _lock(path) as part:
      if not path.is_file():  # Another process may have been faster.
        _download(_https(url), path, part, checksum)
        return path
  verify(path, checksum, f"delete it and {_https(url)} is fetched again")
  return path


def location(url: str, cache: str | Path | None = None) -> Path:
  """Where `fetch` puts the file, in a folder of its own for every address."""
  root = cache or os.environ.get("VPT_JAX_CACHE") or "~/.cache/vpt_jax"
  url = _https(url)
  name = urllib.parse.unquote(urllib.parse.urlsplit(url).path).split("/")[-1]
  name = re.sub(r"[^\w.-]", "_", name).lstrip(".")[-100:] or "file"
  folder = hashlib.sha256(url.encode()).hexdigest()[:8]
  return Path(root).expanduser() / folder / name


def digest(path: str | Path, algorithm: str) -> str:
  """Hash of a file as hex digits."""
  total = hashlib.new(algorithm, usedforsecurity=False)
  with open(path, "rb") as file:
    while chunk := file.read(1 << 20):
      total.update(chunk)
  return total.hexdigest()


def verify(path: str | Path, checksum: str, advice: str) -> None:
  """Compares a file with `sha256:HEX` or `md5:HEX`; "" fits every file.

  HEX may be the first digits (six or more) where no more was published.

  Raises:
    FetchError: the file has another sum; the text ends with `advice`.
    ValueError: malformed checksum.
  """
  algorithm, expected = _parse(checksum)
  if not algorithm:
    return
  found = digest(path, algorithm)
  if not found.startswith(expected):
    raise FetchError(
      f"{path} is not the expected file: its checksum is "
      f"{algorithm}:{found}, expected {checksum}; {advice}"
    )


def _parse(checksum: str) -> tuple[str, str]:
  """`ALGORITHM:HEX` -> (algorithm, lower-case hex)."""
  if not checksum:
    return "", ""
  algorithm, _, digits = checksum.partition(":")
  lookup.choose(algorithm, ("md5", "sha256"), "checksum algorithm")
  if not re.fullmatch("[0-9a-f]{6,}", digits.lower()):
    raise ValueError(
      f"checksum {checksum!r} must be {algorithm}:HEX with six "
      "or more hexadecimal digits"
    )
  return algorithm, digits.lower()


def _https(url: str) -> str:
  """The address that a plain HTTP client understands."""
  scheme = url.partition("://")[0]
  lookup.choose(scheme, ("gs", "http", "https"), "scheme of an address")
  if scheme == "gs":
    return "https://storage.googleapis.com/" + url.removeprefix("gs://")
  return url


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[Path]:
  """Makes the folder and gives the name to download to, while it is ours."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(_beside(path, ".lock"), "w", encoding="utf-8")
  except OSError as error:
    raise FetchError(
      f"cannot write to the cache: {error}; name another folder "
      "in the environment variable VPT_JAX_CACHE"
    ) from error
  with file:  # Closing it unlocks.
    if _flock(file):
      yield _beside(path, ".part")
    else:  # A part of one's own is safe as well, but cannot be resumed.
      with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        yield Path(folder) / path.name


def _flock(file: IO[str]) -> bool:
  """Waits for the lock; False where the system or its files have none."""
  if fcntl is None:
    return False
  try:
    fcntl.flock(file, fcntl.LOCK_EX)
  except OSError:
    return False
  return True


def _beside(path: Path, suffix: str) -> Path:
  return path.with_name(path.name + suffix)


def _download(url: str, path: Path, part: Path, checksum: str) -> None:
  """Fetches `url` to `part` in a few tries, then moves it to `path`."""
  note = _beside(part, ".tag")
  for attempt in range(1, TRIES + 1):
    try:
      _transfer(url, part, note)
      break
    except (OSError, http.client.HTTPException) as error:
      why, final = _explain(error)
      if final or attempt == TRIES:
        raise FetchError(
          f"could not fetch {url}: {why}\nDownload this address elsewhere "
          f"and put the file at\n  {path}\nor name a local file "
          "(config.backbone.checkpoint, config.clip.merges)"
        ) from error
      log.warning("fetching %s failed, trying again: %s", url, why)
      time.sleep(BACKOFF * attempt)
  note.unlink(missing_ok=True)
  try:
    verify(part, checksum, f"it came from {url} and was deleted")
  except FetchError:
    part.unlink()
    raise
  os.replace(part, path)
  log.info("fetched %s (%.1f MB)", path, path.stat().st_size / 1e6)


def _explain(error: Exception) -> tuple[str, bool]:
  """What failed, and whether asking again is of no use."""
  if isinstance(error, urllib.error.HTTPError):
    error.close()
    return f"HTTP {error.code} {error.reason}", error.code < 500
  reason = getattr(error, "reason", error)  # URLError wraps the real one.
  return str(reason) or type(reason).__name__, False


def _transfer(url: str, part: Path, note: Path) -> None:
  """One request for what `part` does not hold yet.

  `note` holds the tag of the version that `part` was begun from. It is removed
  wherever the two do not belong together, so that the next try starts afresh.

  Raises:
    OSError, http.client.HTTPException: the transfer failed; `part` is kept.
  """
  tag = note.read_text("utf-8") if note.is_file() and part.is_file() else ""
  start = part.stat().st_size if tag else 0
  headers = {"User-Agent": "vpt_jax", "Accept-Encoding": "identity"}
  if start:
    headers |= {"Range": f"bytes={start}-", "If-Range": tag}
  try:
    response = urllib.request.urlopen(
      urllib.request.Request(url, headers=headers), timeout=TIMEOUT
    )
  except urllib.error.HTTPError as error:
    if error.code == 416 and start:
      error.close()
      note.unlink()
      raise ConnectionError("the file at this address is shorter now") from None
    raise
  with response:
    if response.status == 206:
      span = re.fullmatch(
        rf"bytes {start}-\d+/(\d+)", response.headers.get("Content-Range", "")
      )
      if not start or span is None or _tag(response.headers) not in ("", tag):
        note.unlink(missing_ok=True)
        raise ConnectionError("the server did not continue the same file")
      total = int(span[1])
    else:  # The whole file: nothing was there, it changed, or no ranges.
      total = response.length
      note.unlink(missing_ok=True)  # Before the part that it speaks of.
      part.write_bytes(b"")
      note.write_text(_tag(response.headers), "utf-8")
    log.info(
      "fetching %s from byte %d of %s",
      url,
      part.stat().st_size,
      "unknown" if total is None else total,
    )
    with open(part, "ab") as file:
      while chunk := response.read(_CHUNK):
        file.write(chunk)
  size = part.stat().st_size
  if total is not None and size != total:
    raise ConnectionError(f"broke off after {size} of {total} bytes")


def _tag(headers: Mapping[str, str]) -> str:
  """What names this version of a file: If-Range allows no weak ETag."""
  etag = headers.get("ETag", "")
  if etag and not etag.startswith("W/"):
    return etag
  return headers.get("Last-Modified", "")
