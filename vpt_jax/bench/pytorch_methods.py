"""Defines prompt methods in PyTorch, from their papers' formulas.

Prompts are tokens of every block, as in the published code: a deep prompt goes
through attention and MLP, and is replaced before the next block. Parameters
have the names that they have in vpt_jax.

In the shapes B is images, N patches, T tokens, P prompts, D width.
"""

from collections.abc import Callable
import itertools

import numpy as np
import torch
from torch import nn
import torch.nn.functional as F

Arrays = dict[str, np.ndarray]  # {path: values}, as vpt_jax names them
Run = Callable[..., torch.Tensor]


def _insert(
  x: torch.Tensor, prompt: torch.Tensor, old: int = 0
) -> torch.Tensor:
  """Returns tokens with prompts after the class token.

  Args:
    x: tokens [B, T, D].
    prompt: [B or 1, P, D].
    old: prompts that are there, whose place they take.
  """
  prompt = prompt.expand(len(x), -1, -1).to(x.dtype)
  class_token = x[:, :1]
  patches = x[:, 1 + old :]
  return torch.cat([class_token, prompt, patches], dim=1)


class Linear(nn.Module):
  """No prompts. A method edits the tokens [B, T, D] around and in blocks."""

  def __init__(self, arrays: Arrays, dropout: float):
    """Parameters of these arrays' shapes, to be filled with their values."""
    super().__init__()
    self.drop = nn.Dropout(dropout)
    if "method/prompt" in arrays:
      self.prompt = nn.Parameter(torch.zeros(arrays["method/prompt"].shape))

  def dropped(self, i: int, x: torch.Tensor) -> torch.Tensor:
    """Returns the prompts of block i, a dropout of its own for every image."""
    prompts = self.prompt[i].expand(len(x), -1, -1)
    return self.drop(prompts)

  def enter(self, image: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Returns the tokens of the first block.

    Args:
      image: [B, 3, H, W].
      x: what the embedding gives, [B, T, D].
    """
    del image
    return x

  def block(self, i: int, x: torch.Tensor, run: Run) -> torch.Tensor:
    """Returns the tokens after block i.

    Args:
      i: number of the block.
      x: tokens before it, [B, T, D].
      run: (tokens, temperature of attention) -> tokens, the backbone's block.
    """
    del i
    return run(x)

  def constrain(self) -> None:
    """Projects the parameters after an update."""


class Shallow(Linear):
  """VPT-shallow: prompts enter once and are carried on."""

  def enter(self, image: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Returns the tokens with the prompts."""
    del image
    return _insert(x, self.dropped(0, x))


class Deep(Shallow):
  """VPT-deep: every block has its own prompts in place of the last ones."""

  def block(self, i: int, x: torch.Tensor, run: Run) -> torch.Tensor:
    """Replaces the prompts first; those of block 0 have entered."""
    if i > 0:
      count = self.prompt.shape[1]
      x = _insert(x, self.dropped(i, x), old=count)
    return run(x)


class Generator(nn.Module):
  """VAPT's prompts of a block, before the projector.

  G = token-wise(conv(LayerNorm(patches)))
  """

  def __init__(self, arrays: Arrays, prefix: str, width: int, dropout: float):
    """Parameters of the shapes of `arrays` below `prefix`."""
    super().__init__()
    self.norm = nn.LayerNorm(width)
    self.kernel = nn.Parameter(torch.zeros(arrays[f"{prefix}/kernel"].shape))
    self.channels = nn.Dropout2d(dropout)
    self.tokens = nn.Linear(*arrays[f"{prefix}/tokens/kernel"].shape)

  def forward(self, patches: torch.Tensor) -> torch.Tensor:
    """Returns prompts [B, P, D] from patches [B, N, D]."""
    batch, count, width = patches.shape
    side = round(count**0.5)
    x = self.norm(patches.float())
    grid = x.mT.reshape(batch, width, side, side)
    # One kernel for all channels, by a grouped convolution as published.
    kernel = self.kernel.permute(2, 0, 1)[:, None]
    kernel = kernel.expand(width, -1, -1, -1)
    convolved = F.conv2d(grid, kernel, groups=width)
    channels = self.channels(convolved).flatten(2)
    return self.tokens(channels).mT


class Projector(nn.Module):
  """x + W2 relu(W1 x)."""

  def __init__(self, width: int, hidden: int, dropout: float):
    """Takes W1 as [width, hidden], W2 as [hidden, width]."""
    super().__init__()
    self.down = nn.Linear(width, hidden, bias=False)
    self.up = nn.Linear(hidden, width, bias=False)
    self.drop = nn.Dropout(dropout)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """Returns projected prompts [B, P, D]."""
    hidden = self.drop(F.relu(self.down(x)))
    return x + self.up(hidden)


class VAPT(Shallow):
  """VAPT: the first block's prompts are learned, the others' generated.

  P = G + W2 relu(W1 G),   G = token-wise(conv(LayerNorm(patches)))
  """

  def __init__(self, arrays: Arrays, dropout: float):
    """Makes a generator for each block but the first, a projector for all."""
    super().__init__(arrays, dropout)
    width, hidden = arrays["method/project_shared/down/kernel"].shape
    self.project_shared = Projector(width, hidden, dropout)
    for i in itertools.count(1):
      prefix = f"method/generator_{i}"
      if f"{prefix}/kernel" not in arrays:
        break
      generator = Generator(arrays, prefix, width, dropout)
      self.add_module(f"generator_{i}", generator)

  def block(self, i: int, x: torch.Tensor, run: Run) -> torch.Tensor:
    """Generates prompts of the patches first, but for block 0."""
    if i > 0:
      count = self.prompt.shape[1]
      patches = x[:, 1 + count :]
      generator = getattr(self, f"generator_{i}")
      x = _insert(x, self.project_shared(generator(patches)), old=count)
    return run(x)


class Gated(Shallow):
  """Gated Prompt Tuning: z = g z_out + (1 - g) z_in but in the last block."""

  RANGE = (0.01, 10.0)  # of temperatures

  def __init__(self, arrays: Arrays, dropout: float):
    """Makes a gate for each block but the last, a temperature for each."""
    super().__init__(arrays, dropout)
    gates = arrays["method/gate_logit"].shape
    temperatures = arrays["method/temperature"].shape
    self.gate_logit = nn.Parameter(torch.zeros(gates))
    self.temperature = nn.Parameter(torch.ones(temperatures))

  def block(self, i: int, x: torch.Tensor, run: Run) -> torch.Tensor:
    """Mixes the prompts before and after the block by its gate."""
    out = run(x, self.temperature[i])
    if i == len(self.gate_logit):
      return out
    count = self.prompt.shape[1]
    before = x[:, 1 : 1 + count]
    after = out[:, 1 : 1 + count]
    gate = torch.sigmoid(self.gate_logit[i]).to(x.dtype)
    return _insert(out, gate * after + (1 - gate) * before, old=count)

  def constrain(self) -> None:
    """Keeps the temperatures in their range."""
    with torch.no_grad():
      self.temperature.clamp_(*self.RANGE)


def _conv_3x3(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
  return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


class Residual(nn.Module):
  """A block of the ResNet: two 3 x 3 convolutions and a shortcut."""

  def __init__(self, inputs: int, width: int):
    """Halves the image if it changes the number of channels."""
    super().__init__()
    stride = 1 if inputs == width else 2
    self.conv_0 = _conv_3x3(inputs, width, stride)
    self.norm_0 = nn.BatchNorm2d(width)
    self.conv_1 = _conv_3x3(width, width, 1)
    self.norm_1 = nn.BatchNorm2d(width)
    self.shortcut: nn.Module = nn.Identity()
    if stride == 2:
      self.shortcut = nn.Conv2d(inputs, width, 1, stride)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """Returns [B, width, H', W'] from [B, inputs, H, W]."""
    y = F.relu(self.norm_0(self.conv_0(x)))
    y = self.norm_1(self.conv_1(y))
    return F.relu(y + self.shortcut(x))


class ResNet10(nn.Module):
  """The network of PGN: images [B, 3, H, W] -> [B, features]."""

  WIDTHS = (16, 16, 32, 64, 128)  # of the stem, then of each block

  def __init__(self, features: int):
    """Makes a stem, four blocks, a dense layer of the mean over places."""
    super().__init__()
    self.stem = _conv_3x3(3, self.WIDTHS[0], 2)
    self.stem_norm = nn.BatchNorm2d(self.WIDTHS[0])
    self.blocks = len(self.WIDTHS) - 1
    for i, (inputs, width) in enumerate(itertools.pairwise(self.WIDTHS)):
      self.add_module(f"block_{i}", Residual(inputs, width))
    self.out = nn.Linear(self.WIDTHS[-1], features)

  def forward(self, image: torch.Tensor) -> torch.Tensor:
    """Returns features [B, F] of images [B, 3, H, W]."""
    x = F.relu(self.stem_norm(self.stem(image)))
    x = F.max_pool2d(x, 3, 2, padding=1)
    for i in range(self.blocks):
      x = getattr(self, f"block_{i}")(x)
    return self.out(x.mean((2, 3)))


class PGN(Linear):
  """PGN: prompts at the end, each a mixture of a library's vectors."""

  def __init__(self, arrays: Arrays, dropout: float):
    """Takes the library [L, D], and the network that mixes its vectors."""
    super().__init__(arrays, dropout)
    self.library = nn.Parameter(torch.zeros(arrays["method/library"].shape))
    self.generator = ResNet10(len(arrays["method/generator/out/bias"]))

  def enter(self, image: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Returns the tokens with prompts made for each image."""
    logits = self.generator(image).unflatten(1, (-1, len(self.library)))
    prompts = logits.softmax(-1) @ self.library
    return torch.cat([x, prompts.to(x.dtype)], dim=1)


METHODS: dict[str, type[Linear]] = {
  "linear": Linear,
  "vpt_shallow": Shallow,
  "vpt_deep": Deep,
  "vapt": VAPT,
  "gated": Gated,
  "pgn": PGN,
}
