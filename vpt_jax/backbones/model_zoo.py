"""Lists the pretrained models that a config can name.

Checksums are what the publishers state: whole, or the first digits that they
put into a README or a file's name; "" where they state none. Licences are those
of the weights, or of the repository that publishes them ("code: ...") where
nothing is said of the weights.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import flax.linen as nn

from vpt_jax.backbones.swin import Swin
from vpt_jax.backbones.vit import DinoHead, ViT

_FACEBOOK = "https://dl.fbaipublicfiles.com/"


@dataclasses.dataclass(frozen=True)
class Entry:
  """One pretrained model, or an architecture alone.

  Attributes:
    arch: attributes of the module (`vit.ViT`, `swin.Swin`) but its image size.
    module: the class of the backbone.
    image_size: side of the images that it was trained on.
    url: where its checkpoint is, "" if only a local file will do, or
      "package:NAME" for a file inside this package.
    checksum: `ALGORITHM:HEX` of that file; HEX may be its first digits where
      no more was published.
    licence: of the weights, "" for an architecture alone.
    projection: makes what may follow the pooled feature
      (`config.backbone.projection`).
    text: sizes of the text tower beside it (`clip.TextTower`).
    keeps_gelu: no published code runs it with another GELU than it was trained
      with, so that a new run does not either (see `backbone.gelu`).
  """

  arch: dict[str, Any]
  module: type[ViT] | type[Swin] = ViT
  image_size: int = 224
  url: str = ""
  checksum: str = ""
  licence: str = ""
  projection: Callable[[], nn.Module] | None = None
  text: dict[str, int] | None = None
  keeps_gelu: bool = False

  @property
  def normalize(self) -> str:
    """Mean and std that it was trained with, see `data/transforms`."""
    return self.arch.get("normalize", self.module.normalize)


# Of a ViT: (width, depth, width of the MLP's hidden layer, heads).
_VIT_SIZES = {
  "mini": (96, 4, 384, 3),
  "ti": (192, 12, 768, 3),
  "s": (384, 12, 1536, 6),
  "b": (768, 12, 3072, 12),
  "l": (1024, 24, 4096, 16),
  "h": (1280, 32, 5120, 16),
  "g": (1408, 40, 6144, 16),
  "so400m": (1152, 27, 4304, 16),
}
# Of a Swin: (width of the first stage, blocks of every stage).
_SWIN_SIZES = {
  "t": (96, (2, 2, 6, 2)),
  "s": (96, (2, 2, 18, 2)),
  "b": (128, (2, 2, 18, 2)),
}


def _vit(size: str, patch: int, **more: Any) -> dict[str, Any]:
  """Returns attributes of a `ViT`; `more` adds to them or replaces them."""
  width, depth, mlp_dim, num_heads = _VIT_SIZES[size]
  return {
    "patch_size": patch,
    "width": width,
    "depth": depth,
    "mlp_dim": mlp_dim,
    "num_heads": num_heads,
    **more,
  }


def _google(
  size: str,
  patch: int,
  file: str = "",
  checksum: str = "",
  folder: str = "imagenet21k",
) -> Entry:
  """Returns a model trained in JAX: tanh GELU, pixels in [-1, 1]."""
  url = f"https://storage.googleapis.com/vit_models/{folder}/{file}.npz"
  return Entry(
    _vit(size, patch, normalize="half"),
    url=url if file else "",
    checksum=checksum,
    licence="Apache-2.0" if file else "",
  )


def _augreg(size: str, patch: int, recipe: str) -> Entry:
  """Returns a model of AugReg, by the recipe in its file's name."""
  return _google(
    size,
    patch,
    f"{size.capitalize()}_{patch}-i21k-300ep-lr_0.001-{recipe}-do_0.0-sd_0.0",
    folder="augreg",
  )


def _torch(
  size: str,
  patch: int,
  url: str,
  checksum: str,
  licence: str,
  projection: Callable[[], nn.Module] | None = None,
  image_size: int = 224,
  **more: Any,
) -> Entry:
  """Returns a model trained in PyTorch: exact GELU, ImageNet's mean, std."""
  return Entry(
    _vit(size, patch, gelu="exact", **more),
    image_size=image_size,
    url=url,
    checksum=checksum,
    licence=licence,
    projection=projection,
  )


def _mae(size: str, patch: int, file: str, checksum: str) -> Entry:
  """Returns MAE: the mean of patches and prompts, then a fresh norm, as VPT."""
  return _torch(
    size,
    patch,
    f"{_FACEBOOK}mae/pretrain/mae_pretrain_vit_{file}.pth",
    checksum,
    "CC-BY-NC-4.0",
    pool="imgprompt",
    norm_order="fresh",
  )


def _moco(size: str, url: str, checksum: str = "") -> Entry:
  """Returns MoCo v3: sin-cos positions, 12 heads at every width."""
  return _torch(
    size,
    16,
    f"{_FACEBOOK}moco-v3/{url}",
    checksum,
    "CC-BY-NC-4.0",
    num_heads=12,
    resize="sincos",
  )


def _dino(size: str, patch: int, name: str) -> Entry:
  """Returns DINO, with its projection head."""
  return _torch(
    size,
    patch,
    f"{_FACEBOOK}dino/dino_{name}_pretrain/dino_{name}_pretrain.pth",
    "",
    "Apache-2.0",
    resize="bicubic",
    projection=DinoHead,
  )


def _deit(size: str, file: str, prefix: str, image_size: int = 224) -> Entry:
  """Returns DeiT; the file's name ends with the first digits of its sha256."""
  file = f"deit_{file}_patch16_{image_size}-{prefix}.pth"
  return _torch(
    size,
    16,
    f"{_FACEBOOK}deit/{file}",
    f"sha256:{prefix}",
    "Apache-2.0",
    image_size=image_size,
  )


def _clip(
  size: str, patch: int, name: str, sha256: str, image_size: int = 224
) -> Entry:
  """Returns CLIP's visual tower, its projection and its text tower's sizes."""
  text_width, text_heads = (768, 12) if size == "l" else (512, 8)

  def projection() -> nn.Module:
    return nn.Dense(text_width, use_bias=False)

  return Entry(
    _vit(
      size,
      patch,
      gelu="quick",
      eps=1e-5,
      normalize="clip",
      patch_bias=False,
      pre_norm=True,
    ),
    image_size=image_size,
    url=f"https://openaipublic.azureedge.net/clip/models/{sha256}/{name}.pt",
    checksum=f"sha256:{sha256}",
    licence="code: MIT",
    projection=projection,
    text={
      "width": text_width,
      "depth": 12,
      "num_heads": text_heads,
      "output_dim": text_width,
    },
  )


def _torchvision(size: str, patch: int, prefix: str) -> Entry:
  """Returns a model of torchvision, supervised on ImageNet-1k."""
  return _torch(
    size,
    patch,
    f"https://download.pytorch.org/models/vit_{size}_{patch}-{prefix}.pth",
    f"sha256:{prefix}",
    "code: BSD-3-Clause",
  )


def _swin(
  size: str,
  file: str,
  checksum: str = "",
  window: int = 7,
  image_size: int = 224,
) -> Entry:
  """Returns a published Swin."""
  width, depths = _SWIN_SIZES[size]
  heads = width // 32
  return Entry(
    {
      "width": width,
      "depths": depths,
      "window": window,
      "num_heads": (heads, 2 * heads, 4 * heads, 8 * heads),
    },
    module=Swin,
    image_size=image_size,
    url="https://github.com/SwinTransformer/storage/releases/"
    f"download/v1.0.0/{file}.pth",
    checksum=checksum,
    licence="code: MIT",
  )


BACKBONES: dict[str, Entry] = {
  # Supervised on ImageNet-21k (Dosovitskiy et al. 2021). The first digits of
  # the md5 are all that VPT's README publishes.
  "vit_b16_in21k": _google("b", 16, "ViT-B_16", "md5:d9715d"),
  "vit_b32_in21k": _google("b", 32, "ViT-B_32"),
  "vit_l16_in21k": _google("l", 16, "ViT-L_16"),
  "vit_l32_in21k": _google("l", 32, "ViT-L_32"),
  "vit_h14_in21k": _google("h", 14, "ViT-H_14"),
  # The same with more regularisation (AugReg, Steiner et al. 2021, arXiv
  # 2106.10270): the files that its README recommends.
  "augreg_ti16": _augreg("ti", 16, "aug_none-wd_0.03"),
  "augreg_s16": _augreg("s", 16, "aug_light1-wd_0.03"),
  "augreg_s32": _augreg("s", 32, "aug_none-wd_0.1"),
  "augreg_b16": _augreg("b", 16, "aug_medium1-wd_0.1"),
  "augreg_b32": _augreg("b", 32, "aug_light1-wd_0.1"),
  "augreg_l16": _augreg("l", 16, "aug_strong1-wd_0.1"),
  # MAE (He et al. 2022, arXiv 2111.06377).
  "mae_b16": _mae("b", 16, "base", "md5:8cad7c"),
  "mae_l16": _mae("l", 16, "large", "md5:b8b06e"),
  "mae_h14": _mae("h", 14, "huge", "md5:9bdbb0"),
  # MoCo v3 (Chen et al. 2021, arXiv 2104.02057): VPT takes the encoder of the
  # linear evaluation, Gated Prompt Tuning that of the pretraining.
  "mocov3_b16": _moco(
    "b", "vit-b-300ep/linear-vit-b-300ep.pth.tar", "md5:8f39ce"
  ),
  "mocov3_b16_pretrain": _moco("b", "vit-b-300ep/vit-b-300ep.pth.tar"),
  "mocov3_s16": _moco("s", "vit-s-300ep/linear-vit-s-300ep.pth.tar"),
  # DINO (Caron et al. 2021, arXiv 2104.14294).
  "dino_s16": _dino("s", 16, "deitsmall16"),
  "dino_s8": _dino("s", 8, "deitsmall8"),
  "dino_b16": _dino("b", 16, "vitbase16"),
  "dino_b8": _dino("b", 8, "vitbase8"),
  # CLIP (Radford et al. 2021, arXiv 2103.00020).
  "clip_b32": _clip(
    "b",
    32,
    "ViT-B-32",
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
  ),
  "clip_b16": _clip(
    "b",
    16,
    "ViT-B-16",
    "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
  ),
  "clip_l14": _clip(
    "l",
    14,
    "ViT-L-14",
    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
  ),
  "clip_l14_336": _clip(
    "l",
    14,
    "ViT-L-14-336px",
    "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
    336,
  ),
  # Supervised on ImageNet-1k: torchvision, DeiT (arXiv 2012.12877).
  "vit_b32_in1k": _torchvision("b", 32, "d86f8d99"),
  "vit_b16_in1k": _torchvision("b", 16, "c867db91"),
  "vit_l16_in1k": _torchvision("l", 16, "852ce7e3"),
  "deit_ti16": _deit("ti", "tiny", "a1311bcf"),
  "deit_s16": _deit("s", "small", "cd65a155"),
  "deit_b16": _deit("b", "base", "b5f2ef4d"),
  "deit_b16_384": _deit("b", "base", "8de9b5d1", image_size=384),
  # Swin (Liu et al. 2021, arXiv 2103.14030).
  "swin_t": _swin("t", "swin_tiny_patch4_window7_224"),
  "swin_s": _swin("s", "swin_small_patch4_window7_224"),
  "swin_b": _swin("b", "swin_base_patch4_window7_224"),
  "swin_b_in21k": _swin("b", "swin_base_patch4_window7_224_22k", "md5:bf9cc1"),
  "swin_b_in21k_384": _swin(
    "b", "swin_base_patch4_window12_384_22k", window=12, image_size=384
  ),
  # Embedded in the package, see assets/README.md.
  "vit_mini4_cifar10": Entry(
    _vit("mini", 4, normalize="half"),
    image_size=32,
    url="package:vit_mini4_cifar10.npz",
    checksum="sha256:85f59192cfd6862e3aed7e1c86307acd"
    "55b07cc9fece6999139ec6f699130eb4",
    licence="Apache-2.0",
  ),
  # Architectures alone; config.backbone.checkpoint names a file or address.
  "vit_mini4": Entry(_vit("mini", 4, normalize="half"), image_size=32),
  "vit_ti16": _google("ti", 16),
  "vit_s16": _google("s", 16),
  "vit_s32": _google("s", 32),
  "vit_b16": _google("b", 16),
  "vit_b32": _google("b", 32),
  "vit_l16": _google("l", 16),
  "vit_h14": _google("h", 14),
  "vit_g14": _google("g", 14),
  # SigLIP (Zhai et al. 2023, arXiv 2303.15343): no class token. Its attention
  # pooling is not supported: it is refused unless the user sets config.pool.
  "siglip_so400m14": Entry(
    _vit("so400m", 14, normalize="half", num_cls=0, pool="img"),
    url="https://storage.googleapis.com/big_vision/siglip/"
    "webli_en_so400m_224_57633886.npz",
    licence="Apache-2.0",
    keeps_gelu=True,
  ),
  "vit_so400m14": Entry(
    _vit("so400m", 14, normalize="half", num_cls=0, pool="img")
  ),
}
