"""Decoded uint8 images -> what the backbone sees, inside the jitted step."""

import jax
import jax.numpy as jnp

# (mean, std) of RGB in [0, 1].
NORMALIZE = {
    # What the VPT, VAPT and GPT code feeds to every backbone.
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # To [-1, 1]: how big_vision's and Google's ViTs were trained.
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073),
             (0.26862954, 0.26130258, 0.27577711)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}

AUGMENT = ("none", "flip", "crop", "flip_crop")


def prepare(image: jax.Array, image_size: tuple[int, int],
            normalize: str) -> jax.Array:
  """Resizes and normalises.

  Straight to the target size, bilinear without antialiasing: what
  `tf.image.resize`, hence the VTAB-1k protocol, does.

  Args:
    image: uint8 [B, H, W, 3].
    image_size: (height, width).
    normalize: a name in `NORMALIZE`.

  Returns:
    float32 [B, height, width, 3].
  """
  image = image.astype(jnp.float32) / 255
  if image.shape[1:3] != tuple(image_size):
    shape = (len(image), *image_size, image.shape[-1])
    image = jax.image.resize(image, shape, "bilinear", antialias=False)
  mean, std = (jnp.array(value) for value in NORMALIZE[normalize])
  return (image - mean) / std


def augment(image: jax.Array, kind: str, rng: jax.Array) -> jax.Array:
  """Random views of prepared images [B, H, W, 3].

  Args:
    image: float32 [B, H, W, 3].
    kind: `none`, `flip` (left-right with probability 1/2), `crop` (at a random
      place of the image padded by an eighth of its side) or `flip_crop`.
    rng: key of this batch.
  """
  if kind == "none":
    return image
  batch, height, width, channels = image.shape
  flip_rng, row_rng, column_rng = jax.random.split(rng, 3)
  if "crop" in kind:
    pad_h, pad_w = height // 8, width // 8
    padded = jnp.pad(image, ((0, 0), (pad_h, pad_h), (pad_w, pad_w), (0, 0)))
    rows = jax.random.randint(row_rng, (batch,), 0, 2 * pad_h + 1)
    columns = jax.random.randint(column_rng, (batch,), 0, 2 * pad_w + 1)
    crop = lambda x, r, c: jax.lax.dynamic_slice(
        x, (r, c, 0), (height, width, channels))
    image = jax.vmap(crop)(padded, rows, columns)
  if "flip" not in kind:
    return image
  flip = jax.random.bernoulli(flip_rng, 0.5, (batch, 1, 1, 1))
  return jnp.where(flip, image[:, :, ::-1], image)
