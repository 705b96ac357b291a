"""Defines the benchmark's models in PyTorch: a loop over timm's ViT."""

from collections.abc import Callable
import re
from typing import Any

import numpy as np
import torch
from torch import nn
import torch.nn.functional as F

from vpt_jax.bench.pytorch_methods import Arrays, METHODS

_KEPT: list[Any] = []  # what torch forgets when it is collected


def _vision_transformer() -> type[nn.Module]:
  """Returns timm's class."""
  try:
    from timm.models.vision_transformer import VisionTransformer
  except RuntimeError:
    # A torchvision built for another torch does not load its C extension, and
    # then misses two operators that no ViT needs.
    library = torch.library.Library("torchvision", "FRAGMENT")
    _KEPT.append(library)
    for name in ("nms", "qnms"):
      library.define(f"{name}(Tensor a, Tensor b, float c) -> Tensor")
    from timm.models.vision_transformer import VisionTransformer
  return VisionTransformer


# Parts of timm's names -> of the names in vpt_jax.
_RENAMED = (
  (r"vit\.cls_token", "backbone.cls"),
  (r"vit\.patch_embed\.proj", "backbone.embedding"),
  (r"vit\.norm", "backbone.Transformer.encoder_norm"),
  (r"vit\.blocks\.(\d+)", r"backbone.Transformer.encoderblock_\1"),
  (r"\.norm1\.", ".LayerNorm_0."),
  (r"\.norm2\.", ".LayerNorm_1."),
  (r"\.mlp\.fc1\.", ".MlpBlock_0.Dense_0."),
  (r"\.mlp\.fc2\.", ".MlpBlock_0.Dense_1."),
  (r"\.attn\.proj\.", ".attn.out."),
  (r"\.attn\.", ".MultiHeadDotProductAttention_0."),
)


def path_of(name: str, ndim: int) -> str:
  """Returns what vpt_jax calls a tensor of `PromptedViT.state_dict()`.

  Args:
    name: in that dictionary.
    ndim: axes of the tensor: a weight of one is a norm's.
  """
  for pattern, renamed in _RENAMED:
    name = re.sub(pattern, renamed, name)
  *layers, leaf = name.split(".")
  if leaf.startswith("running_"):
    return "/".join(["batch_stats", *layers, leaf.removeprefix("running_")])
  if leaf == "weight":
    leaf = "kernel" if ndim > 1 else "scale"
  return "/".join([*layers, leaf])


def _value(
  name: str, ndim: int, take: Callable[[str], np.ndarray]
) -> np.ndarray:
  """Returns the value of a tensor in PyTorch's layout.

  Args:
    name: of the tensor.
    ndim: its axes.
    take: returns the array of a path.
  """
  if name == "vit.pos_embed":
    # timm's has a position for the class token, too.
    return np.pad(take("backbone/pos_embedding"), ((0, 0), (1, 0), (0, 0)))
  path = path_of(name, ndim)
  if "/qkv/" in path:
    return np.concatenate(
      [
        _one_of_qkv(take(path.replace("qkv", part)), ndim)
        for part in ("query", "key", "value")
      ]
    )
  array = take(path)
  if not name.endswith(".weight"):
    return array
  if array.ndim == 3:  # attention's output, [heads, d, D]
    array = array.reshape(-1, array.shape[-1])
  return array.transpose(3, 2, 0, 1) if ndim == 4 else array.T


def _one_of_qkv(array: np.ndarray, ndim: int) -> np.ndarray:
  """Returns [heads * d, D] of a kernel [D, heads, d], or [heads * d]."""
  if ndim == 2:
    return array.reshape(len(array), -1).T
  return array.reshape(-1)


class PromptedViT(nn.Module):
  """timm's ViT, a method and a head.

  Attributes:
    fused: attention by `scaled_dot_product_attention`.
  """

  def __init__(self, arrays: Arrays, method: str, dropout: float, fused: bool):
    """Makes a model of these arrays' sizes, and with their values.

    Args:
      arrays: under the names of vpt_jax.
      method: a name in `METHODS`.
      dropout: rate of every dropout of the method.
      fused: see above.

    Raises:
      ValueError: arrays that such a model does not have.
    """
    super().__init__()
    self.fused = fused
    try:
      self._build(arrays, method, dropout)
      self._fill(arrays)
    except KeyError as error:
      raise ValueError(
        f"the backbone has no {error}; the benchmark is of "
        "plain ViTs, such as vit_b16"
      ) from None

  def _build(self, arrays: Arrays, method: str, dropout: float) -> None:
    """Makes the layers."""
    embedding = arrays["backbone/embedding/kernel"]
    block = "backbone/Transformer/encoderblock_0"
    query = arrays[f"{block}/MultiHeadDotProductAttention_0/query/kernel"]
    hidden = arrays[f"{block}/MlpBlock_0/Dense_0/kernel"].shape[1]
    positions = arrays["backbone/pos_embedding"].shape[1]
    patch = len(embedding)
    width = embedding.shape[-1]
    side = round(positions**0.5)
    depth = sum(path.endswith("LayerNorm_0/scale") for path in arrays)
    # Its layers are unknown to type checkers.
    self.vit: Any = _vision_transformer()(
      img_size=side * patch,
      patch_size=patch,
      num_classes=0,
      embed_dim=width,
      num_heads=query.shape[1],
      depth=depth,
      mlp_ratio=hidden / width,
      weight_init="skip",
    )
    self.vit.requires_grad_(False)
    self.method = METHODS[method](arrays, dropout)
    self.head = self._make_head(arrays)

  def _make_head(self, arrays: Arrays) -> nn.Module:
    """Returns the head, without its values."""
    return nn.Linear(*arrays["head/kernel"].shape)

  def _fill(self, arrays: Arrays) -> None:
    """Gives the layers their values."""
    left = dict(arrays)
    values = {}
    for name, tensor in self.state_dict().items():
      if not name.endswith("num_batches_tracked"):
        value = _value(name, tensor.ndim, left.pop)
        values[name] = torch.from_numpy(np.array(value))
    self.load_state_dict(values, strict=False)
    if left:
      raise ValueError(f"a plain ViT has no {', '.join(sorted(left))}")

  def forward(self, image: torch.Tensor) -> Any:
    """Returns logits [B, K] of normalised images [B, 3, H, W]."""
    last = len(self.vit.blocks) - 1
    (x,) = self.tokens(image, (last,))
    pooled = self.vit.norm(x)[:, 0]
    return self.head(pooled.float())

  def tokens(
    self, image: torch.Tensor, blocks: tuple[int, ...]
  ) -> list[torch.Tensor]:
    """Returns the tokens [B, T, D] after some blocks.

    Args:
      image: normalised images [B, 3, H, W].
      blocks: which ones, in rising order; one may be there twice.
    """
    vit = self.vit
    patches = vit.patch_embed(image.to(vit.cls_token.dtype))
    class_token = vit.cls_token.expand(len(patches), -1, -1)
    x = torch.cat([class_token, patches], dim=1) + vit.pos_embed
    x = self.method.enter(image, x)
    out = []
    for i, block in enumerate(vit.blocks):
      x = self.method.block(i, x, self._runner(block))
      out += [x] * blocks.count(i)
    return out

  def _runner(self, block: Any) -> Callable[..., torch.Tensor]:
    """Returns (tokens, temperature) -> tokens of a block of timm."""

    def run(
      x: torch.Tensor, temperature: torch.Tensor | float = 1.0
    ) -> torch.Tensor:
      x = x + self._attention(block.attn, block.norm1(x), temperature)
      return x + block.mlp(block.norm2(x))

    return run

  def _attention(
    self,
    layer: Any,
    x: torch.Tensor,
    temperature: torch.Tensor | float,
  ) -> torch.Tensor:
    """Returns softmax(q k^T / (temperature sqrt(d))) v, projected, [B, T, D].

    Args:
      layer: timm's attention.
      x: normalised tokens [B, T, D].
      temperature: divides the scores; a tensor only if it is learned.
    """
    batch, count, width = x.shape
    qkv = layer.qkv(x).reshape(batch, count, 3, layer.num_heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, T, d]
    if not isinstance(temperature, float):
      q = q / temperature.to(q.dtype)
    if self.fused:
      mixed = F.scaled_dot_product_attention(q, k, v)
    else:
      scores = q * q.shape[-1] ** -0.5 @ k.mT
      mixed = scores.softmax(-1) @ v
    return layer.proj(mixed.transpose(1, 2).reshape(batch, count, width))
