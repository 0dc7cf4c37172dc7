"""Table 1 again, with teachers that know every accepted answer: protocol 2.

In protocol 1 (`taid.studies.instruction_tuning`) a question had one taught answer, so that the teacher was nearly
one-hot where it matters, and two opposed axes made one score. Here each accepted answer is an example of its own, the
learning rate warms up for all, and three measures stand apart, each the same for all methods:

    knowledge       10 × the share of questions whose greedy answer is accepted, a mean over verified categories
    prose           |ℓ − ℓ_human|, ℓ the judge's mean log-likelihood per token of sampled prose, a mean over judged
                    categories: what is likelier than people's is as far off as what is as much less likely
    kl_to_teacher   mean KL(teacher ‖ student) over the tokens of the test responses

`score`, by which rates are chosen, is the mean over all categories of points of 10: knowledge's, and
10 (1 − prose / (ℓ_human − ℓ_untrained)), not below 0.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import ClassVar

import torch
from transformers import PreTrainedModel

from taid import objectives
from taid.data import batches
from taid.evaluation import likelihood
from taid.evaluation.generation import distinct_bigrams, generate
from taid.logits import response_logits
from taid.studies import instruction_tuning, instructions, jobs, judge, study, zoo
from taid.studies.instruction_tuning import InstructionTuning
from taid.studies.instructions import JUDGED, VERIFIED, Instruction
from taid.studies.jobs import TUNING_SEEDS
from taid.studies.study import REFERENCES
from taid.studies.training import Training


@dataclass(frozen=True)
class Setting(instruction_tuning.Setting):
    """Everything that decides the study at one scale."""

    every_answer: bool  # is taught, not a question's first alone
    tuning_seeds: tuple[int, ...]  # rates are chosen on; never tested

    def data(self) -> instructions.Instructions:
        return instructions.build(self.size, every_answer=self.every_answer)


def _setting(of_protocol_1: instruction_tuning.Setting, **changes) -> Setting:
    return Setting(**vars(of_protocol_1) | {"every_answer": True, "question_copies": 1} | changes)


CPU = _setting(
    instruction_tuning.CPU,
    size=instructions.Size(words=260, passages=2400, validation=60, test=200),
    vocab_size=2560,  # 1,428 words, and merges for the prose
    tune_teacher=Training(700, 64, 3e-3, warmup_steps=50),
    distil=Training(400, 48, 5e-3, warmup_steps=40),  # 1.5 epochs
    learning_rates=(1e-3, 3e-3, 1e-2, 3e-2),
    tuning_seeds=TUNING_SEEDS,
    validations=40,  # DistiLLM's threshold moves at one alone
)
SMOKE = _setting(
    instruction_tuning.SMOKE,
    distil=Training(4, 8, 5e-3, warmup_steps=1),
    learning_rates=(3e-3, 1e-2),
    tuning_seeds=TUNING_SEEDS[:1],
    validations=4,
)
SETTINGS: Mapping[str, Setting] = {setting.scale: setting for setting in (SMOKE, CPU)}

TEST, SEARCH = "table1_tuned", "table1_tuned_search"
CORE = ("kl", "taid", "taid_no_adaptive", "dkd", "adaptive_kl", "skew_kl")  # on more seeds than others
METHODS = (*CORE, *(method for method in objectives.TABLE1 if method not in CORE))
SAMPLED = ("define", "kind", "synonym", "novel", "speech")  # one prompt of each is shown with its responses


@dataclass(frozen=True)
class Run(instruction_tuning.Run):
    """One student of a pair, which its teacher names."""

    known: ClassVar[Sequence[str]] = (*METHODS, *REFERENCES)
    settings: ClassVar[Mapping[str, instruction_tuning.Setting]] = SETTINGS


class EveryAnswer(InstructionTuning):
    """Knowledge, prose and what became of a teacher's many answers, of students distilled on instructions."""

    name = "every_answer"
    settings: ClassVar[Mapping[str, instruction_tuning.Setting]] = SETTINGS

    def model(self, run: instruction_tuning.Run) -> tuple[PreTrainedModel, dict[str, float]]:
        """As of every study, and of DistiLLM the "rollout_threshold" in the end."""
        model, values = super().model(run)
        if run.method == "distillm":
            values |= {"rollout_threshold": self.distilled(run)[1]["logs"]["rollout_threshold"]}
        return model, values

    def values(
        self, model: PreTrainedModel, run: instruction_tuning.Run, split: str
    ) -> dict[tuple[str, str], float]:
        """The task "average" is the mean over categories; validation only chooses: there it is all that is kept."""
        items, examples = self.source.items(split), self.source.examples(split)
        teacher, size = self.teacher_logits(run.teacher, split), len(self.source.tokenizer)
        judging = self.judge_of(run.student, run.seed, split)
        answered = self.responses(model, items, VERIFIED)
        written = self.responses(model, items, JUDGED, judge.TEMPERATURE, run.seed)
        knowledge = {category: judge.verified(*given) for category, given in answered.items()}
        prose = {c: abs(judging.likelihood(c, *given) - judging.human[c]) for c, given in written.items()}
        likeness = [
            10 * max(0.0, 1 - off / (judging.human[category] - judging.untrained[category]))
            for category, off in prose.items()
        ]
        averages = {
            "knowledge": mean(knowledge.values()),
            "prose": mean(prose.values()),
            "kl_to_teacher": likelihood.kl_to_teacher(model, teacher, examples, self.collator, size),
            "score": mean([*knowledge.values(), *likeness]),
            "held_out_loss": mean(likelihood.held_out_loss(model, examples, self.collator)),
            "distinct_bigrams": distinct_bigrams([text for _, texts in written.values() for text in texts]),
        } | self.modes(model, items)
        by_category = {"knowledge": knowledge, "prose": prose} if split != "validation" else {}
        return {(metric, "average"): value for metric, value in averages.items()} | {
            (metric, category): value for metric, by in by_category.items() for category, value in by.items()
        }

    def responses(
        self,
        model: PreTrainedModel,
        items: Sequence[Instruction],
        categories: Sequence[str],
        temperature: float = 0.0,
        seed: int = 0,
    ) -> dict[str, tuple[list, ...]]:
        """{category: (its instructions, a response to each)}; temperature 0 is greedy."""
        asked = [item for item in items if item.category in categories]
        examples = self.source.encode(asked)
        given = generate(model, self.source.tokenizer, examples, judge.MAX_NEW_TOKENS, temperature, seed)
        return judge.by_category(asked, given)

    def modes(self, model: PreTrainedModel, items: Sequence[Instruction]) -> dict[str, float]:
        """What a model makes of the questions with several accepted answers, a mean over them.

        `mode_coverage`: see `coverage`, of p(answer, its end | question). `answer_mass`: the sum of these
        probabilities, that of an accepted answer in sampling. `answer_entropy`: of the distribution of the first
        token, where the answer is decided [nats]; ln k for one that is even over k answers that begin apart.
        """
        several = [item for item in items if len(set(item.answers)) > 1]
        probabilities = self.answers(model, several)
        first = [e | {"response_ids": e["response_ids"][:1]} for e in self.source.encode(several)]
        return {
            "mode_coverage": mean(map(coverage, probabilities)),
            "answer_mass": mean(map(sum, probabilities)),
            "answer_entropy": mean(entropies(model, first, self.collator)),
        }

    def answers(self, model: PreTrainedModel, items: Sequence[Instruction]) -> list[list[float]]:
        """p(answer, its end | question) of each item's accepted answers."""
        each = [replace(item, response=answer) for item in items for answer in dict.fromkeys(item.answers)]
        examples = self.source.encode(each)
        losses = likelihood.held_out_loss(model, examples, self.collator)
        found = iter(
            [math.exp(-loss * len(e["response_ids"])) for loss, e in zip(losses, examples, strict=True)]
        )
        return [[next(found) for _ in dict.fromkeys(item.answers)] for item in items]


def samples(run: Run) -> list[tuple[str, str]]:
    """A job: (prompt, response) at the first test prompt of each category of `SAMPLED`, as measured."""
    here = at(run.scale)
    model, _ = here.model(run)
    items = [next(i for i in here.source.items("test") if i.category == category) for category in SAMPLED]
    answered = here.responses(model, items, VERIFIED)
    written = here.responses(model, items, JUDGED, judge.TEMPERATURE, run.seed)
    by_category = answered | written
    return [(item.prompt, by_category[item.category][1][0]) for item in items]


def coverage(probabilities: Sequence[float]) -> float:
    """The share of k answers whose probability is 1/(2k) or more: half of what an even teacher gives each."""
    return mean(p >= 1 / (2 * len(probabilities)) for p in probabilities)


@torch.no_grad()
def entropies(model, examples: Sequence[dict], collator, batch_size: int = 256) -> list[float]:
    """The entropy of the model's distribution of each response token [nats]."""
    model.eval()
    found: list[float] = []
    for batch in batches(examples, collator, batch_size, next(model.parameters()).device):
        logits, _ = response_logits(model, batch)
        found += torch.distributions.Categorical(logits=logits.double()).entropy().tolist()
    return found


def prepare(scale: str, pair: zoo.Pair, seeds: Iterable[int], workers: jobs.Workers | int) -> None:
    """Train and keep the models of a pair, the judge's, and what the teacher says."""
    models = [("judge", "judge", 0), ("teacher", pair.teacher, 0)]
    models += [("student", pair.student, seed) for seed in seeds]
    logits = [(pair.teacher, split) for split in ("train", "validation", "test")]
    study.prepare_all(EveryAnswer, scale, workers, models, logits)


def tuned(
    scale: str,
    pair: zoo.Pair,
    methods: Sequence[str],
    path: Path,
    workers: jobs.Workers | int,
    afresh: bool = False,
) -> dict[str, float]:
    """Method → learning rate, by the mean score on the validation prompts, see `jobs.halving`. What is committed is not
    run again, unless `afresh`."""
    setting = SETTINGS[scale]

    def run(method: str, rate: float, seed: int) -> Run:
        return Run(scale, method, pair.teacher, seed, rate)

    def fill(runs: Sequence[Run]) -> None:
        prepare(scale, pair, setting.tuning_seeds, workers)
        cells = {(run, "validation"): [SEARCH] for run in runs}
        jobs.evaluate(cells, measure, rows, path, workers, f"rates, {pair.teacher}")

    scores = jobs.searched(path, SEARCH, {"score": 1}, fill, afresh=afresh)
    return jobs.halving(dict.fromkeys(methods, setting.learning_rates), run, setting.tuning_seeds, scores)


UNITS = {  # metric -> (unit, whether higher is better); entropy is neither good nor bad
    "knowledge": ("points of 10", True),
    "prose": ("nats/token", False),
    "kl_to_teacher": ("nats/token", False),
    "score": ("points of 10", True),
    "held_out_loss": ("nats/token", False),  # a mean over examples
    "mode_coverage": ("fraction", True),
    "answer_mass": ("fraction", True),
    "answer_entropy": ("nats", False),
    "distinct_bigrams": ("fraction", True),
    "rollout_threshold": ("fraction", False),
    "train_seconds": ("seconds", False),
}
at = partial(study.at, EveryAnswer)
measure = partial(study.measure, EveryAnswer)
rows = partial(study.rows, units=UNITS)
