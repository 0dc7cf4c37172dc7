"""Table 1 at the paper's scale: which of a run's students is kept."""

from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_model

from taid.studies.ultrachat import KeepBest


@pytest.mark.parametrize(
    ("scores", "best"),
    [((1.0, 3.0, 2.0), 1), ((3.0, 1.0, 2.0), 0), ((1.0, 2.0, 3.0), 2), ((2.0, 2.0, 1.0), 0)],
)
def test_the_student_with_the_best_score_is_kept(scores, best, tmp_path):
    """Scored after steps 2, 4 and 6 of 6, with the norm's weights set to the step; of equal ones the first is kept."""
    student, said = tiny_model(), iter(scores)
    keep = KeepBest(tmp_path / "best", 3, lambda model: next(said))
    weight = student.model.norm.weight
    for step in range(1, 7):
        torch.nn.init.constant_(weight, step)
        keep.on_step_end(None, SimpleNamespace(global_step=step, max_steps=6), None, model=student)
    keep.on_train_end(None, SimpleNamespace(global_step=6, max_steps=6), None, model=student)
    assert next(said, None) is None and weight.unique().tolist() == [2.0 * (best + 1)]
