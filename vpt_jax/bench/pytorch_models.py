"""The same models in PyTorch: a loop over the layers of timm's ViT."""

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
  try:
    from timm.models.vision_transformer import VisionTransformer
  except RuntimeError:
    # A torchvision built for another torch does not load its C extension, and
    # then misses two operators that no ViT needs.
    _KEPT.append(torch.library.Library("torchvision", "FRAGMENT"))
    for name in ("nms", "qnms"):
      _KEPT[0].define(f"{name}(Tensor a, Tensor b, float c) -> Tensor")
    from timm.models.vision_transformer import VisionTransformer
  return VisionTransformer


_TO_OURS = (
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
  """Our path of a tensor in `Peer.state_dict()` with so many axes."""
  for pattern, ours in _TO_OURS:
    name = re.sub(pattern, ours, name)
  *layers, leaf = name.split(".")
  if leaf.startswith("running_"):
    return "/".join(["batch_stats", *layers, leaf.removeprefix("running_")])
  leaf = {"weight": "kernel" if ndim > 1 else "scale"}.get(leaf, leaf)
  return "/".join([*layers, leaf])


def _value(
  name: str, ndim: int, take: Callable[[str], np.ndarray]
) -> np.ndarray:
  """The value of a tensor in PyTorch's layout; `take` gives our arrays."""
  if name == "vit.pos_embed":  # with one for the class token
    return np.pad(take("backbone/pos_embedding"), ((0, 0), (1, 0), (0, 0)))
  path = path_of(name, ndim)
  if "/qkv/" in path:
    thirds = [
      take(path.replace("qkv", part)) for part in ("query", "key", "value")
    ]
    return np.concatenate(
      [
        third.reshape(len(third), -1).T if ndim == 2 else third.reshape(-1)
        for third in thirds
      ]
    )
  array = take(path)
  if not name.endswith(".weight"):
    return array
  if array.ndim == 3:  # [heads, d, D]
    array = array.reshape(-1, array.shape[-1])
  return array.transpose(3, 2, 0, 1) if ndim == 4 else array.T


class Peer(nn.Module):
  """timm's ViT, a method and a head.

  Attributes:
    fused: attention by `scaled_dot_product_attention`.
  """

  def __init__(self, arrays: Arrays, method: str, dropout: float, fused: bool):
    """A model of these arrays' sizes, and with their values.

    Args:
      arrays: under our names.
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
    except KeyError as error:
      raise ValueError(
        f"the backbone has no {error}; the benchmark is of "
        "plain ViTs, such as vit_b16"
      ) from None

  def _build(self, arrays: Arrays, method: str, dropout: float) -> None:
    kernel = arrays["backbone/embedding/kernel"]
    block = "backbone/Transformer/encoderblock_0"
    heads = arrays[f"{block}/MultiHeadDotProductAttention_0/query/kernel"]
    hidden = arrays[f"{block}/MlpBlock_0/Dense_0/kernel"]
    side = round(arrays["backbone/pos_embedding"].shape[1] ** 0.5)
    patch, width = len(kernel), kernel.shape[-1]
    self.vit = _vision_transformer()(
      img_size=side * patch,
      patch_size=patch,
      num_classes=0,
      embed_dim=width,
      num_heads=heads.shape[1],
      depth=sum(path.endswith("LayerNorm_0/scale") for path in arrays),
      mlp_ratio=hidden.shape[1] / width,
      weight_init="skip",
    )
    self.vit.requires_grad_(False)
    self.method = METHODS[method](arrays, dropout)
    self.head = nn.Linear(*arrays["head/kernel"].shape)

    left = dict(arrays)
    self.load_state_dict(
      {
        name: torch.from_numpy(np.array(_value(name, tensor.ndim, left.pop)))
        for name, tensor in self.state_dict().items()
        if not name.endswith("num_batches_tracked")
      },
      strict=False,
    )
    if left:
      raise ValueError(f"a plain ViT has no {', '.join(sorted(left))}")

  def forward(self, image: torch.Tensor) -> torch.Tensor:
    """Normalised images [B, 3, H, W] -> logits [B, K]."""
    vit = self.vit
    x = vit.patch_embed(image.to(vit.cls_token.dtype))
    x = torch.cat([vit.cls_token.expand(len(x), -1, -1), x], 1) + vit.pos_embed
    x = self.method.enter(image, x)
    for i, block in enumerate(vit.blocks):
      run = lambda x, temperature=1.0, block=block: self._block(
        block, x, temperature
      )
      x = self.method.block(i, x, run)
    return self.head(vit.norm(x)[:, 0].float())

  def _block(
    self, block: nn.Module, x: torch.Tensor, temperature: torch.Tensor | float
  ) -> torch.Tensor:
    attn, (batch, count, width) = block.attn, x.shape
    q, k, v = (
      attn.qkv(block.norm1(x))
      .reshape(batch, count, 3, attn.num_heads, -1)
      .permute(2, 0, 3, 1, 4)
    )
    if torch.is_tensor(temperature):
      q = q / temperature.to(q.dtype)
    if self.fused:
      y = F.scaled_dot_product_attention(q, k, v)
    else:
      y = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1) @ v
    x = x + attn.proj(y.transpose(1, 2).reshape(batch, count, width))
    return x + block.mlp(block.norm2(x))
