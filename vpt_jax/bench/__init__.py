"""Times vpt_jax against PyTorch, and plans steps elsewhere. See README.md."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
  __name__,
  submod_attrs={
    "bench_tables": ["grid"],
    "measure": ["Case", "Disagree"],
    "model_needs": ["Needs", "needs"],
    "plan": ["MACHINES", "Machine"],
    "worker": ["Failed", "Side", "Worker"],
  },
)
