"""Refuses by name the networks that would be run as another one.

Each has names of its own in its files, whatever the library that wrote them.
None of these arrays may be left out: they all change what the network computes.
"""

from collections.abc import Collection
import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Family:
  """A kind of file that is refused.

  Attributes:
    name: what it is.
    signs: regular expressions; of each one a name in the file has it.
    advice: what to do.
  """

  name: str
  signs: tuple[str, ...]
  advice: str = "choose another backbone; this one is not supported yet"


_ATTENTION_POOL = r"(attn_pool|head)\.(latent|probe)$|MAPHead_0/"
_LAYER_SCALE = (
  r"\.(ls[12]\.gamma|gamma_[12]|layer_scale[12]\.lambda1|lambda_[12])$"
)
_REGISTERS = r"(^|[./])(register_tokens|reg_token|storage_tokens)$"
_CLASS = r"(^|[./])(cls_token|class_embedding|cls)$"
_SWIGLU = r"\.mlp\.(w12|w3|weights_in|fc1_g|gate_proj|w1)\."
_HALF_BIAS = r"\.(q_bias|query\.bias|q_proj\.bias)$"

# In order of trial; a DINOv3, say, has layer scale as DINOv2 does.
FAMILIES = (
  Family(
    "a LoRA or adapter file of PEFT",
    (r"(^|[./])(base_layer|lora_[A-Za-z]\w*|modules_to_save)(\.|$)",),
    "merge it into its base model first (PEFT: merge_and_unload) and save that",
  ),
  Family(
    "DINOv3",
    (
      r"(^|[./])(storage_tokens|rope_embed\.periods)$|"
      r"^(model\.)?layer\.\d+\.layer_scale1\.lambda1$|"
      r"^embeddings\.patch_embeddings\.weight$",
      _LAYER_SCALE + "|" + _REGISTERS,
    ),
  ),
  Family(
    "BEiT",
    (_LAYER_SCALE, r"relative_position_bias_table$"),
  ),
  Family("BEiT", (_HALF_BIAS, r"relative_position_bias_table$", _CLASS)),
  Family("DINOv3", (_REGISTERS, r"\.gamma_1$")),
  Family("EVA-02", (r"\.attn\.q_bias$", r"(^|\.)pos_embed$")),
  Family(
    "EVA-02",
    (r"(^|\.)blocks\.\d+\.(mlp\.(fc1_g|norm)|attn\.(q_proj|norm))\.",),
  ),
  Family("DINOv2", (_REGISTERS,)),
  Family("DINOv2", (_LAYER_SCALE, r"(^|[./])mask_token$")),
  Family("DINOv2", (_LAYER_SCALE, _SWIGLU)),
  Family(
    "PE-core, whose rotary positions are in no array",
    (_ATTENTION_POOL, r"(norm_pre|ln_pre)\."),
  ),
  Family(
    "a ViT with layer scale (DINOv2, DeiT III)",
    (_LAYER_SCALE,),
  ),
  Family(
    "a distilled DeiT, whose second class token is not supported",
    (r"(^|[./])(dist_token|distillation_token)$",),
    "choose the one without distillation",
  ),
)

_POOLED = Family(
  "SigLIP or another model that pools by attention",
  (_ATTENTION_POOL,),
  "it is not supported yet. To train on the mean of its patches in place of "
  "that pooling, set config.pool=img",
)


def refuse(names: Collection[str], may_pool: bool) -> None:
  """Raises ValueError for a file of a family that cannot be run.

  Args:
    names: in the file, of the network alone.
    may_pool: the user chose how features are pooled, so that the file's own
      attention pooling may be left out.
  """
  families = FAMILIES if may_pool else (*FAMILIES, _POOLED)
  for family in families:
    found = []
    for sign in family.signs:
      examples = [name for name in sorted(names) if re.search(sign, name)]
      found.extend(examples[:1])
    if len(found) == len(family.signs):
      raise ValueError(
        f"it is {family.name} ({', '.join(found)} in it); {family.advice}"
      )
