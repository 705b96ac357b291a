"""Downloads files, each once, into a local cache.

Broken transfers resume with the conditional range requests of RFC 9110,
sections 13.1.5 and 14.
"""

from collections.abc import Iterator
import contextlib
import hashlib
import http.client
import os
from pathlib import Path
import re
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

from vpt_jax.utils import files, lookup, strange_files, system_errors
from vpt_jax.utils.logs import log

TRIES = 3
BACKOFF = 1.0  # Seconds after the first failure, twice that after the second.
TIMEOUT = 30.0  # Seconds for connecting, and again for every read.
_CHUNK = 2**18  # Bytes of a read from the network
_HASHED = 2**20  # and from the disk.


class FetchError(ValueError):
  """Says that a file could not be fetched or is not the expected one."""


def fetch(
  url: str, checksum: str = "", cache: str | Path | None = None
) -> Path:
  """Returns the local path of the file at `url`, fetched unless it is there.

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
  if path.is_file():
    _delete_part(path)
  else:
    with _part_of(path) as part:
      if not path.is_file():  # Another process may have been faster.
        _download(_https(url), path, part, checksum)
        return path
  verify(path, checksum, f"delete it and {_https(url)} is fetched again")
  return path


def location(url: str, cache: str | Path | None = None) -> Path:
  """Returns where `fetch` puts the file; each address has its own folder."""
  root = cache_folder(cache)
  url = _https(url)
  address_path = urllib.parse.urlsplit(url).path
  last = urllib.parse.unquote(address_path).split("/")[-1]
  name = re.sub(r"[^\w.-]", "_", last).lstrip(".")[-100:]
  folder = hashlib.sha256(url.encode()).hexdigest()[:8]
  return root / folder / (name or "file")


def cache_folder(cache: str | Path | None = None) -> Path:
  """Returns the folder of what was fetched; see `fetch`."""
  root = cache or os.environ.get("VPT_JAX_CACHE") or "~/.cache/vpt_jax"
  return Path(root).expanduser()


def digest(path: str | Path, algorithm: str) -> str:
  """Returns the hash of a file as hex digits."""
  total = hashlib.new(algorithm, usedforsecurity=False)
  with strange_files.open_regular(path) as file:
    while chunk := file.read(_HASHED):
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
  """Returns (algorithm, lower-case hex) of `ALGORITHM:HEX`."""
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
  """Returns the address that a plain HTTP client understands."""
  scheme = url.partition("://")[0]
  lookup.choose(scheme, ("gs", "http", "https"), "scheme of an address")
  if scheme == "gs":
    return "https://storage.googleapis.com/" + url.removeprefix("gs://")
  return url


@contextlib.contextmanager
def _part_of(path: Path) -> Iterator[Path]:
  """Gives the file to download to, which no other process has meanwhile.

  Args:
    path: of the whole file; its folder is made.

  Raises:
    FetchError: the folder cannot be written to.
  """
  with contextlib.ExitStack() as stack:
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      lock = files.waiting_lock(_beside(path, ".lock"))
      is_locked = stack.enter_context(lock)
    except OSError as error:
      raise FetchError(
        f"cannot write to the cache: {error}; name another folder "
        "in the environment variable VPT_JAX_CACHE"
      ) from error
    if is_locked:
      yield _beside(path, ".part")
      return
    # A part of one's own is safe without locks, but cannot be resumed.
    own = tempfile.TemporaryDirectory(dir=path.parent)
    yield Path(stack.enter_context(own)) / path.name


def _delete_part(path: Path) -> None:
  """Deletes what was begun to be downloaded before the file came otherwise."""
  part = _beside(path, ".part")
  if not part.exists():
    return
  lock = files.lock_if_free(_beside(path, ".lock"))
  with contextlib.suppress(OSError), lock as is_free:
    if is_free:
      part.unlink(missing_ok=True)
      _beside(part, ".tag").unlink(missing_ok=True)


def _beside(path: Path, suffix: str) -> Path:
  """Returns the path of a file that belongs to another one."""
  return path.with_name(path.name + suffix)


def _download(url: str, path: Path, part: Path, checksum: str) -> None:
  """Downloads `url` to `part` in a few tries, then moves it to `path`.

  Raises:
    FetchError: see `fetch`.
    OSError: the disk is full or fails; what has arrived is kept.
  """
  note = _beside(part, ".tag")
  for attempt in range(1, TRIES + 1):
    try:
      _transfer(url, part, note)
      break
    except (OSError, http.client.HTTPException) as error:
      if getattr(error, "filename", None) == str(part):
        raise  # It is the disk that fails, not the network.
      why, is_final = _explain(error)
      if is_final or attempt == TRIES:
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
    part.unlink(missing_ok=True)
    raise
  os.replace(part, path)
  log.info("fetched %s (%.1f MB)", path, path.stat().st_size / 1e6)


def _explain(error: Exception) -> tuple[str, bool]:
  """Returns what failed, and whether asking again is of no use."""
  if isinstance(error, urllib.error.HTTPError):
    error.close()
    return f"HTTP {error.code} {error.reason}", error.code < 500
  reason = getattr(error, "reason", error)  # URLError wraps the real one.
  return str(reason) or type(reason).__name__, False


def _transfer(url: str, part: Path, note: Path) -> None:
  """Makes one request for what `part` does not hold yet.

  Args:
    url: address for an HTTP client.
    part: what has arrived; grows.
    note: file with the tag of the version that `part` was begun from. It is
      removed wherever the two do not belong together, so that the next try
      starts afresh.

  Raises:
    OSError, http.client.HTTPException: the transfer failed; `part` is kept.
  """
  tag = ""
  start = 0
  total: int | None
  if note.is_file() and part.is_file():
    tag = note.read_text("utf-8")
    start = part.stat().st_size if tag else 0
  with _request(url, start, tag, note) as response:
    if response.status == 206:
      total = _resumed_total(response, start, tag, note)
    else:  # The whole file: nothing was there, it changed, or no ranges.
      total = response.length
      with system_errors.naming(part):
        note.unlink(missing_ok=True)  # Before the part that it speaks of.
        part.write_bytes(b"")
        note.write_text(_tag(response.headers), "utf-8")
    log.info(
      "fetching %s from byte %d of %s",
      url,
      part.stat().st_size,
      "unknown" if total is None else total,
    )
    # Unbuffered, so that nothing is left to be written when it is closed.
    with open(part, "ab", buffering=0) as file:
      while chunk := response.read(_CHUNK):
        system_errors.append(file, chunk, part)
  size = part.stat().st_size
  if total is not None and size != total:
    raise ConnectionError(f"broke off after {size} of {total} bytes")


def _request(
  url: str, start: int, tag: str, note: Path
) -> http.client.HTTPResponse:
  """Asks for a file, from byte `start` on if it is still that of the tag."""
  headers = {"User-Agent": "vpt_jax", "Accept-Encoding": "identity"}
  if start:
    headers["Range"] = f"bytes={start}-"
    headers["If-Range"] = tag
  request = urllib.request.Request(url, headers=headers)
  try:
    return urllib.request.urlopen(request, timeout=TIMEOUT)
  except urllib.error.HTTPError as error:
    if error.code == 416 and start:
      error.close()
      note.unlink(missing_ok=True)
      raise ConnectionError("the file at this address is shorter now") from None
    raise


def _resumed_total(
  response: http.client.HTTPResponse, start: int, tag: str, note: Path
) -> int:
  """Returns the bytes of the whole file of which a range was sent.

  Raises:
    ConnectionError: it is not what was asked for; the note is removed.
  """
  span = re.fullmatch(
    rf"bytes {start}-\d+/(\d+)", response.headers.get("Content-Range", "")
  )
  is_same_version = _tag(response.headers) in ("", tag)
  if not start or span is None or not is_same_version:
    note.unlink(missing_ok=True)
    raise ConnectionError("the server did not continue the same file")
  return int(span[1])


def _tag(headers: http.client.HTTPMessage) -> str:
  """Returns what names this version of a file; If-Range allows no weak ETag."""
  etag = headers.get("ETag", "")
  if etag and not etag.startswith("W/"):
    return etag
  return headers.get("Last-Modified", "")
