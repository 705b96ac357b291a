"""Every task that a config can name, in one table."""

import dataclasses

from vpt_jax import tree


@dataclasses.dataclass(frozen=True)
class Task:
  """One classification task.

  Attributes:
    num_classes: K.
    source: which reader in `sources.py` it comes from.
    folder: of its pack below `data.dir`, for source `pack`.
    group: of VTAB-1k, "" otherwise.
    class_names: in the order of the labels, for zero-shot heads; () if not
      known.
  """

  num_classes: int
  source: str = "pack"
  folder: str = ""
  group: str = ""
  class_names: tuple[str, ...] = ()


CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog",
           "horse", "ship", "truck")
EUROSAT = ("annual crop", "forest", "herbaceous vegetation", "highway",
           "industrial buildings", "pasture", "permanent crop",
           "residential buildings", "river", "sea or lake")


def _vtab(group: str, **tasks: tuple) -> dict[str, Task]:
  return {name: Task(classes, "pack", f"vtab-1k/{folder}", group, *names)
          for name, (classes, folder, *names) in tasks.items()}


# Folders are named as in the vtab-1k packs that circulate among researchers.
TASKS: dict[str, Task] = {
    "digits": Task(10, "digits"),
    **_vtab(
        "natural",
        caltech101=(102, "caltech101"),
        cifar100=(100, "cifar"),
        dtd=(47, "dtd"),
        oxford_flowers102=(102, "oxford_flowers102"),
        oxford_iiit_pet=(37, "oxford_iiit_pet"),
        sun397=(397, "sun397"),
        svhn=(10, "svhn"),
    ),
    **_vtab(
        "specialized",
        diabetic_retinopathy=(5, "diabetic_retinopathy"),
        eurosat=(10, "eurosat", EUROSAT),
        patch_camelyon=(2, "patch_camelyon"),
        resisc45=(45, "resisc45"),
    ),
    **_vtab(
        "structured",
        clevr_count=(8, "clevr_count"),
        clevr_distance=(6, "clevr_dist"),
        dmlab=(6, "dmlab"),
        dsprites_location=(16, "dsprites_loc"),
        dsprites_orientation=(16, "dsprites_ori"),
        kitti=(4, "kitti"),
        smallnorb_azimuth=(18, "smallnorb_azi"),
        smallnorb_elevation=(9, "smallnorb_ele"),
    ),
    "cifar10": Task(10, "npz", "cifar10_jpeg.npz", class_names=CIFAR10),
}


def get(name: str) -> Task:
  """The task of that name.

  Raises:
    ValueError: unknown name, with the nearest known one.
  """
  return TASKS[tree.choose(name, TASKS, "task")]
