"""TAID: Temporally Adaptive Interpolated Distillation (ICLR 2025, arXiv 2501.16937), and fair baselines.

from taid import DistillationTrainer
DistillationTrainer(student, teacher, method="taid", args=args, train_dataset=data, processing_class=tokenizer).train()
"""

from importlib import import_module

__version__ = "0.2.0"
_EXPORTS = {  # name -> module; imported on first use, so that `import taid` is quick
    "DistillationTrainer": "taid.trainer",
    "DistillationArguments": "taid.trainer",
    "METHODS": "taid.objectives",
    "LOSSES": "taid.losses",
    "Adaptive": "taid.schedule",
    "Linear": "taid.schedule",
    "OfflineTeacher": "taid.teacher",
    "cached_teacher": "taid.teacher",
    "write_offline": "taid.teacher",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'taid' has no attribute {name!r}; it exports {', '.join(_EXPORTS)}")
    return getattr(import_module(_EXPORTS[name]), name)
