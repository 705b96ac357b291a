"""Names the extra of vpt_jax that installs a missing package."""


class MissingExtra(ImportError, ValueError):
  """A package is not installed that only some commands need.

  It is a ValueError too, so that command lines show it as `error: ...`.
  """

  def __init__(self, error: ImportError, purpose: str, extra: str):
    """Says what to install.

    Args:
      error: of the import that failed.
      purpose: what needs the package, for example "CLIP's tokenizer".
      extra: of vpt_jax, in setup.cfg.
    """
    super().__init__(
      f"{purpose} needs the package {error.name}: pip install "
      f"'vpt_jax[{extra}]'"
    )
