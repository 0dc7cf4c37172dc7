"""State belongs to a run: each starts as the first did, whatever ran before it."""

import pytest
from conftest import PAD, tiny_examples, tiny_model, tiny_trainer
from test_trainer import everything, weights

from taid.data import Collator
from taid.objectives import TAID, objective
from taid.schedule import Linear
from taid.trainer import DistillationTrainer

OPTIONS = {
    "taid": {"t_start": 0.2, "alpha": 1.5},  # so large an α leaves the linear floor in a few steps
    "gkd": {"max_new_tokens": 4},
    "distillm": {"max_new_tokens": 4, "threshold": 0.7, "capacity": 4},
}


def ts(trainer) -> list[float]:
    return [logs["t"] for logs in trainer.state.log_history if "t" in logs]


def run_of(folder, method_or_objective, **arguments) -> DistillationTrainer:
    return tiny_trainer(
        folder,
        method_or_objective,
        steps=6,
        validation=tiny_examples(4, seed=1),
        eval_strategy="steps",
        eval_steps=2,
        **arguments,
    )


@pytest.mark.parametrize("method", ["taid", "ctkd", "gkd", "distillm"])
def test_a_second_trainer_on_one_objective_trains_as_the_first(method, tmp_path):
    """Bit for bit: weights, t, θ, counters, buffer and logs."""
    shared = objective(method, **OPTIONS.get(method, {}))
    found = []
    for _ in range(2):
        trainer = run_of(tmp_path, shared)
        trainer.train()
        found.append(everything(trainer))
    assert found[0] == found[1]
    assert found[0]["objective"] or found[0]["rollouts"]  # there was a state to keep


@pytest.mark.parametrize("method", ["taid", "ctkd", "distillm"])
def test_a_search_starts_every_trial_anew(method, tmp_path):
    """`hyperparameter_search` calls `train` once a trial on models of `model_init`, as here."""
    shared = run_of(tmp_path, objective(method, **OPTIONS.get(method, {})))
    trainer = DistillationTrainer(
        teacher=tiny_model(seed=1),
        method=shared.objective,
        model_init=lambda: tiny_model(seed=0),
        args=shared.args,
        train_dataset=shared.train_dataset,
        eval_dataset=shared.eval_dataset,
        data_collator=Collator(PAD),
    )
    found = []
    for _ in range(2):
        trainer.train()
        found.append(everything(trainer))
    assert found[0] == found[1]


def test_a_second_train_starts_from_t_start(tmp_path):
    trainer = tiny_trainer(tmp_path, TAID(Linear(0.2)), steps=4)
    for _ in range(2):
        trainer.train()
        assert ts(trainer) == pytest.approx([0.4, 0.6, 0.8, 1.0])
        assert trainer.objective.state.updates == 4


def test_a_restart_with_smaller_batches_starts_from_t_start(tmp_path):
    """Memory runs out in step 6 of 8; the run of 8 steps then starts again."""
    trainer = tiny_trainer(tmp_path, TAID(Linear(0.2)), steps=8, auto_find_batch_size=True)
    compute, calls = trainer.compute_loss, []

    def out_of_memory(*args, **kwargs):
        calls.append(len(args[1]["labels"]))
        if len(calls) == 6:
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        return compute(*args, **kwargs)

    trainer.compute_loss = out_of_memory
    trainer.train()
    assert calls == [4] * 6 + [3] * 8  # the Trainer tries 0.9 of a batch, 3 rows here
    assert ts(trainer) == pytest.approx([0.2 + 0.1 * step for step in range(1, 9)])
    assert trainer.objective.state.updates == trainer.state.global_step == 8


def test_a_resumed_run_is_not_reset(tmp_path):
    first = tiny_trainer(tmp_path, TAID(Linear(0.2)), steps=8, save_strategy="steps", save_steps=4)
    first.train()
    again = tiny_trainer(tmp_path, first.objective, steps=8)  # whose state is the end of the first run
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert ts(again)[4:] == ts(first)[4:] and again.objective.state.updates == 8
    assert all((weights(again.model)[k] == v).all() for k, v in weights(first.model).items())
