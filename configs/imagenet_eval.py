"""Configures the evaluation of a checkpoint's own ImageNet-1k classifier.

    python -m vpt_jax.main --config=configs/imagenet_eval.py:cifar10 \
        --config.backbone.name=vit_ti16 --config.backbone.checkpoint=FILE

`cifar10`: each of its classes is a group of ImageNet's classes, whose
probabilities are added. Any other task needs the same classes as the head.
"""

from ml_collections import ConfigDict

from configs import common

# Rows of the 1000-class head, in the usual order of the WordNet ids.
CIFAR10 = (
  (404, 895),  # airplane: airliner, warplane
  (436, 468, 511, 609, 627, 656, 751, 817),  # automobile, without trucks
  (*range(7, 25), *range(80, 101), *range(127, 147)),  # bird
  tuple(range(281, 286)),  # cat: domestic breeds
  (350, 351, 352, 353),  # deer: ibex, hartebeest, impala, gazelle
  tuple(range(151, 269)),  # dog: breeds
  (30, 31, 32),  # frog
  (339,),  # horse: sorrel
  (403, 484, 510, 554, 625, 628, 724, 780, 814, 871, 914),  # ship
  (555, 569, 675, 717, 864, 867),  # truck
)


def get_config(task: str = "cifar10") -> ConfigDict:
  """Returns the evaluation of the backbone's own head; nothing is trained."""
  config = common.get_config()
  config.task = task
  config.method = "linear"
  config.head = "pretrained"
  config.head_groups = CIFAR10 if task == "cifar10" else ()
  config.epochs = 0
  config.optim.warmup_epochs = 0
  config.backbone.gelu = ""
  config.data.normalize = "backbone"
  # No other images are read.
  config.data.train_split = "test"
  config.data.test_split = "test"
  config.batch_size = 128
  return config
