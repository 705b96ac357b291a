"""Prompt methods in PyTorch, from their papers' formulas.

Prompts are tokens of every block, as in the published code: a deep prompt goes
through attention and MLP, and is replaced before the next block. Parameters
have the names that they have here.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
import torch.nn.functional as F

Arrays = dict[str, np.ndarray]
Run = Callable[..., torch.Tensor]


def _insert(
  x: torch.Tensor, prompt: torch.Tensor, old: int = 0
) -> torch.Tensor:
  """Prompts after the class token, in place of `old` ones."""
  prompt = prompt.expand(len(x), -1, -1).to(x.dtype)
  return torch.cat([x[:, :1], prompt, x[:, 1 + old :]], dim=1)


class Linear(nn.Module):
  """No prompts. A method edits the tokens [B, T, D] around and in blocks."""

  def __init__(self, arrays: Arrays, dropout: float):
    super().__init__()
    self.drop = nn.Dropout(dropout)
    if "method/prompt" in arrays:
      self.prompt = nn.Parameter(torch.zeros(arrays["method/prompt"].shape))

  def dropped(self, i: int, x: torch.Tensor) -> torch.Tensor:
    """Prompts of block i, with a dropout of its own for every image."""
    return self.drop(self.prompt[i].expand(len(x), -1, -1))

  def enter(self, image: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Edits what the embedding gives."""
    return x

  def block(self, i: int, x: torch.Tensor, run: Run) -> torch.Tensor:
    """Block i: `run(x, temperature)` is the backbone's."""
    return run(x)

  def constrain(self) -> None:
    """Projects the parameters after an update."""


class Shallow(Linear):
  """VPT-shallow: prompts enter once and are carried on."""

  def enter(self, image, x):
    return _insert(x, self.dropped(0, x))


class Deep(Shallow):
  """VPT-deep: every block has its own prompts in place of the last ones."""

  def block(self, i, x, run):
    if i:
      x = _insert(x, self.dropped(i, x), self.prompt.shape[1])
    return run(x)


class Generator(nn.Module):
  """VAPT's prompts of a block, before the projector."""

  def __init__(self, arrays: Arrays, prefix: str, width: int, dropout: float):
    super().__init__()
    self.norm = nn.LayerNorm(width)
    self.kernel = nn.Parameter(torch.zeros(arrays[f"{prefix}/kernel"].shape))
    self.channels = nn.Dropout2d(dropout)
    self.tokens = nn.Linear(*arrays[f"{prefix}/tokens/kernel"].shape)

  def forward(self, patches: torch.Tensor) -> torch.Tensor:
    """[B, N, D] -> [B, P, D]."""
    batch, count, width = patches.shape
    side = round(count**0.5)
    x = self.norm(patches.float()).mT.reshape(batch, width, side, side)
    # One kernel for all channels, by a grouped convolution as published.
    kernel = self.kernel.permute(2, 0, 1)[:, None].expand(width, -1, -1, -1)
    x = self.channels(F.conv2d(x, kernel, groups=width))
    return self.tokens(x.flatten(2)).mT


class Projector(nn.Module):
  """x + W2 relu(W1 x)."""

  def __init__(self, width: int, hidden: int, dropout: float):
    super().__init__()
    self.down = nn.Linear(width, hidden, bias=False)
    self.up = nn.Linear(hidden, width, bias=False)
    self.drop = nn.Dropout(dropout)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return x + self.up(self.drop(F.relu(self.down(x))))


class VAPT(Shallow):
  """VAPT: the first block's prompts are learned, the others' generated.

  P = G + W2 relu(W1 G),   G = token-wise(conv(LayerNorm(patches)))
  """

  def __init__(self, arrays, dropout):
    super().__init__(arrays, dropout)
    width, hidden = arrays["method/project_shared/down/kernel"].shape
    self.project_shared = Projector(width, hidden, dropout)
    i = 1
    while f"method/generator_{i}/kernel" in arrays:
      setattr(
        self,
        f"generator_{i}",
        Generator(arrays, f"method/generator_{i}", width, dropout),
      )
      i += 1

  def block(self, i, x, run):
    if i:
      old = self.prompt.shape[1]
      generate = getattr(self, f"generator_{i}")
      x = _insert(x, self.project_shared(generate(x[:, 1 + old :])), old)
    return run(x)


class Gated(Shallow):
  """Gated Prompt Tuning: z = g z_out + (1 - g) z_in but in the last block."""

  RANGE = (0.01, 10.0)  # of temperatures

  def __init__(self, arrays, dropout):
    super().__init__(arrays, dropout)
    self.gate_logit = nn.Parameter(
      torch.zeros(arrays["method/gate_logit"].shape)
    )
    self.temperature = nn.Parameter(
      torch.ones(arrays["method/temperature"].shape)
    )

  def block(self, i, x, run):
    out, p = run(x, self.temperature[i]), self.prompt.shape[1]
    if i == len(self.gate_logit):
      return out
    g = torch.sigmoid(self.gate_logit[i]).to(x.dtype)
    return _insert(out, g * out[:, 1 : 1 + p] + (1 - g) * x[:, 1 : 1 + p], p)

  def constrain(self):
    with torch.no_grad():
      self.temperature.clamp_(*self.RANGE)


class Residual(nn.Module):
  """A block of the ResNet: two 3 x 3 convolutions and a shortcut."""

  def __init__(self, inputs: int, width: int):
    super().__init__()
    stride = 1 if inputs == width else 2
    conv = lambda n, stride: nn.Conv2d(n, width, 3, stride, 1, bias=False)
    self.conv_0, self.norm_0 = conv(inputs, stride), nn.BatchNorm2d(width)
    self.conv_1, self.norm_1 = conv(width, 1), nn.BatchNorm2d(width)
    self.shortcut = (
      nn.Identity() if stride == 1 else nn.Conv2d(inputs, width, 1, stride)
    )

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    y = F.relu(self.norm_0(self.conv_0(x)))
    return F.relu(self.norm_1(self.conv_1(y)) + self.shortcut(x))


class ResNet10(nn.Module):
  """Images [B, 3, H, W] -> [B, features]."""

  WIDTHS = (16, 16, 32, 64, 128)

  def __init__(self, features: int):
    super().__init__()
    self.stem = nn.Conv2d(3, self.WIDTHS[0], 3, 2, 1, bias=False)
    self.stem_norm = nn.BatchNorm2d(self.WIDTHS[0])
    for i, sizes in enumerate(zip(self.WIDTHS, self.WIDTHS[1:])):
      setattr(self, f"block_{i}", Residual(*sizes))
    self.out = nn.Linear(self.WIDTHS[-1], features)

  def forward(self, image: torch.Tensor) -> torch.Tensor:
    x = F.max_pool2d(F.relu(self.stem_norm(self.stem(image))), 3, 2, 1)
    for i in range(len(self.WIDTHS) - 1):
      x = getattr(self, f"block_{i}")(x)
    return self.out(x.mean((2, 3)))


class PGN(Linear):
  """PGN: prompts at the end, each a mixture of a library's vectors."""

  def __init__(self, arrays, dropout):
    super().__init__(arrays, dropout)
    self.library = nn.Parameter(torch.zeros(arrays["method/library"].shape))
    self.generator = ResNet10(len(arrays["method/generator/out/bias"]))

  def enter(self, image, x):
    logits = self.generator(image).unflatten(1, (-1, len(self.library)))
    return torch.cat([x, (logits.softmax(-1) @ self.library).to(x.dtype)], 1)


METHODS: dict[str, type[Linear]] = {
  "linear": Linear,
  "vpt_shallow": Shallow,
  "vpt_deep": Deep,
  "vapt": VAPT,
  "gated": Gated,
  "pgn": PGN,
}
