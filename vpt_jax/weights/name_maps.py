"""Defines the names of parameters in published checkpoints and here.

Ours are big_vision's. A layout is an ordered table of rules: (regular
expression over a module's or tensor's name, our name, kind). A name that no
rule knows stays as it is, for `load.restore` to refuse; `translate.py` applies
the rules. Kinds are

  norm, dense, conv   modules with a `weight` and a `bias`
  qkv                 a fused dense module: query, key and value in this order
  array               a tensor that is taken as it is
  ignore              a tensor that changes no output; in place of our name
                      stands the reason
  pooling             a tensor of a network's own pooling, ignored only where
                      the user chose another one

An array that changes what a backbone computes is never on the list of those
that are ignored: it has a name of ours, or the file is refused.

The backbone's own parameters come out without a prefix; beside them may be
`head/` (a classifier), `projection/` (CLIP, DINO), `text/` (CLIP's text tower)
and `logit_scale`.
"""

Rule = tuple[str, str, str]

EXTRAS = ("head/", "projection/", "text/", "logit_scale")

# Why arrays are ignored.
_OF_WINDOWS = "made anew from the windows' sizes"
_OF_PRETRAINING = "of the pretraining alone"
_OTHER_POOLING = "features are pooled in another way"

# First part of the name of what stands behind a backbone. What no rule takes of
# these is left out, with a line in the log.
HEADS = (
  r"(?:\w+_)?(?:heads?|classifier|fc|linear|neck|projector|predictor|"
  r"last_layer)(?:_\w+)?"
)
# What pools by itself is no head: it changes the feature.
POOLING = r"(?:.*[./])?(?:probe|latent|attention|attn|q|kv)(?:[./].*)?"
# The classifier itself, a dense module, where the file has one of these.
CLASSIFIER = r"(?:heads?|classifier|fc)(?:\.(?:head|fc|classifier))?(?:\.\d+)?"
# First part of the name of what stands beside a backbone: other networks, and
# what only training needs.
BESIDE = (
  r"(?:\w+_)?(?:momentum|ema|student|optim|opt|optimizer|scheduler|scaler|"
  r"loss|criterion|queue|center|decoder)(?:_\w+)?|"
  r"trace|mu|nu|count|hyperparams|"  # of optax's states
  r"(?:\w+_)?(?:metrics?|acc|accuracy|auc)|n_averaged|"
  r"epochs?|steps?|global_step|iter|iteration|rng\w*|best_\w+|"
  r"text\w*|txt|t|b|logit_scale|logit_bias|token_embedding|"
  r"positional_embedding|transformer|ln_final"
)
# Parts of a name that only wrap others.
WRAPPERS = ("module", "model", "state_dict", "params", "net", "network")

_BLOCK = r"Transformer/encoderblock_\1/"
_ATTENTION = _BLOCK + "MultiHeadDotProductAttention_0/"
_MLP = _BLOCK + "MlpBlock_0/Dense_"


def _blocks(
  prefix: str, norms: tuple[str, str], mlp: tuple[str, str], to: str = ""
) -> tuple[Rule, ...]:
  """Returns rules that PyTorch's layouts share.

  Args:
    prefix: regular expression of what stands before a block's modules; its
      group is the block's number.
    norms: of attention and of the MLP.
    mlp: the MLP's two layers.
    to: what stands before our names.
  """
  return (
    (prefix + norms[0], to + _BLOCK + "LayerNorm_0", "norm"),
    (prefix + norms[1], to + _BLOCK + "LayerNorm_1", "norm"),
    (prefix + mlp[0], to + _MLP + "0", "dense"),
    (prefix + mlp[1], to + _MLP + "1", "dense"),
  )


_TIMM = (
  (r"cls_token", "cls", "array"),
  # A Swin's are named in full.
  (r"pos_embed|absolute_pos_embed", "pos_embedding", "array"),
  (r"patch_embed\.proj", "embedding", "conv"),
  (r"patch_embed\.norm|norm_pre", "embedding_norm", "norm"),
  *_blocks(r"blocks\.(\d+)\.", ("norm1", "norm2"), (r"mlp\.fc1", r"mlp\.fc2")),
  (r"blocks\.(\d+)\.attn\.qkv", _ATTENTION[:-1], "qkv"),
  (r"blocks\.(\d+)\.attn\.proj", _ATTENTION + "out", "dense"),
  (
    r"blocks\.(\d+)\.attn\.relative_position_bias_table",
    _ATTENTION + "relative_position_bias",
    "array",
  ),
  (r".*\.(attn_mask|relative_position_index)", _OF_WINDOWS, "ignore"),
  (r"merge\.(\d+)\.norm", r"Transformer/merge_\1/norm", "norm"),
  (r"merge\.(\d+)\.reduction", r"Transformer/merge_\1/reduction", "dense"),
  (r"norm", "Transformer/encoder_norm", "norm"),
  (r"fc_norm", "Transformer/fc_norm", "norm"),
  (r"head(\.fc)?", "head", "dense"),
  (r"head\.mlp\.0", "projection/Dense_0", "dense"),
  (r"head\.mlp\.2", "projection/Dense_1", "dense"),
  (r"head\.mlp\.4", "projection/Dense_2", "dense"),
  (r"head\.last_layer\.weight_([gv])", r"projection/prototypes/\1", "array"),
  (r"mask_token|decoder_.*", _OF_PRETRAINING, "ignore"),
  (r"attn_pool\..*", _OTHER_POOLING, "pooling"),
)


def _clip(prefix: str, to: str) -> tuple[Rule, ...]:
  """Returns rules of one of OpenAI CLIP's towers; see `_blocks`."""
  block = prefix + r"transformer\.resblocks\.(\d+)\."
  return (
    *_blocks(block, ("ln_1", "ln_2"), (r"mlp\.c_fc", r"mlp\.c_proj"), to),
    (block + r"attn\.in_proj", to + _ATTENTION[:-1], "qkv"),
    (block + r"attn\.out_proj", to + _ATTENTION + "out", "dense"),
    (prefix + "positional_embedding", to + "pos_embedding", "array"),
  )


_OPENAI_CLIP = (
  *_clip(r"visual\.", ""),
  *_clip("", "text/"),
  (r"visual\.class_embedding", "cls", "array"),
  (r"visual\.conv1", "embedding", "conv"),
  (r"visual\.ln_pre", "embedding_norm", "norm"),
  (r"visual\.ln_post", "Transformer/encoder_norm", "norm"),
  (r"visual\.proj", "projection/kernel", "array"),
  (r"token_embedding\.weight", "text/token_embedding", "array"),
  (r"ln_final", "text/Transformer/encoder_norm", "norm"),
  (r"text_projection", "text/projection/kernel", "array"),
  (r"logit_scale", "logit_scale", "array"),
  (
    r"(visual\.)?(input_resolution|context_length|vocab_size)",
    "a size, which shapes tell",
    "ignore",
  ),
)
_TORCHVISION = (
  (r"class_token", "cls", "array"),
  (r"encoder\.pos_embedding", "pos_embedding", "array"),
  (r"conv_proj", "embedding", "conv"),
  *_blocks(
    r"encoder\.layers\.encoder_layer_(\d+)\.",
    ("ln_1", "ln_2"),
    (r"mlp\.(?:linear_1|0)", r"mlp\.(?:linear_2|3)"),
  ),
  (
    r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj",
    _ATTENTION[:-1],
    "qkv",
  ),
  (
    r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj",
    _ATTENTION + "out",
    "dense",
  ),
  (r"encoder\.ln", "Transformer/encoder_norm", "norm"),
  (r"heads\.head", "head", "dense"),
)
# In files; then as transformers 5 has them in memory.
_HF_BLOCK = r"(?:encoder\.layer|layers)\.(\d+)\."
_HUGGINGFACE = (
  (r"embeddings\.cls_token", "cls", "array"),
  (r"embeddings\.position_embeddings", "pos_embedding", "array"),
  (r"embeddings\.patch_embeddings\.projection", "embedding", "conv"),
  (r"embeddings\.norm", "embedding_norm", "norm"),
  *_blocks(
    _HF_BLOCK,
    ("layernorm_before", "layernorm_after"),
    (r"(?:intermediate\.dense|mlp\.fc1)", r"(?:output\.dense|mlp\.fc2)"),
  ),
  (
    _HF_BLOCK + r"attention\.(?:attention|self)\.(query|key|value)",
    _ATTENTION + r"\2",
    "dense",
  ),
  (_HF_BLOCK + r"attention\.q_proj", _ATTENTION + "query", "dense"),
  (_HF_BLOCK + r"attention\.k_proj", _ATTENTION + "key", "dense"),
  (_HF_BLOCK + r"attention\.v_proj", _ATTENTION + "value", "dense"),
  (
    _HF_BLOCK + r"attention\.(?:output\.dense|o_proj)",
    _ATTENTION + "out",
    "dense",
  ),
  (
    _HF_BLOCK + r"attention\.self\.relative_position_bias_table",
    _ATTENTION + "relative_position_bias",
    "array",
  ),
  (r".*\.relative_position_index", _OF_WINDOWS, "ignore"),
  (r"merge\.(\d+)\.norm", r"Transformer/merge_\1/norm", "norm"),
  (r"merge\.(\d+)\.reduction", r"Transformer/merge_\1/reduction", "dense"),
  (r"layernorm", "Transformer/encoder_norm", "norm"),
  (r"classifier", "head", "dense"),
  (r"pooler\..*", "a layer after the feature, often not trained", "ignore"),
  (r"embeddings\.mask_token|decoder\..*", _OF_PRETRAINING, "ignore"),
)


def _hf_clip(prefix: str, to: str) -> tuple[Rule, ...]:
  """Returns rules of one of CLIP's towers in Hugging Face's names."""
  block = prefix + r"encoder\.layers\.(\d+)\."
  names = {"q": "query", "k": "key", "v": "value"}
  return (
    *_blocks(
      block, ("layer_norm1", "layer_norm2"), (r"mlp\.fc1", r"mlp\.fc2"), to
    ),
    *(
      (block + rf"self_attn\.{short}_proj", to + _ATTENTION + name, "dense")
      for short, name in names.items()
    ),
    (block + r"self_attn\.out_proj", to + _ATTENTION + "out", "dense"),
    (
      prefix + r"embeddings\.position_embedding\.weight",
      to + "pos_embedding",
      "array",
    ),
    (prefix + r"embeddings\.position_ids", "0, 1, 2, ...", "ignore"),
  )


# A vision model alone has no prefix in transformers 5.
_VISION = r"(?:vision_model\.)?"
_HF_CLIP = (
  *_hf_clip(_VISION, ""),
  *_hf_clip(r"text_model\.", "text/"),
  (_VISION + r"embeddings\.class_embedding", "cls", "array"),
  (_VISION + r"embeddings\.patch_embedding", "embedding", "conv"),
  (_VISION + "pre_layrnorm", "embedding_norm", "norm"),  # sic
  (_VISION + "post_layernorm", "Transformer/encoder_norm", "norm"),
  (r"visual_projection", "projection", "dense"),
  (
    r"text_model\.embeddings\.token_embedding\.weight",
    "text/token_embedding",
    "array",
  ),
  (r"text_model\.final_layer_norm", "text/Transformer/encoder_norm", "norm"),
  (r"text_projection", "text/projection", "dense"),
  (r"logit_scale", "logit_scale", "array"),
  (_VISION + r"head\..*", _OTHER_POOLING, "pooling"),
  (r"text_model\.head\..*|logit_bias", "for SigLIP's texts", "ignore"),
)
# The first public checkpoints (2020) counted all layers of a block together.
_OLD = r"Transformer/encoderblock_(\d+)/"
_BIG_VISION = (
  (_OLD + "LayerNorm_2/(.*)", _BLOCK + r"LayerNorm_1/\2", "array"),
  (_OLD + "MultiHeadDotProductAttention_1/(.*)", _ATTENTION + r"\2", "array"),
  (_OLD + "MlpBlock_3/(.*)", _BLOCK + r"MlpBlock_0/\2", "array"),
  (
    r"(?:Transformer/)?(?:posembed_input/)?pos_embedding",
    "pos_embedding",
    "array",
  ),
  (r"pre_logits/.*", "a layer of the classifier", "ignore"),
  (r"MAPHead_0/.*", _OTHER_POOLING, "pooling"),
)
# In order of trial: (name, a tensor that only this layout has, rules).
LAYOUTS: tuple[tuple[str, str, tuple[Rule, ...]], ...] = (
  ("big_vision", "embedding/kernel", _BIG_VISION),
  ("timm", "patch_embed.proj.weight", _TIMM),
  ("OpenAI CLIP", "visual.conv1.weight", _OPENAI_CLIP),
  ("torchvision", "conv_proj.weight", _TORCHVISION),
  (
    "Hugging Face",
    "embeddings.patch_embeddings.projection.weight",
    _HUGGINGFACE,
  ),
  (
    "Hugging Face CLIP",
    "vision_model.embeddings.patch_embedding.weight",
    _HF_CLIP,
  ),
  (
    "Hugging Face CLIP, images alone",
    "embeddings.patch_embedding.weight",
    _HF_CLIP,
  ),
)
