"""Free memory of the host, and of devices."""

import types

import jax
import pytest

from vpt_jax.distributed import memory


class Device:
  """A device that says how much memory it has, or None."""

  def __init__(self, limit=None, used=0):
    self._stats = limit and {"bytes_limit": limit, "bytes_in_use": used}

  def memory_stats(self):
    return self._stats


def mesh(*devices):
  return types.SimpleNamespace(local_devices=devices)


def test_the_least_of_all_devices():
  assert memory.free_bytes(mesh(Device(100, 20), Device(100, 60))) == 40


def test_devices_that_do_not_say_have_the_memory_of_the_host(monkeypatch):
  monkeypatch.setattr(memory, "free_host_bytes", lambda: 7)
  assert memory.free_bytes(mesh(Device())) == 7
  assert memory.free_bytes(mesh(Device(), Device(100, 99))) == 7


def test_out_of_memory_is_recognised():
  error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 3 GB")
  assert memory.is_out_of_memory(error)
  other = jax.errors.JaxRuntimeError("INTERNAL: 3 GB")
  assert not memory.is_out_of_memory(other)


def test_systems_without_proc_have_half_of_their_memory(tmp_path):
  assert memory.free_host_bytes(tmp_path) > 2**20


@pytest.mark.parametrize(
  "groups,limits,free",
  [
    ("", {}, 1000 * 1024),
    # Version 2: the group's own limit, or one above it, less what is in use.
    ("0::/a/b", {"a/b": ("memory.max", "500000", "anon", 200000)}, 300000),
    (
      "0::/a/b",
      {
        "a": ("memory.max", "400000", "anon", 100000),
        "a/b": ("memory.max", "max", "anon", 7),
      },
      300000,
    ),
    # Version 1; of a container only the topmost group is seen.
    (
      "4:memory:/docker/x\n0::/",
      {"memory": ("memory.limit_in_bytes", "90000", "total_rss", 50000)},
      40000,
    ),
    (
      "4:memory:/x",
      {
        "memory/x": (
          "memory.limit_in_bytes",
          "9223372036854771712",
          "total_rss",
          5,
        )
      },
      1000 * 1024,
    ),
    ("0::/a", {"a": ("memory.max", "1", "anon", 5)}, 0),
  ],
)
def test_limits_of_containers_count(groups, limits, free, tmp_path):
  (tmp_path / "proc/self").mkdir(parents=True)
  (tmp_path / "proc/meminfo").write_text(
    "MemTotal:  2000 kB\nMemFree:  100 kB\nMemAvailable:  1000 kB\n"
  )
  (tmp_path / "proc/self/cgroup").write_text(groups)
  for group, (limit, value, used, count) in limits.items():
    folder = tmp_path / "sys/fs/cgroup" / group
    folder.mkdir(parents=True, exist_ok=True)
    (folder / limit).write_text(value + "\n")
    (folder / "memory.stat").write_text(f"cache 99\n{used} {count}\n")
  assert memory.free_host_bytes(tmp_path) == free
