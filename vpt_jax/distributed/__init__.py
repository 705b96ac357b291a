"""Makes one run of several devices and processes. See README.md."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
  __name__,
  submod_attrs={
    "memory": ["free_bytes", "free_host_bytes", "is_out_of_memory"],
    "processes": [
      "Preempted",
      "PreemptionNotice",
      "broadcast_from_primary",
      "check_not_forked",
      "check_same",
      "gather_texts",
      "is_primary",
      "join",
    ],
    "shard_gradients": ["value_and_grad"],
    "sharding": [
      "STRATEGIES",
      "batch_sharding",
      "distribute",
      "make_mesh",
      "replicate",
      "replicated",
    ],
  },
)
