"""TAID-LLM at our scale (Tables 4 and 9): what does a released student owe to TAID?

One student, cut out of the teacher and healed once (the paper too starts from one checkpoint), is trained further
in two arms, each by itself: on running text, as the released model's tag says, and on instructions. Beside TAID
stand the controls that the paper's reviewers missed: KL, cross-entropy alone, and no training. Seeds differ in which
half of a pool of examples they read and in what order, not in the student.

Data, models and tasks are those of Table 2, cut anew. The instructions ask nothing that a task asks: WordNet's
categories, synonyms and opposites, and the sentence that follows one in a training document. At the paper's scale there
is one arm, its text, and all seeds start from the hub's student (`taid.studies.smollm_corpus`).
"""

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedModel

import taid
from taid import results
from taid.command.card import card
from taid.command.runs import METRICS, Settings
from taid.data import encode
from taid.evaluation import likelihood
from taid.evaluation.generation import generate
from taid.files import write_whole
from taid.studies import continued_pretraining, instructions, lm_tasks, smollm_corpus, study
from taid.studies.continued_pretraining import BATCH, ContinuedPretraining, Prose, numbered
from taid.studies.study import REFERENCES, Logits, named
from taid.studies.training import Training, save_whole

METHODS = ("sft", "kl", "taid")
PROSE = "public-domain prose (Austen, Melville, the State of the Union)"
ARMS = {"text": PROSE, "instructions": f"questions about words (WordNet) and about {PROSE}"}
BOTH = "both"  # the arm of a reference, which is trained on neither
WARMUP = 0.1  # of the steps, for all
QUESTIONS = ("category", "synonym", "opposite")  # of `taid.studies.instructions`; no task asks these
NEXT = "What does the book say after this? {}"
SENTENCE = range(5, 17)  # words of a sentence that is given or asked for
OPENING, WRITTEN = 16, 24  # tokens of a sample: given, and written at most
SAMPLES = 2  # of each arm
ARROW = " ⟶ "  # between what is given and what is written


@dataclass(frozen=True)
class Setting(continued_pretraining.Setting):
    """As of Table 2; `distil` and `instruct` give the pools of text and of instructions, of which a run reads
    `steps` batches."""

    instruct: Training
    steps: int
    words: int  # asked about, in each kind of question
    arms: ClassVar[Mapping[str, str]] = ARMS

    def source(self, folder: Path) -> "Texts":
        return Texts(self, folder)

    def phase(self, arm: str) -> Training:
        return self.distil if arm == "text" else self.instruct


CPU = Setting(
    scale="cpu",
    teacher="smollm2-135m",
    kept_layers=4,
    window=64,
    heal=Training(60, 8, 1e-3, warmup_steps=6),
    distil=Training(32, 8, 3e-4),
    instruct=Training(32, 8, 3e-4),
    steps=16,
    search_steps=8,
    learning_rates=(1e-4, 3e-4, 1e-3),
    validation=24,
    test=32,
    items=100,
    words=200,
)
SMOKE = replace(
    CPU,
    scale="smoke",
    teacher="tiny-llama",
    kept_layers=2,
    window=16,
    heal=Training(4, 4, 3e-3),
    distil=Training(8, 4, 3e-3),
    instruct=Training(8, 4, 3e-3),
    steps=4,
    search_steps=2,
    learning_rates=(3e-3, 1e-2),
    validation=4,
    test=8,
    items=12,
    words=20,
)
SETTINGS: dict[str, Any] = {s.scale: s for s in (SMOKE, CPU, smollm_corpus.PAPER["table4"])}


@dataclass(frozen=True)
class Run(continued_pretraining.Run):
    """One student of an arm, or a reference, of BOTH.

    Raises ValueError, naming the known ones, for an unknown scale, method or arm.
    """

    settings: ClassVar[Mapping[str, Any]] = SETTINGS
    arm: str

    def __post_init__(self) -> None:
        named(self.settings, self.scale, "scale")
        named(dict.fromkeys((*METHODS, *REFERENCES)), self.method, "method")
        arms = (BOTH,) if self.method in REFERENCES else self.setting.arms
        named(dict.fromkeys(arms), self.arm, f"arm of {self.method}")

    def __str__(self) -> str:
        return f"{self.arm}: {super().__str__()}"

    @property
    def training(self) -> Training:
        """The arm's phase, with a warm-up."""
        warmup, phase = round(WARMUP * self.steps), self.setting.phase(self.arm)
        return replace(phase, steps=self.steps, learning_rate=self.learning_rate, warmup_steps=warmup)


class Texts(Prose):
    """Table 2's windows and instructions, each in the splits "train" (the pool), "validation" and "test"."""

    setting: Setting

    def __init__(self, setting: Setting, folder: Path):
        super().__init__(setting, folder)
        self._examples = {f"text-{split}": windows for split, windows in self._examples.items()}
        self._examples |= {f"instructions-{split}": pairs for split, pairs in self._instructions().items()}

    def read(self, run: Run) -> list[dict]:
        """The examples of the pool that a run's seed draws, numbered as in the pool."""
        phase = run.training
        return random.Random(run.seed).sample(
            self.examples(f"{run.arm}-train"), phase.steps * phase.batch_size
        )

    def student(self, name: str, seed: int) -> PreTrainedModel:
        """The one student, whatever the seed."""
        return super().student(name, 0)

    def _instructions(self) -> dict[str, list[dict]]:
        """{split: instructions}, half of them questions about words, half about the next sentence."""
        setting, rng = self.setting, random.Random(0)
        pool = setting.instruct.steps * setting.instruct.batch_size
        counts = {"train": pool, "validation": setting.validation, "test": setting.test}
        built = instructions.build(
            instructions.Size(setting.words, passages=0, validation=setting.validation, test=setting.test)
        )
        found = {}
        for split, count in counts.items():
            asked = [(i.prompt, i.response) for i in getattr(built, split) if i.category in QUESTIONS]
            pairs = rng.sample(asked, count // 2)
            pairs += rng.sample(list(next_sentences(self.text[split])), count - count // 2)
            rng.shuffle(pairs)
            prompts, responses = zip(*pairs, strict=True)
            found[split] = encode(self.tokenizer, prompts, responses)
        return found


def next_sentences(texts: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(question with a sentence, the sentence after it), both of a length in SENTENCE."""
    for text in texts:
        sentences = lm_tasks.sentences(text)
        for first, second in itertools.pairwise(sentences):
            if all(len(sentence.split()) in SENTENCE for sentence in (first, second)):
                yield NEXT.format(first), second


class TaidLlm(ContinuedPretraining):
    """Tables 4 and 9: likelihoods on both arms' test examples, scores of the tasks, and samples."""

    name = "taid_llm"
    settings: ClassVar[Mapping[str, Any]] = SETTINGS

    def training_examples(self, run: Run) -> Any:  # type: ignore[override]
        return self.source.read(run)

    def target(self, run: Run) -> Logits:  # type: ignore[override]
        return self.teacher_logits(run.teacher, f"{run.arm}-train")

    def values(self, model: PreTrainedModel, run: Run, split: str) -> dict[tuple[str, str], float]:  # type: ignore[override]
        """Likelihoods with the arm as task, on "validation" of the run's own alone; scores and samples on "test"."""
        arms = self.setting.arms if split == "test" else (run.arm,)
        values = {
            key: value for arm in arms for key, value in self.likelihoods(model, run, arm, split).items()
        }
        return values | self.scores(model) | self.samples(model, run) if split == "test" else values

    def likelihoods(
        self, model: PreTrainedModel, run: Run, arm: str, split: str
    ) -> dict[tuple[str, str], float]:
        """Loss and KL on an arm's examples, means over tokens."""
        part, size = f"{arm}-{split}", len(self.source.tokenizer)
        examples, teacher = self.source.examples(part), self.teacher_logits(run.teacher, part)
        loss = likelihood.held_out_loss_per_token(model, examples, self.collator, BATCH)
        kl = likelihood.kl_to_teacher(model, teacher, examples, self.collator, size, BATCH)
        return {("held_out_loss", arm): loss, ("kl_to_teacher", arm): kl}

    def samples(self, model: PreTrainedModel, run: Run) -> dict[tuple[str, str], float]:
        """What the model writes, greedily, after the first test examples of each arm, as the task of its rows;
        the value is the teacher's loss on it [nats/token]."""
        tokenizer = self.source.tokenizer
        first = {arm: self.source.examples(f"{arm}-test")[:SAMPLES] for arm in self.setting.arms}
        given, asked = (
            [(e["prompt_ids"] + e["response_ids"])[:OPENING] for e in first["text"]],
            first.get("instructions", []),
        )
        shown = [tokenizer.decode(ids) for ids in given]
        shown += [question(str(tokenizer.decode(e["prompt_ids"], skip_special_tokens=True))) for e in asked]
        prompts = [{"prompt_ids": ids} for ids in [*given, *(e["prompt_ids"] for e in asked)]]
        written = generate(model, tokenizer, prompts, WRITTEN)
        ids = tokenizer(written, add_special_tokens=False)["input_ids"]
        continued = [
            prompt | {"response_ids": response or [tokenizer.eos_token_id]}
            for prompt, response in zip(prompts, ids, strict=True)
        ]
        teacher = self.source.teacher(run.teacher)
        losses = likelihood.held_out_loss(teacher, numbered(continued), self.collator, BATCH)
        return {
            ("sample_loss", f"{prompt}{ARROW}{response}"): loss
            for prompt, response, loss in zip(shown, written, losses, strict=True)
        }

    def release(self, run: Run) -> Path:
        """The folder of a run's student as others load it, with tokenizer and model card, made now unless it is
        there: `AutoModelForCausalLM.from_pretrained(folder)`."""
        folder = self.folder / "released" / f"{run.arm}-{run.method}-{run.seed}"
        if not (folder / "README.md").exists():
            student, record = self.distilled(run)
            save_whole(student, None, folder)
            self.source.tokenizer.save_pretrained(folder)
            schedule = str(getattr(run.objective(), "schedule", ""))
            page = card(self._record(run, student, record), schedule, drawn=None)
            write_whole(folder / "README.md", page)  # last: it says that the folder is whole
        return folder

    def _record(self, run: Run, student: PreTrainedModel, record: dict[str, Any]) -> dict[str, Any]:
        """What the card of a run is made of, as of `taid.command.runs`."""
        training, found = run.training, self.likelihoods(student, run, run.arm, "validation")
        measured = {"eval_loss": found["held_out_loss", run.arm], "eval_kl": found["kl_to_teacher", run.arm]}
        settings = Settings(
            student=run.student,
            dataset=self.setting.arms[run.arm],
            teacher=run.teacher if run.objective().uses_teacher else None,
            method=run.method,
            method_options=run.options or None,
            steps=run.steps,
            batch_size=training.batch_size,
            learning_rate=run.learning_rate,
            seed=run.seed,
            training={"warmup_steps": training.warmup_steps, "lr_scheduler_type": "cosine"},
        )
        return {
            "settings": asdict(settings),
            "taid": taid.__version__,
            "rows": [
                training.steps * training.batch_size,
                len(self.source.examples(f"{run.arm}-validation")),
            ],
            "steps": run.steps,
            "seconds": record["seconds"],
            "metrics": {METRICS[name]: value for name, value in measured.items()},
            "provenance": asdict(results.provenance(Path(taid.__file__).parent)),
        }


def question(chat: str) -> str:
    """The question alone, of a chat without its special tokens."""
    return chat.strip().removesuffix("assistant").strip().rpartition("\n")[2]


UNITS = continued_pretraining.UNITS | {"sample_loss": ("nats/token", False)}  # the teacher's; over tokens
at = partial(study.at, TaidLlm)
measure = partial(study.measure, TaidLlm)
rows = partial(study.rows, units=UNITS)
