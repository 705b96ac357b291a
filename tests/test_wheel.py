"""The wheel, installed into an empty folder and run far from any checkout."""

import json
import os
from pathlib import Path
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 600  # seconds, on a busy machine
SMALL = (
  "--config.image_size=8",
  "--config.epochs=1",
  "--config.optim.warmup_epochs=0",
)


def python(*args, folder, path, status=0):
  done = subprocess.run(
    [sys.executable, *args],
    cwd=folder,
    env={**os.environ, "PYTHONPATH": str(path)},
    text=True,
    capture_output=True,
    timeout=PATIENCE,
    check=False,
  )
  assert done.returncode == status, (args, done.stdout, done.stderr)
  return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """The built file."""
  pytest.importorskip("setuptools", minversion="77")
  # A copy, as building leaves folders behind.
  source = tmp_path_factory.mktemp("source")
  for name in ("setup.cfg", "setup.py", "pyproject.toml", "LICENSE"):
    shutil.copy(ROOT / name, source / name)
  shutil.copy(ROOT / "README.md", source / "README.md")
  for name in ("vpt_jax", "configs"):
    shutil.copytree(
      ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
    )
  python(
    *("-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation"),
    *("--quiet", "--wheel-dir", "dist"),
    folder=source,
    path="",
  )
  (built,) = (source / "dist").glob("*.whl")
  return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
  """The folder that the wheel is installed into, with nothing else."""
  target = tmp_path_factory.mktemp("installed")
  python(
    *("-m", "pip", "install", "--no-deps", "--no-index", "--quiet"),
    *("--target", str(target), str(wheel)),
    folder=target,
    path="",
  )
  return target


def test_what_is_in_the_wheel(wheel):
  names = set(zipfile.ZipFile(wheel).namelist())
  tops = {name.partition("/")[0] for name in names}
  assert {top for top in tops if not top.endswith(".dist-info")} == {"vpt_jax"}
  modules = {
    str(path.relative_to(ROOT)) for path in (ROOT / "vpt_jax").rglob("*.py")
  }
  configs = {f"vpt_jax/configs/{p.name}" for p in ROOT.glob("configs/*.py")}
  assets = {
    "vpt_jax/assets/vit_mini4_cifar10.npz",
    "vpt_jax/report/assets/page.html",
    "vpt_jax/py.typed",
  }
  assert modules | configs | assets <= names


def test_the_embedded_job_in_an_empty_folder(installed, tmp_path):
  done = python(
    *("-m", "vpt_jax.main", "--config=configs/vapt_vtab.py", "--workdir=run"),
    *SMALL,
    folder=tmp_path,
    path=installed,
  )
  assert "digits test: top-1" in done.stdout
  result = json.loads((tmp_path / "run" / "result.json").read_text())
  assert result["method"] == "vapt"
  assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_file_of_the_user_s_own_goes_first(installed, tmp_path):
  """It imports a module beside it, and the package's other config files."""
  folder = tmp_path / "configs"
  folder.mkdir()
  (folder / "helper.py").write_text("NAME = 'of my own'\n")
  (folder / "vapt_vtab.py").write_text(
    "import helper\n"
    "from configs import common, linear_vtab\n"
    "def get_config():\n"
    "  config = linear_vtab.get_config()\n"
    "  config.name = helper.NAME\n"
    "  return config\n"
  )
  code = (
    "import vpt_jax; from vpt_jax.configs import vpt_vtab; "
    "print(vpt_jax.__file__); "
    "print(vpt_jax.load_config('configs/vapt_vtab.py').name); "
    "print(vpt_jax.load_config('configs/vpt_vtab.py:dtd').vpt.num_tokens)"
  )
  done = python("-c", code, folder=tmp_path, path=installed)
  file, own, shipped = done.stdout.splitlines()
  assert Path(file).is_relative_to(installed)
  assert (own, shipped) == ("of my own", "10")


def test_the_console_command(installed, tmp_path):
  script = installed / "bin" / "vpt_jax"
  text = python(str(script), "--help", folder=tmp_path, path=installed).stdout
  for name in ("train", "data", "report", "analyze", "bench"):
    assert f"\n  {name} " in text
  again = python("-m", "vpt_jax", folder=tmp_path, path=installed).stdout
  assert again == text

  wrong = python(
    str(script), "trian", folder=tmp_path, path=installed, status=1
  ).stderr
  assert "error: unknown command 'trian'; did you mean 'train'?" in wrong

  refused = python(
    *(str(script), "train", "--config", "configs/vapt_vtab.py"),
    *("--config.optim.lr", "-1"),
    folder=tmp_path,
    path=installed,
    status=1,
  )
  assert "error: config.optim.lr=-1.0; expected at least 0" in refused.stderr
  assert "Traceback" not in refused.stderr


def test_help_and_version_do_not_import_jax(installed, tmp_path):
  code = (
    "import sys; from vpt_jax.__main__ import main\n"
    "for argument in ('--help', '--version'):\n"
    "  sys.argv = ['vpt_jax', argument]; main()\n"
    "assert not {'jax', 'numpy'} & sys.modules.keys(), 'imported'\n"
  )
  done = python("-c", code, folder=tmp_path, path=installed)
  assert done.stdout.splitlines()[-1].startswith("vpt_jax 0.2")
