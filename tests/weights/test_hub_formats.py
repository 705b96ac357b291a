"""Checkpoints as flax and Hugging Face's hub keep them: msgpack, folders.

They load as any other file, are read as data alone, and only from the folder
itself.
"""

import json
import tracemalloc

from flax import serialization
from flax.training import train_state
import jax.numpy as jnp
import msgpack
import numpy as np
import optax
import pytest
import safetensors.numpy

from tests.weights import test_convert as layouts
from vpt_jax.nn import cost
from vpt_jax.utils import trees
from vpt_jax.weights import convert, file_formats, load, msgpack_files

VIT = layouts.VIT
TEMPLATE = cost.shapes(VIT)
FLAT = layouts.numbers(TEMPLATE | layouts.HEAD)
BACKBONE = {name: FLAT[name] for name in TEMPLATE}


def read(path):
  return load.load(path, TEMPLATE, VIT.spec)


# msgpack


def fine_tuned():
  """(parameters, optimizer's state, step), as vision_transformer saves it."""
  params = trees.unflatten(FLAT)
  state = optax.sgd(0.1, momentum=0.9).init(params)
  return params, state, 20_000


def training_state():
  return train_state.TrainState.create(
    apply_fn=None, params=trees.unflatten(FLAT), tx=optax.adam(0.1)
  )


@pytest.mark.parametrize(
  "make",
  [lambda: trees.unflatten(FLAT), fine_tuned, training_state],
  ids=["parameters", "vision_transformer", "TrainState"],
)
def test_msgpack_of_flax(make, tmp_path):
  """The public example: a checkpoint of vision_transformer's fine-tuning."""
  path = tmp_path / "checkpoint_20000"
  path.write_bytes(serialization.to_bytes(make()))
  got = read(path)
  layouts.same(got.backbone, BACKBONE)
  np.testing.assert_array_equal(got.extras["head/kernel"], FLAT["head/kernel"])


def test_msgpack_with_old_names_and_half_precision(tmp_path):
  flat = layouts.of_2020(BACKBONE)
  tree = trees.unflatten(
    {name: jnp.asarray(array, jnp.bfloat16) for name, array in flat.items()}
  )
  path = tmp_path / "x.msgpack"
  path.write_bytes(serialization.to_bytes(tree))
  layouts.same(read(path).backbone, BACKBONE)


def test_large_arrays_come_in_chunks(tmp_path, monkeypatch):
  monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 256)
  path = tmp_path / "x.msgpack"
  path.write_bytes(serialization.to_bytes(trees.unflatten(FLAT)))
  assert b"__msgpack_chunked_array__" in path.read_bytes()
  layouts.same(read(path).backbone, BACKBONE)


def array(shape=(2,), dtype="float32", numbers=bytes(8)):
  return msgpack.ExtType(1, msgpack.packb((shape, dtype, numbers)))


def nested(depth):
  return b"\x81\xa1a" * depth + b"\xc0"


DAMAGED = {
  "cut": msgpack.packb({"a": array()})[:-3],
  "more after it": msgpack.packb({"a": array()}) + b"\xc0",
  "a larger shape": msgpack.packb({"a": array(shape=(10**12,))}),
  "a negative side": msgpack.packb({"a": array(shape=(-2,))}),
  "objects": msgpack.packb({"a": array(dtype="object")}),
  "a dtype of code": msgpack.packb({"a": array(dtype="f4,(2,)f4")}),
  "a text as dtype": msgpack.packb({"a": array(dtype="<U2")}),
  "no numbers": msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(3))}),
  "an unknown type": msgpack.packb({"a": msgpack.ExtType(9, b"x")}),
  "complex": msgpack.packb({"a": msgpack.ExtType(2, msgpack.packb((1, 2)))}),
  "deeply nested": nested(100_000),
  "a name twice": b"\x82\xa1a\xc0\xa1a\xc0",
  "numbers as names": b"\x81\x01\xc0",
  "a declared giant map": b"\xdf\xff\xff\xff\xff",
  "a million maps": b"\x81\xa1a\xdd\x00\x20\x00\x00" + b"\x80" * 2**21,
  "maps in lists": b"\x81\xa1a\x9f" + (b"\xdc\xff\xff" + b"\x80" * 65535) * 15,
  "chunks without shape": msgpack.packb(
    {"a": {"__msgpack_chunked_array__": True}}
  ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_msgpack_of_strangers_is_refused_in_little_memory(case, tmp_path):
  path = tmp_path / "x.msgpack"
  path.write_bytes(DAMAGED[case])
  tracemalloc.start()
  try:
    with pytest.raises(ValueError, match="cannot read checkpoint .*x.msgpack"):
      file_formats.read(path)
    assert tracemalloc.get_traced_memory()[1] < 2**27
  finally:
    tracemalloc.stop()


def test_a_kilobyte_of_bits_does_not_crash_the_reader():
  rng = np.random.default_rng(0)
  whole = serialization.to_bytes({"a": np.ones(30), "b": {"c": np.ones(3)}})
  for _ in range(500):
    data = bytearray(whole)
    for place in rng.integers(0, len(data), 3):
      data[place] = rng.integers(256)
    try:
      arrays = msgpack_files._Reader().tree(bytes(data))
    except ValueError:
      continue
    dict(msgpack_files._leaves(arrays, ""))


# Folders of Hugging Face


def hub_folder(folder, parts=1):
  """A folder of Hugging Face's ViT in so many files, with its config."""
  folder.mkdir(parents=True)
  flat = layouts.huggingface(layouts.apart(BACKBONE))
  config = {"model_type": "vit", "layer_norm_eps": 1e-6, "image_size": 16}
  (folder / "config.json").write_text(json.dumps(config))
  if parts == 1:
    layouts.write(folder / "model.safetensors", flat)
    return folder
  names = sorted(flat)
  weight_map = {}
  for i in range(parts):
    file = f"model-{i + 1:05d}-of-{parts:05d}.safetensors"
    held = {name: flat[name] for name in names[i::parts]}
    layouts.write(folder / file, held)
    weight_map |= dict.fromkeys(held, file)
  index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  return folder


@pytest.mark.parametrize("parts", [1, 3])
def test_a_folder_of_the_hub(parts, tmp_path):
  """The public example: config.json and model.safetensors, or its shards."""
  folder = hub_folder(tmp_path / "vit", parts)
  got = read(folder)
  layouts.same(got.backbone, BACKBONE)
  file = folder / "model.safetensors"
  if parts > 1:
    file = folder / "model.safetensors.index.json"
  again = read(file)
  layouts.same(again.backbone, BACKBONE)
  assert again.sha256 == got.sha256 == load.sha256(folder)
  (folder / "README.md").write_text("What lies beside it changes nothing.")
  assert load.sha256(folder) == got.sha256


@pytest.mark.parametrize("parts", [1, 3])
def test_a_folder_is_converted(parts, tmp_path, capsys):
  folder = hub_folder(tmp_path / "vit", parts)
  out = tmp_path / "out.npz"
  options = ["--heads", "3", "--to", str(out)]
  assert convert.main(["convert", str(folder), *options]) == 0
  layouts.same(read(out).backbone, BACKBONE)
  del capsys


@pytest.mark.parametrize(
  "file",
  [
    "../secret.safetensors",
    "/etc/passwd",
    "a/model.safetensors",
    "..",
    ".",
    "",
    "..\\secret.safetensors",
    3,
    None,
  ],
)
def test_an_index_leads_nowhere_else(file, tmp_path):
  folder = hub_folder(tmp_path / "vit", 2)
  layouts.write(tmp_path / "secret.safetensors", BACKBONE)
  path = folder / "model.safetensors.index.json"
  index = json.loads(path.read_text())
  index["weight_map"]["layernorm.weight"] = file
  path.write_text(json.dumps(index))
  with pytest.raises(ValueError, match="index.json (puts|names)"):
    read(folder)


@pytest.mark.parametrize(
  "content",
  ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 9**5],
)
def test_a_damaged_index_is_named(content, tmp_path):
  folder = hub_folder(tmp_path / "vit", 2)
  (folder / "model.safetensors.index.json").write_text(content)
  with pytest.raises(ValueError, match="index.json (has no|cannot be read)"):
    read(folder)


def test_shards_that_are_missing_or_others(tmp_path):
  folder = hub_folder(tmp_path / "vit", 2)
  first = folder / "model-00001-of-00002.safetensors"
  safetensors.numpy.save_file({"other": np.ones(3)}, first)
  with pytest.raises(ValueError, match="does not hold '.*', as the index says"):
    read(folder)
  first.unlink()
  with pytest.raises(ValueError, match="not beside it: model-00001-of-00002"):
    read(folder)


def test_a_folder_of_something_else(tmp_path):
  (tmp_path / "config.json").write_text("{}")
  with pytest.raises(ValueError, match="folder of Orbax or Hugging Face"):
    read(tmp_path)
