"""Lists where images come from: version, licence, address, size, steps."""

from typing import Any

CIFAR10 = (
  "airplane",
  "automobile",
  "bird",
  "cat",
  "deer",
  "dog",
  "frog",
  "horse",
  "ship",
  "truck",
)
EUROSAT = (
  "annual crop",
  "forest",
  "herbaceous vegetation",
  "highway",
  "industrial buildings",
  "pasture",
  "permanent crop",
  "residential buildings",
  "river",
  "sea or lake",
)
DIGITS = tuple("0123456789")
COUNTS = tuple(f"{n} objects" for n in range(3, 11))

_VGG = "https://www.robots.ox.ac.uk/~vgg/data"

# Fields of `tasks.Task` that tasks of the same images share.
ORIGINS: dict[str, dict[str, Any]] = {
  "caltech101": {
    "tfds": "caltech101:3.0.2",
    "published": "3.0.1",
    "gigabytes": 0.14,
    "licence": "CC BY 4.0",
    "address": "https://data.caltech.edu/records/mzrjq-6wc02",
  },
  "cifar10": {
    "tfds": "cifar10:3.0.2",
    "gigabytes": 0.17,
    "class_names": CIFAR10,
    "address": "https://www.cs.toronto.edu/~kriz/cifar.html",
  },
  "cifar100": {
    "tfds": "cifar100:3.0.2",
    "gigabytes": 0.17,
    "address": "https://www.cs.toronto.edu/~kriz/cifar.html",
  },
  "clevr": {
    "tfds": "clevr:3.1.0",
    "gigabytes": 19,
    "licence": "CC BY 4.0",
    "address": "https://cs.stanford.edu/people/jcjohns/clevr",
  },
  "dmlab": {
    "tfds": "dmlab:2.0.1",
    "gigabytes": 3,
    "address": "https://github.com/google-research/task_adaptation",
  },
  "dsprites": {
    "tfds": "dsprites:2.0.0",
    "gigabytes": 0.03,
    "scale": 255,
    "licence": "Apache 2.0 or zlib, copies differ",
    "address": "https://github.com/google-deepmind/dsprites-dataset",
  },
  "dtd": {
    "tfds": "dtd:3.0.1",
    "gigabytes": 0.6,
    "licence": "for research",
    "address": f"{_VGG}/dtd",
  },
  "eurosat": {
    "tfds": "eurosat/rgb:2.0.0",
    "gigabytes": 0.09,
    "licence": "MIT",
    "class_names": EUROSAT,
    "address": "https://github.com/phelber/EuroSAT",
  },
  "flowers": {
    "tfds": "oxford_flowers102:2.1.1",
    "gigabytes": 0.35,
    "address": f"{_VGG}/flowers/102",
  },
  "food101": {
    "tfds": "food101:2.0.0",
    "gigabytes": 5,
    "licence": "scientific fair use; images belong to Foodspotting's users",
    "address": "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101",
  },
  "kitti": {
    "tfds": "kitti:3.3.0",
    "published": "3.2.0",
    "gigabytes": 12.6,
    "licence": "CC BY-NC-SA 3.0",
    "address": "https://www.cvlibs.net/datasets/kitti",
  },
  "patch_camelyon": {
    "tfds": "patch_camelyon:2.0.0",
    "gigabytes": 8,
    "licence": "CC0",
    "address": "https://github.com/basveeling/pcam",
  },
  "pets": {
    "tfds": "oxford_iiit_pet:4.0.0",
    "published": "3.2.0",
    "gigabytes": 0.8,
    "licence": "CC BY-SA 4.0",
    "address": f"{_VGG}/pets",
  },
  "resisc45": {
    "tfds": "resisc45:3.0.0",
    "gigabytes": 0.4,
    "address": "https://1drv.ms/u/s!AmgKYzARBl5ca3HNaHIlzp_IXjs",
    "manual": "download NWPU-RESISC45.rar from the address and unpack it to "
    "downloads/manual/NWPU-RESISC45 in the data folder",
  },
  "retinopathy": {
    "tfds": "diabetic_retinopathy_detection/btgraham-300:3.0.0",
    "gigabytes": 88,
    "licence": "the rules of the competition, to be accepted at Kaggle",
    "address": "https://www.kaggle.com/c/diabetic-retinopathy-detection/data",
    "manual": "download all from Kaggle; join the parts (`cat train.zip.* > "
    "train.zip`, five parts; the same for test) and unpack them to "
    "train, test and sample, with trainLabels.csv beside them, all "
    "in downloads/manual in the data folder",
  },
  "smallnorb": {
    "tfds": "smallnorb:2.0.0",
    "gigabytes": 0.26,
    "licence": "for research",
    "address": "https://cs.nyu.edu/~ylclab/data/norb-v1.0-small",
  },
  "sun397": {
    "tfds": "sun397/tfds:4.0.0",
    "gigabytes": 39,
    "address": "https://vision.princeton.edu/projects/2010/SUN",
  },
  "svhn": {
    "tfds": "svhn_cropped:3.1.0",
    "published": "3.0.0",
    "gigabytes": 1.6,
    "licence": "non-commercial",
    "class_names": DIGITS,
    "address": "http://ufldl.stanford.edu/housenumbers",
  },
}
