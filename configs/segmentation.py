"""Has what configs of segmentation share: data sets, protocols, words.

SETR-PUP is trained as both published codes train it: fudan-zvg/SETR, the
authors' own, and mmsegmentation's configs of it. Gated Prompt Tuning and VPT
use it and released no code of that; what their papers leave open is said where
it is chosen.
"""

from collections.abc import Iterable, Mapping
import dataclasses

from ml_collections import ConfigDict

from configs import common

EMBEDDED = "digit_scenes"
DEFAULT = "ade20k"
# The head learns ten times as fast as the prompts. So do both codes of SETR,
# whose backbone is trained; that the papers of prompts do is not said.
HEAD_TEN_TIMES: tuple[tuple[str, dict[str, float]], ...] = (
  ("head/.*", {"lr": 10.0}),
  (".*", {}),
)
STEPS_PER_EPOCH = 1000  # an epoch is a thousand iterations


@dataclasses.dataclass(frozen=True)
class Recipe:
  """Says how long a data set is trained, and at which sizes.

  Attributes:
    crop: side of the training views and of the windows of a test.
    batch_size: images of a step.
    thousands: of iterations.
    scale: that images are brought within, times a random factor in training.
    lr: of all but the head.
  """

  crop: int = 512
  batch_size: int = 16
  thousands: int = 160
  scale: tuple[int, int] = (2048, 512)
  lr: float = 1e-3


_CONTEXT = Recipe(crop=480, thousands=80, scale=(520, 520))
# As in SETR's configs. It has none for VOC: sizes and iterations are those of
# mmsegmentation's models there.
RECIPES = {
  "ade20k": Recipe(),
  "voc2012": Recipe(thousands=40),
  "voc2012_aug": Recipe(thousands=40),
  "pascal_context59": _CONTEXT,
  "pascal_context60": _CONTEXT,
  "cityscapes": Recipe(
    crop=768, batch_size=8, thousands=80, scale=(2049, 1025), lr=0.01
  ),
}
TASKS = (*RECIPES, EMBEDDED)


def words_of(arg: str, file: str, **known: Iterable[str]) -> dict[str, str]:
  """Returns the words of a config file's argument by what they choose.

  Args:
    arg: words in any order, with commas between them.
    file: whose argument it is, for errors.
    **known: for each choice, such as `task`, the words that it has.

  Returns:
    {choice: word}, "" where the argument has none.

  Raises:
    ValueError: a word that is not known, or two of one choice.
  """
  found = dict.fromkeys(known, "")
  for word in filter(None, arg.split(",")):
    choices = [choice for choice, words in known.items() if word in words]
    if not choices:
      lists = []
      for choice, words in known.items():
        lists.append(f"{choice}: {', '.join(words)}")
      raise ValueError(
        f"unknown word {word!r} of {file}; known: {'; '.join(lists)}"
      )
    choice = choices[0]
    if found[choice]:
      raise ValueError(
        f"{file} has one {choice}, got {found[choice]!r} and {word!r}"
      )
    found[choice] = word
  return found


def start(
  arg: str, file: str, backbones: Mapping[str, str], **known: Iterable[str]
) -> tuple[ConfigDict, dict[str, str]]:
  """Returns what a config file of segmentation starts from.

  That is SETR-PUP's published training on a data set, ADE20K if the argument
  names none; or the embedded task, if there is no argument.

  Args:
    arg: of the file, see `words_of`.
    file: its name, for errors.
    backbones: {word: name in the model zoo}, the default first.
    **known: further choices, see `words_of`.

  Returns:
    (config, {choice: word}); the words have `task` and `backbone`, whose word
    is "" for the embedded task.

  Raises:
    ValueError: see `words_of`, or a backbone for the embedded task.
  """
  words = words_of(arg, file, backbone=backbones, task=TASKS, **known)
  config = common.get_config()
  config.problem = "segmentation"
  # Published scores are of the images of val, which are the part `test` here.
  config.data.train_split = "train"
  if arg and words["task"] != EMBEDDED:
    words["task"] = words["task"] or DEFAULT
    words["backbone"] = words["backbone"] or next(iter(backbones))
    config.backbone.name = backbones[words["backbone"]]
    return _published(config, words["task"]), words
  if words["backbone"]:
    raise ValueError(
      f"{file}: the embedded task {EMBEDDED} has a backbone of its own, not "
      f"{words['backbone']!r}; name a data set: {', '.join(RECIPES)}"
    )
  words["task"] = EMBEDDED
  return _embedded(config), words


def _published(config: ConfigDict, task: str) -> ConfigDict:
  """Returns the training on a data set of `RECIPES`."""
  recipe = RECIPES[task]
  config.task = task
  config.image_size = recipe.crop
  config.batch_size = recipe.batch_size
  config.epochs = recipe.thousands
  config.steps_per_epoch = STEPS_PER_EPOCH
  # For Google's ViTs, too, which saw other pixels when they were trained.
  config.data.normalize = "imagenet"

  optim = config.optim
  optim.name = "sgd"
  optim.momentum = 0.9
  optim.lr = recipe.lr
  optim.scale_lr = False
  optim.weight_decay = 0.0
  optim.warmup_epochs = 0
  optim.schedule = "poly"
  # Of the time of these papers: mmsegmentation 0.x. Its successor, mmengine,
  # counts T - 1 steps in place of T.
  optim.poly_form = "mmcv"
  optim.poly_power = 0.9
  optim.poly_min = 1e-4
  optim.policies = HEAD_TEN_TIMES

  section = config.segmentation
  # mmsegmentation's version of the head; its authors': "setr_pup", with
  # "setr_aux_ade" (ADE20K) or "setr_aux" for auxiliary ones.
  section.decoder = "pup"
  section.auxiliary = "aux2x4"
  section.scale = recipe.scale
  section.test_scale = recipe.scale
  # Windows overlap by a third: 341 of 512 pixels, 320 of 480, 512 of 768.
  section.test = "slide"
  # SS and MS are both published. "setr" raises the shorter side to the crop
  # as the authors' code does; "own" is mmsegmentation 1.x.
  section.multi_scale = "scale"
  return config


def _embedded(config: ConfigDict) -> ConfigDict:
  """Returns what two CPU cores train in two minutes, on embedded scenes.

  With a shorter head: SETR's enlarge patches 16 times, and these have 4 pixels.
  """
  config = common.embedded(config)
  config.task = EMBEDDED
  config.image_size = 64
  config.batch_size = 8
  config.epochs = 12
  config.optim.warmup_epochs = 0
  config.optim.schedule = "poly"
  config.optim.lr = 0.02
  config.optim.policies = ((".*", {}),)
  section = config.segmentation
  section.decoder = "pup_4"
  section.width = 48
  section.auxiliary = ""
  section.scale = (64, 64)
  section.factors = (1.0, 1.0)  # all digits have one size
  section.flip = 0.0  # a flipped digit is no digit
  section.distort = False  # the colours are random
  section.test_scale = ()
  return config
