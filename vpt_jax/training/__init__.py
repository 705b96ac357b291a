"""Trains, evaluates and saves runs; keeps their records."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
  __name__,
  submod_attrs={
    "adapter_files": [
      "AdapterMeta",
      "check_backbone",
      "read_adapter",
      "save_adapter",
    ],
    "checkpoints": ["Checkpoints"],
    "evaluation": ["eval_step", "evaluate", "make_apply", "make_eval_step"],
    "experiment": ["Data", "Experiment", "build", "load_data"],
    "labelling": ["Labeller", "Seen"],
    "loop": ["Diverged", "fit"],
    "metrics": ["Metrics", "read_metrics"],
    "optim": ["epoch_rates", "make_optimizer", "per_epoch"],
    "progress": ["Progress"],
    "records": ["Outcome", "RunRecord", "Store", "find"],
    "run_folder": ["check_unchanged", "claim", "fingerprint"],
    "run_results": ["facts", "record", "save"],
    "run_texts": ["result_text", "split_table"],
    "step": ["TrainState", "make_train_step", "train_step"],
  },
)
