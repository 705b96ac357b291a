"""Every field of a config, with its default and what it means.

A config file starts from `get_config()` and changes what it needs; the command
line overrides single fields: `--config.optim.lr=0.5`. Unknown fields are
errors.
"""

from ml_collections import ConfigDict

# What VPT searches, VAPT too: base rates (for 256 images) and decays; and the
# rates of full fine-tuning.
PROMPT_RATES = (50.0, 25.0, 10.0, 5.0, 2.5, 1.0, 0.5, 0.25, 0.1, 0.05)
FULL_RATES = (1e-3, 1e-4, 5e-4, 5e-3)
DECAYS = (1e-2, 1e-3, 1e-4, 0.0)

# A value of `config.trainable`: bias tuning. By name, as published: on Swin the
# tables of relative positions are biases too.
BIAS = r"head/.*|backbone/.*bias"


def get_config() -> ConfigDict:
  """The defaults: VPT's published protocol at ViT-B/16."""
  config = ConfigDict()

  # What is adapted to what. See vpt_jax/data/tasks.py for the tasks.
  config.task = ""
  # linear | full | vpt | vapt | pgn | ...: vpt_jax/methods/registry.py lists
  # them; its options are in the section of that name.
  config.method = "vapt"
  # What tables call it, if not by its method's name.
  config.name = ""
  # Regular expression over parameter paths (`backbone/...`, `method/...`,
  # `head/...`); what it matches is trained. "": the method's own, which is
  # `(method|head)/.*`, and `.*` for `full`.
  config.trainable = ""
  # Which tokens the feature is the mean of: cls | img | prompt | imgprompt; "":
  # the backbone's own (ViT, MoCo v3, CLIP: cls; MAE, Swin: imgprompt).
  config.pool = ""
  # What the head starts from: linear (new) | pretrained (the checkpoint's own)
  # | zero_shot (CLIP's text features of the class names) | prototypes (of
  # DINO, a random one for each class: PGN's).
  config.head = "linear"
  # head=pretrained: for each class of the task the classes of the checkpoint's
  # head that belong to it, as in ((404, 895), (436,)). (): they are the same.
  config.head_groups = ()
  # Values that a new head starts from: kaiming (as published; in short runs on
  # few classes its confident first errors cost much of the training) | zeros.
  config.head_init = "kaiming"
  # Hidden layers of the head (Dense, ReLU, BatchNorm, Dropout 0.1 each).
  config.head_layers = 0
  # Side of the square images that the backbone sees; other sizes than the
  # checkpoint's resize its position embeddings.
  config.image_size = 224
  config.batch_size = 64
  config.epochs = 100
  # Of initial values, dropout and the order of images.
  config.seed = 42

  config.backbone = ConfigDict()
  # `python -m vpt_jax.backbones` lists them.
  config.backbone.name = "vit_b16_in21k"
  # File (npz, safetensors, PyTorch, Orbax folder) or https:// or gs:// address;
  # "": the known one of this name; "random": not pretrained.
  config.backbone.checkpoint = ""
  # tanh | exact | quick; "": what the weights were trained with; torch: exact
  # in place of tanh, as the papers' code runs weights that were trained in JAX.
  config.backbone.gelu = "torch"
  # The final norm: before (the pooling) | after | fresh (after it, with new
  # weights); "": the backbone's own. MAE is `fresh` in VPT and VAPT, `after` in
  # Gated Prompt Tuning.
  config.backbone.norm = ""
  # The feature goes through the checkpoint's own projection (CLIP, DINO).
  config.backbone.projection = False
  # How frozen parameters are stored: float32 | bfloat16.
  config.backbone.frozen_dtype = "float32"

  config.data = ConfigDict()
  # Folder of the data sets: packs `vtab-1k/TASK/...`, tfds, VPT's FGVC folders.
  # `python -m vpt_jax.data check --data_dir=...` tells what is there.
  config.data.dir = "data"
  # "": the first of the task's own that is there | pack | json | tfds, or your
  # own: folder:PATH (class = subfolder) | csv:PATH (path,label) | npz:PATH.
  config.data.source = ""
  # Of the parts of images that are not parted into train, val and test.
  config.data.seed = 0
  # How images come to `image_size`: vtab (straight, bilinear without
  # antialiasing) | fgvc (shorter side, random crop, flip) | pgn (squash and
  # recolour); "": what the task's papers do, vtab for data of your own.
  config.data.preprocess = ""
  # Which part trains: train (800) | trainval (1,000), and which part is
  # evaluated at the end: val (200) | test. VTAB-1k picks hyper-parameters with
  # train/val and reports trainval/test.
  config.data.train_split = "trainval"
  config.data.test_split = "test"
  # Part of the training images that is used, of each class alike (sample
  # efficiency); chosen by `data.seed`, smaller parts lie within larger ones.
  config.data.train_share = 1.0
  # imagenet | half | clip | none: see vpt_jax/data/transforms/views.py; backbone:
  # what it was trained with. The papers' code uses ImageNet's for every one.
  config.data.normalize = "imagenet"
  # none | flip | crop | flip_crop | pgn | pgn_crop, of training images; "":
  # what belongs to `preprocess` (vtab: none, fgvc: flip, pgn: pgn).
  config.data.augment = ""
  # Least area of random resized crops; 1: none (PGN's default too).
  config.data.min_scale = 1.0
  # What a missing or damaged image does: raise | skip (and count).
  config.data.on_error = "raise"
  # Splits up to this size stay on the device, larger ones are read ahead batch
  # by batch; 0: half of what the device says is free.
  config.data.device_gb = 0.0
  # Folder of prepared images; "": $VPT_JAX_CACHE/data, else
  # ~/.cache/vpt_jax/data.
  config.data.cache = ""

  config.optim = ConfigDict()
  # sgd | adam (both with coupled decay, as torch) | adamw (decoupled).
  config.optim.name = "sgd"
  config.optim.momentum = 0.9
  # Rate for a batch of 256; what is used is lr / 256 * batch_size, unless
  # scale_lr is False.
  config.optim.lr = 1.0
  config.optim.scale_lr = True
  config.optim.weight_decay = 1e-3
  # cosine | cosine_hardrestart | pgn_cosine_with_warmup | constant; the factor
  # changes once per epoch, as published.
  config.optim.schedule = "cosine"
  config.optim.warmup_epochs = 10
  # True as published: epoch e < warm-up has rate lr * e / warmup_epochs, so THE
  # WHOLE FIRST EPOCH HAS RATE 0. False: lr * (e + 1) / warmup_epochs.
  config.optim.warmup_from_zero = True
  # Ordered (regex over trainable paths, {"lr": factor, "weight_decay":
  # factor}). As published: no decay of the head's bias.
  config.optim.policies = (("head/bias", {"weight_decay": 0.0}), (".*", {}))

  config.compute = ConfigDict()
  # Of the backbone's matrix products: float32 | bfloat16. Norms, softmax, loss,
  # head and prompts stay float32.
  config.compute.dtype = "float32"
  # How exact float32 products are on GPU and TPU: highest (float32 throughout)
  # | high | default (TF32 or bfloat16 inside).
  config.compute.matmul_precision = "highest"
  # What computes attention: ours | xla (jax.nn.dot_product_attention) | cudnn
  # (the same, fused, on NVIDIA GPUs in bfloat16; not measured yet).
  config.compute.attention = "ours"
  # True: less memory, a third more time; see jax.checkpoint.
  config.compute.remat = False

  config.shard = ConfigDict()
  # How frozen parameters lie on several devices: dp (all on each) | fsdp (in
  # parts over the devices that split the batch) | tp (heads and hidden units
  # over groups of `model` devices); see vpt_jax/distributed/sharding.py.
  config.shard.strategy = "dp"
  config.shard.model = 1

  config.checkpoint = ConfigDict()
  config.checkpoint.every_epochs = 10
  config.checkpoint.keep = 2

  # Prompt condensation, see vpt_jax/condensation/stages.py and configs/condense_vtab.py.
  config.condense = ConfigDict()
  # Shares of the prompts to keep, each on its own; (): an ordinary run.
  config.condense.shares = ()
  # What ranks the prompts: a name in vpt_jax/condensation/prompt_scores.py.
  config.condense.statistic = "elementwise_sample_abs"
  # Fine-tuning of the kept prompts and the head, without warm-up. The rate is
  # `lr_factor` times `optim.lr`.
  config.condense.epochs = 20
  config.condense.lr_factor = 0.5
  # Images for the exact effect of each prompt, to which all statistics are
  # compared; it takes a forward pass for every prompt. 0: not done.
  config.condense.oracle_images = 0

  # train: one run | sweep: the papers' protocol, see vpt_jax/sweeps/protocol.py; only
  # then the section `sweep` is read.
  config.mode = "train"
  config.sweep = ConfigDict()
  # (): `config.task` alone.
  config.sweep.tasks = ()
  # Task -> ((field, value), ...) that are different there.
  config.sweep.per_task = ConfigDict()
  # What is searched: (field, values) each; (): nothing, only the seeds. The
  # configs of methods hold what is published of theirs.
  config.sweep.grid = grid(PROMPT_RATES)
  # grid: all combinations | coordinate: one field after the other, the last one
  # first (VAPT's --fast) | halving: all for a ninth of the epochs, the best
  # third for a third, the best third of these for all.
  config.sweep.search = "grid"
  # Of the runs with the best values.
  config.sweep.seeds = (42, 44, 82, 100, 800)
  # Runs that train together, see vpt_jax/sweeps/vmapped_runs.py; 0: as many as fit.
  config.sweep.group = 0

  # For head=zero_shot.
  config.clip = ConfigDict()
  # File (npy, npz) of the classes' text features [K, D]; "": the text tower
  # makes them from what follows.
  config.clip.text_features = ""
  # (): those of the task.
  config.clip.class_names = ()
  # Their text features are averaged; {} is the class name.
  config.clip.templates = ("a photo of a {}.",)
  # The standard merges file, bpe_simple_vocab_16e6.txt.gz; "": fetched once.
  config.clip.merges = ""

  # Sections of the methods; only the one that `config.method` names is read.
  # See vpt_jax/methods/vpt.py and vapt.py for what the options mean.
  config.vpt = ConfigDict(
    dict(
      num_tokens=10,
      deep=True,
      first=0,
      num_layers=0,
      reverse=False,
      shared=False,
      expand=True,
      project=0,
      dropout=0.1,
      kept=(),
    )
  )
  config.vapt = ConfigDict(
    dict(
      num_tokens=10,
      static_layers=1,
      conv=True,
      kernel_size=2,
      padding=0,
      per_channel=False,
      projector="shared",
      hidden=8,
      activation="relu",
      learnable_scale=False,
      dropout=0.1,
      dropout_channel=0.1,
      dropout_mlp=0.1,
    )
  )
  # pgn.py.
  config.pgn = ConfigDict(
    dict(
      num_tokens=16,
      library=256,
      act="softmax",
      network="resnet10",
      init_max_pool=True,
      initial_channels=16,
      groups=4,
      blocks_per_group=1,
      resolution=0,
      weights="",
    )
  )
  config.iip = ConfigDict(dict(num_tokens=16))
  # gated.py.
  config.gated = ConfigDict(
    dict(
      num_tokens=10,
      gates=True,
      num_gates=0,
      gate_init=10.0,
      hard=False,
      learn_temperature=True,
      temperature_init=1.0,
      temperature_min=0.01,
      temperature_max=10.0,
      dropout=0.1,
    )
  )
  # inside.py.
  config.adapter = ConfigDict(dict(reduction=8, initial="near_identity"))
  config.lora = ConfigDict(dict(rank=8, alpha=8.0, layers=("query", "value")))
  # pixel.py.
  config.add = ConfigDict(dict(single=False, deep=False, dropout=0.1))
  config.pad = ConfigDict(dict(width=16))
  config.below = ConfigDict(dict(num_channels=1))
  config.prepend_pixel = ConfigDict(dict(num_tokens=10, variant="plain"))
  config.border = ConfigDict(dict(width=0, init_std=1.0))
  return config


def grid(
  rates: tuple[float, ...], decays: tuple[float, ...] = DECAYS
) -> tuple[tuple[str, tuple[float, ...]], ...]:
  """A search over rates and decays."""
  return ("optim.lr", rates), ("optim.weight_decay", decays)


def swept(
  config: ConfigDict, name: str, by_task: dict[str, ConfigDict]
) -> ConfigDict:
  """A sweep over tasks.

  Args:
    config: what all tasks share.
    name: what tables call it.
    by_task: each task's own config; where it differs from `config`, it holds,
      but for what is searched.
  """
  config.task, config.mode, config.name = "", "sweep", name
  config.sweep.tasks = tuple(by_task)
  kept = {"task", "mode", "name", *(field for field, _ in config.sweep.grid)}
  shared = _fields(config)
  for task, own in by_task.items():
    changes = tuple(
      (field, value)
      for field, value in _fields(own).items()
      if field not in kept and shared[field] != value
    )
    if changes:
      config.sweep.per_task[task] = changes
  return config


def _fields(config: ConfigDict, prefix: str = "") -> dict:
  """Dotted field -> value, without the section `sweep`."""
  out = {}
  for name, value in config.items():
    if isinstance(value, ConfigDict):
      out |= _fields(value, f"{prefix}{name}.") if name != "sweep" else {}
    else:
      out[f"{prefix}{name}"] = value
  return out


def embedded(config: ConfigDict) -> ConfigDict:
  """The same method on what comes with the package: digits and a small ViT.

  Two CPU cores should be done in two minutes, so: few epochs, small batches,
  AdamW and a head that starts from zeros. How these were chosen: README.md,
  "The embedded task".
  """
  config.task = "digits"
  config.backbone.name = "vit_mini4_cifar10"
  config.backbone.gelu = ""
  config.image_size = 32
  config.data.normalize = "half"
  config.batch_size = 32
  config.head_init = "zeros"
  config.epochs = 24
  config.optim.name = "adamw"
  config.optim.lr = 0.01
  config.optim.scale_lr = False
  config.optim.weight_decay = 0.01
  config.sweep.grid = grid((0.005, 0.02), (0.01, 0.0001))
  config.optim.warmup_epochs = 2
  config.optim.warmup_from_zero = False
  return config
