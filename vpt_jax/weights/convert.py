"""Any published checkpoint as one npz under our names (big_vision's):

python -m vpt_jax.backbones.convert IN --to OUT.npz
"""

import argparse
import collections
from collections.abc import Iterator, Mapping, Sequence
import functools
import os
from pathlib import Path
import re
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from vpt_jax.backbones.swin import Swin
from vpt_jax.backbones.vit import ViT
from vpt_jax.nn import cost
from vpt_jax.utils import trees
from vpt_jax.weights import file_formats, identify, load
from vpt_jax.weights.name_maps import EXTRAS, LAYOUTS
from vpt_jax.weights.translate import (
  Arrays,
  split_class_position,
  translate,
  Translated,
)

DTYPES = {
  "float16": np.float16,
  "bfloat16": jnp.bfloat16,
  "float32": np.float32,
}
TOLERANCE = 1e-3  # Of the largest value.

# Names of every layout -> timm's. Not made from `layouts.py`, so that a slip
# there shows.
_TO_TIMM = (
  (
    r"^(visual\.class_embedding|class_token|embeddings\.cls_token|"
    r"vision_model\.embeddings\.class_embedding)$",
    "cls_token",
  ),
  (
    r"^(visual\.positional_embedding|encoder\.pos_embedding|embeddings\."
    r"position_embeddings|vision_model\.embeddings\.position_embedding\.weight"
    r")$",
    "pos_embed",
  ),
  (r"^absolute_pos_embed$", "pos_embed"),
  (
    r"^(visual\.conv1|conv_proj|embeddings\.patch_embeddings\.projection|"
    r"vision_model\.embeddings\.patch_embedding)\.",
    "patch_embed.proj.",
  ),
  (r"^embeddings\.norm\.", "patch_embed.norm."),
  (r"^(visual\.ln_pre|vision_model\.pre_layrnorm)\.", "norm_pre."),
  (
    r"^(visual\.ln_post|vision_model\.post_layernorm|encoder\.ln|layernorm|"
    r"fc_norm)\.",
    "norm.",
  ),
  (r"^encoder\.(layers\.\d+\.(blocks|downsample)\.)", r"\1"),
  (
    r"^(visual\.transformer\.resblocks|(vision_model\.)?encoder\.layers?|"
    r"encoder\.layers\.encoder_layer)[._](?=\d)",
    "blocks.",
  ),
  (r"\.(ln_1|layer_norm1|layernorm_before)\.", ".norm1."),
  (r"\.(ln_2|layer_norm2|layernorm_after)\.", ".norm2."),
  (
    r"\.(attention\.output\.dense|(attn|self_attn|self_attention)\.out_proj)"
    r"\.",
    ".attn.proj.",
  ),
  (r"\.(attn|self_attention)\.in_proj_", ".attn.qkv."),
  (
    r"\.(attention\.attention|attention\.self|self_attn)\.([qkv])[a-z_]*\.",
    r".attn.\2.",
  ),
  (r"\.attention\.self\.", ".attn."),
  (r"\.(mlp\.0|mlp\.linear_1|mlp\.c_fc|intermediate\.dense)\.", ".mlp.fc1."),
  (r"\.(mlp\.3|mlp\.linear_2|mlp\.c_proj|output\.dense)\.", ".mlp.fc2."),
)


class CannotVerify(Exception):
  """There is nothing to compare with; the text says why."""


def convert(
  flat: Mapping[str, np.ndarray],
  source: str,
  backbone: str = "",
  heads: int = 0,
) -> tuple[Arrays, ViT | Swin, Translated]:
  """The arrays of a file in any known layout, as our npz files hold them.

  Args:
    flat: as `formats.read` gives it; of a run's `adapter.npz` too.
    source: name of the file, for errors.
    backbone: see `infer.module_of`.
    heads: see `infer.module_of`.

  Returns:
    (backbone's parameters and extras, a module with these parameters, what was
    found in the file).

  Raises:
    ValueError: unknown layout, or arrays that make no whole backbone.
  """
  beside = [
    name
    for name in flat
    if "meta" in flat  # Of a run.
    and not name.startswith(("backbone/", "head/"))
  ]
  if beside and not any(name.startswith("backbone/") for name in flat):
    raise ValueError(
      f"{source} holds no backbone; train it with config.method=full"
    )
  try:
    found = translate(
      {name: array for name, array in flat.items() if name not in beside}
    )
    found.ignored.extend(beside)
    arrays = split_class_position(found, None)
    # Fine-tuned with mean pooling: `load.fit` looks where that norm is to go.
    is_pooled = "Transformer/encoder_norm/scale" not in arrays
    own = {
      name.replace("fc_norm", "encoder_norm") if is_pooled else name: array
      for name, array in arrays.items()
      if not name.startswith(EXTRAS)
    }
    module = identify.module_of(own, backbone, heads)
  except ValueError as error:
    raise ValueError(f"{source} cannot be converted: {error}") from error
  own = load.restore(own, cost.shapes(module), source)
  out = {
    name.replace("encoder_norm", "fc_norm") if is_pooled else name: array
    for name, array in own.items()
  }
  out |= {
    name: array for name, array in arrays.items() if name.startswith(EXTRAS)
  }
  return dict(sorted(out.items())), module, found


def mapping(found: Translated) -> Iterator[str]:
  """What became what, in one line for all blocks; then what was ignored."""
  prefix = os.path.commonprefix([*found.origin.values()])
  prefix = re.sub(r"[^./]*$", "", prefix)
  kinds: dict[str, tuple[set[str], dict[str, None]]] = {}
  for ours, theirs in found.origin.items():
    files, names = kinds.setdefault(
      _starred(theirs.removeprefix(prefix)), (set(), {})
    )
    files.add(theirs)
    names[_starred(ours)] = None
  yield f"layout: {found.layout}" + f"; names follow {prefix!r}" * bool(prefix)
  for theirs, (files, names) in kinds.items():
    columns = (
      dict.fromkeys(parts)
      for parts in zip(*(name.split("/") for name in names))
    )
    ours = "/".join(
      next(iter(parts)) if len(parts) == 1 else f"{{{','.join(parts)}}}"
      for parts in columns
    )
    if ours != theirs:
      yield f"  {theirs} -> {ours}" + f"  x{len(files)}" * (len(files) > 1)
  ignored = collections.Counter(map(_starred, found.ignored))
  yield from ["ignored:"] * bool(ignored)
  for name, count in ignored.items():
    yield f"  {name}" + f"  x{count}" * (count > 1)


def _starred(name: str) -> str:
  """The name with numbers of blocks and stages as *."""
  return re.sub(r"(blocks?|layers?|merge)([._])\d+(?=[./])", r"\1\2*", name)


def difference(
  path: Path,
  found: Translated,
  module: ViT | Swin,
  arrays: Mapping[str, np.ndarray],
) -> float:
  """Runs timm's model on the original file, and ours on the converted arrays.

  Returns:
    The largest difference between all tokens after the final norm, for one
    random image, relative to the largest value.

  Raises:
    CannotVerify: no torch or timm, or they do not take the file.
  """
  if found.layout == "big_vision":
    raise CannotVerify("the file is in this layout already")
  try:
    import torch

    peer = _peer(module)
    state, want = _state(path, found), peer.state_dict()
    peer.load_state_dict(
      {
        name: tensor.float().reshape(want[name].shape)
        for name, tensor in state.items()
        if name in want
      }
    )
    if isinstance(module, Swin) and module.absolute_positions:
      # timm's Swin has none any more.
      _add_positions(peer, state["pos_embed"])
  except ImportError as error:
    raise CannotVerify(f"torch or timm is not installed ({error})") from error
  # Of many kinds: torch and torchvision that do not fit, a file that torch does
  # not take, other sizes than timm's.
  except Exception as error:
    raise CannotVerify(" ".join(str(error).split())[:200]) from error
  image = (
    np.random.default_rng(0)
    .standard_normal((1, *module.image_size, 3))
    .astype(np.float32)
  )
  with torch.no_grad():
    theirs = (
      peer.eval()
      .forward_features(torch.from_numpy(image.transpose(0, 3, 1, 2).copy()))
      .numpy()
    )

  def run(module):
    tokens = module.embed(image)
    for i in range(module.spec.depth):
      tokens = module.block(i, module.enter(i, tokens))
    return module.norm(tokens.x)

  params = {
    name.replace("fc_norm", "encoder_norm"): array
    for name, array in arrays.items()
  }
  with jax.default_matmul_precision("highest"):
    ours = np.asarray(
      jax.jit(nn.apply(run, module))({"params": trees.unflatten(params)})
    )
  theirs = theirs.reshape(ours.shape)  # Swin's have rows and columns.
  return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def _peer(module: ViT | Swin) -> Any:
  """timm's model of the same sizes."""
  from timm.models import swin_transformer, vision_transformer
  import torch

  options: dict[str, Any] = dict(
    img_size=module.image_size,
    patch_size=module.patch_size,
    num_classes=0,
    embed_dim=module.width,
    num_heads=module.num_heads,
    global_pool="",
    norm_layer=functools.partial(torch.nn.LayerNorm, eps=module.eps),
  )
  if isinstance(module, Swin):
    return swin_transformer.SwinTransformer(
      depths=module.depths,
      window_size=module.window,
      mlp_ratio=module.mlp_ratio,
      **options,
    )
  return vision_transformer.VisionTransformer(
    depth=module.depth,
    mlp_ratio=module.mlp_dim / module.width,
    class_token=bool(module.num_cls),
    pre_norm=module.pre_norm,
    act_layer="quick_gelu" if module.gelu == "quick" else "gelu",
    **options,
  )


def _add_positions(peer: Any, table: Any) -> None:
  """Makes timm's Swin add positions [1, N, D] to its embedded patches."""

  def added(layer, inputs, patches):
    """Patches [1, rows, columns, D], with the positions added."""
    return patches + table.float().reshape(patches.shape)

  peer.patch_embed.register_forward_hook(added)


def _state(path: Path, found: Translated) -> dict[str, Any]:
  """A file's tensors under timm's names, read by torch's own readers."""
  import torch

  with open(path, "rb") as file:
    is_safetensors = file.read(9)[8:] == b"{"
  if is_safetensors:
    with safetensors.safe_open(path, framework="pt") as tensors:
      loaded = {name: tensors.get_tensor(name) for name in tensors.keys()}
  else:
    loaded = trees.flatten(
      torch.load(path, map_location="cpu", weights_only=True)
    )
  marker = next(
    marker for layout, marker, _ in LAYOUTS if layout == found.layout
  )
  prefix = found.origin["embedding/kernel"].removesuffix(marker)
  state = {}
  for name, tensor in loaded.items():
    if name.startswith(prefix) and isinstance(tensor, torch.Tensor):
      name = name.removeprefix(prefix)
      for pattern, to in _TO_TIMM:
        name = re.sub(pattern, to, name)
      state[name] = tensor
  for query in [name for name in state if ".attn.q." in name]:
    state[query.replace(".q.", ".qkv.")] = torch.cat(
      [state.pop(query.replace(".q.", f".{part}.")) for part in "qkv"]
    )
  if "layers.0.downsample.reduction.weight" in state:  # At a stage's end.
    state = {
      re.sub(
        r"(?<=^layers\.)\d+(?=\.downsample)",
        lambda stage: str(int(stage[0]) + 1),
        name,
      ): tensor
      for name, tensor in state.items()
    }
  return state


def main(argv: Sequence[str]) -> int:
  """Writes the npz; prints what became what and the file's sha256."""
  parser = argparse.ArgumentParser(
    "python -m vpt_jax.backbones.convert", description=__doc__.partition(":")[0]
  )
  add = parser.add_argument
  add(
    "input",
    metavar="IN",
    help="npz, safetensors or PyTorch file, Orbax "
    "folder, address, or a run's adapter.npz",
  )
  add(
    "--to",
    required=True,
    metavar="OUT.npz",
    help="for config.backbone.checkpoint",
  )
  add(
    "--backbone",
    default="",
    metavar="NAME",
    help="entry of `python -m "
    "vpt_jax.backbones`, needed where only that tells the number of heads",
  )
  add(
    "--heads",
    type=int,
    default=0,
    metavar="N",
    help="attention heads of a ViT that is no entry",
  )
  add(
    "--dtype",
    choices=DTYPES,
    help="how floats are stored; default: float16 "
    "if that changes no number or IN is an adapter.npz, else float32",
  )
  add(
    "--verify",
    action=argparse.BooleanOptionalAction,
    help="compare with "
    "timm's model, fed with IN; default: where torch and timm can",
  )
  args = parser.parse_args(argv[1:])
  try:
    with load.local(args.input, "", None) as path:
      flat = file_formats.read(path)
      arrays, module, found = convert(
        flat, args.input, args.backbone, args.heads
      )
      sys.stdout.write("\n".join([*mapping(found), ""]))
      verdict = "not verified, as asked for"
      if args.verify is not False:
        verdict = _verdict(path, found, module, arrays, args.verify)
    sys.stdout.write(f"{verdict}\n")
    with np.errstate(over="ignore"):
      is_exact = all(
        np.array_equal(array, array.astype(np.float16))
        for array in arrays.values()
      )
    dtype = args.dtype or (
      "float16" if is_exact or "meta" in flat else "float32"
    )
    load.save(args.to, arrays, DTYPES[dtype])
    sys.stdout.write(
      f"{args.to}: {trees.count(arrays):,} numbers as {dtype}, "
      f"sha256:{load.sha256(args.to)}\n"
    )
  except (OSError, ValueError) as error:
    sys.stderr.write(f"error: {error}\n")
    return 1
  return 0


def _verdict(
  path: Path,
  found: Translated,
  module: ViT | Swin,
  arrays: Arrays,
  is_required: bool | None,
) -> str:
  """What the comparison with timm says.

  Raises:
    ValueError: they differ, or nothing to compare with where it `is_required`.
  """
  try:
    relative = difference(path, found, module, arrays)
  except CannotVerify as error:
    if is_required:
      raise ValueError(
        f"cannot verify: {error}; without --verify it is converted all the same"
      ) from error
    return f"not verified: {error}"
  text = (
    f"tokens differ from timm's by {relative:.1e} of the largest, with "
    f"{module.num_heads} heads, {module.gelu} GELU and eps {module.eps} "
    "in both"
  )
  if not relative <= TOLERANCE:  # Nor if it is not a number.
    raise ValueError(
      f"{text}; expected is {TOLERANCE} at most. Nothing was "
      "written: timm reads these names in another way"
    )
  return f"verified: {text}"


if __name__ == "__main__":
  sys.exit(main(sys.argv))
