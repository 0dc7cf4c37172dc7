"""MT-Bench: 80 questions of two turns, a judge that gives each answer 1 to 10 points (Zheng et al. 2023, arXiv 2306.05685).

The protocol is FastChat's `llm_judge` in its mode "single": the student answers at the temperature of the question's
category; the judge sees the question, the answer and, for mathematics, reasoning and code, a reference answer, for the
second turn the whole conversation, and ends with "Rating: [[5]]". Questions, reference answers and the judge's prompts
are FastChat's own files (Apache-2.0), in a folder as its fastchat/llm_judge/data (FILES).
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from taid.evaluation.replies import Endpoint, Kept, LocalModel, Reply, Request

QUESTIONS, REFERENCES, JUDGE_PROMPTS = (
    "mt_bench/question.jsonl",  # {"question_id", "category", "turns": [first, second]}
    "mt_bench/reference_answer/gpt-4.jsonl",  # {"question_id", "choices": [{"turns": [first, second]}]}
    "judge_prompts.jsonl",  # {"name", "system_prompt", "prompt_template"}
)
FILES = {  # → SHA-256 of what was published: other questions are another benchmark
    QUESTIONS: "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7",
    REFERENCES: "f957a5bc977badb66885ec970e6cd08527845780313f0995764260e5777b9b3f",
    JUDGE_PROMPTS: "fd283293406d024f44c174b094ef48031d0687a4682fd3a56b29b138f80281b6",
}
# FastChat's common.py: the temperature of an answer by category (0: greedy), 0.7 for any other
TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
OTHER_TEMPERATURE = 0.7
REFERENCED = ("math", "reasoning", "coding")  # categories whose judge sees a reference answer
ANSWER_TOKENS, JUDGMENT_TOKENS = 1024, 2048  # at most, of gen_model_answer.py and common.py
PROMPTS = {  # (referenced, turn) → the judge's prompt
    (False, 1): "single-v1",
    (True, 1): "single-math-v1",
    (False, 2): "single-v1-multi-turn",
    (True, 2): "single-math-v1-multi-turn",
}
RATING = (
    re.compile(r"\[\[(\d+\.?\d*)\]\]"),
    re.compile(r"\[(\d+\.?\d*)\]"),
)  # the second where the first fails


@dataclass(frozen=True)
class Question:
    number: int
    category: str
    turns: tuple[str, str]
    references: tuple[str, str] | None  # where the judge sees them


@dataclass(frozen=True)
class Bench:
    questions: tuple[Question, ...]
    prompts: dict[str, dict[str, str]]  # the judge's, by name: "system_prompt", "prompt_template"
    changed: tuple[str, ...]  # those of FILES that are not as published


@dataclass(frozen=True)
class Scores:
    """Points from 1 to 10 by task ("first turn", "second turn", "average" of all, each category), of the answers
    that the judge rated; `unrated` is the number of the others, which FastChat leaves out as well."""

    points: dict[str, float]
    unrated: int


def read(folder: Path) -> Bench:
    """The questions and prompts in a folder. Raises ValueError, naming file and question, for what is missing."""
    references = {line["question_id"]: line["choices"][0]["turns"] for line in _lines(folder, REFERENCES)}
    questions = [_question(line, references) for line in _lines(folder, QUESTIONS)]
    if not questions or len({question.number for question in questions}) < len(questions):
        raise ValueError(f"{folder / QUESTIONS}: no question, or a question_id twice")
    prompts = {line["name"]: line for line in _lines(folder, JUDGE_PROMPTS)}
    if lacking := set(PROMPTS.values()) - prompts.keys():
        raise ValueError(f"{folder / JUDGE_PROMPTS} has no {', '.join(sorted(lacking))}")
    changed = (name for name, sha256 in FILES.items() if _sha256(folder / name) != sha256)
    return Bench(tuple(questions), prompts, tuple(changed))


def _question(line: dict, references: dict[int, list[str]]) -> Question:
    number, category, turns = line["question_id"], line["category"], line["turns"]
    if len(turns) != 2:
        raise ValueError(f"question {number} has {len(turns)} turns, not 2")
    if category not in REFERENCED:
        return Question(number, category, tuple(turns), None)
    if len(references.get(number, ())) != 2:
        raise ValueError(
            f"question {number} ({category}) has no reference answer of two turns in {REFERENCES}"
        )
    first, second = references[number]
    return Question(number, category, tuple(turns), (first, second))


def _lines(folder: Path, name: str) -> list[dict]:
    path = folder / name
    if not path.exists():
        raise ValueError(
            f"there is no {path}: without --data the files are fetched; of your own, give a folder as FastChat's "
            "fastchat/llm_judge/data"
        )
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} holds a line that is no JSON ({error})") from error


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def answer_request(model: str, question: Question, first: str | None = None) -> Request:
    """The first turn, or after an answer to it the second."""
    messages = [{"role": "user", "content": question.turns[0]}]
    if first is not None:
        messages += [{"role": "assistant", "content": first}, {"role": "user", "content": question.turns[1]}]
    about = _about(question, 1 if first is None else 2)
    temperature = TEMPERATURES.get(question.category, OTHER_TEMPERATURE)
    return Request(model, tuple(messages), temperature, ANSWER_TOKENS, about)


def judgment_request(
    judge: str, bench: Bench, question: Question, answers: Sequence[str], turn: int
) -> Request:
    """The judge's task, at temperature 0: the first turn alone, or both with the second to be rated."""
    prompt = bench.prompts[PROMPTS[question.references is not None, turn]]
    texts = {"question": question.turns[0], "answer": answers[0]}
    for i, kept in enumerate(
        zip(question.turns, answers, question.references or ("", ""), strict=True), start=1
    ):
        texts |= dict(zip((f"question_{i}", f"answer_{i}", f"ref_answer_{i}"), kept, strict=True))
    messages = (
        {"role": "system", "content": prompt["system_prompt"]},
        {"role": "user", "content": prompt["prompt_template"].format(**texts)},
    )
    about = _about(question, turn) | {"prompt": prompt["name"]}
    return Request(judge, messages, 0.0, JUDGMENT_TOKENS, about)


def _about(question: Question, turn: int) -> dict:
    return {"question_id": question.number, "category": question.category, "turn": turn}


def answer(bench: Bench, name: str, ask: Callable, kept: Kept) -> list[tuple[str, str]]:
    """The two answers to each question, of an Endpoint or a LocalModel whose replies are kept under `name`."""
    firsts = [r.text for r in kept.replies([answer_request(name, q) for q in bench.questions], ask)]
    seconds = kept.replies(
        [answer_request(name, q, first) for q, first in zip(bench.questions, firsts, strict=True)], ask
    )
    return [(first, second.text) for first, second in zip(firsts, seconds, strict=True)]


def judgment_requests(bench: Bench, judge: str, answers: Sequence[tuple[str, str]]) -> list[Request]:
    """Both turns of each question, in their order."""
    return [
        judgment_request(judge, bench, question, both, turn)
        for question, both in zip(bench.questions, answers, strict=True)
        for turn in (1, 2)
    ]


def rating(judgment: str) -> float | None:
    """The points in a judgment; None where it gives none from 1 to 10."""
    for pattern in RATING:
        if found := pattern.search(judgment):
            points = float(found[1])
            return points if 1 <= points <= 10 else None
    return None


def scores(requests: Sequence[Request], judgments: Sequence[Reply]) -> Scores:
    """Means of the ratings. Raises ValueError where a task has none at all."""
    tasks: dict[str, list[float | None]] = {}
    for request, judgment in zip(requests, judgments, strict=True):
        turn = ("first turn", "second turn")[request.about["turn"] - 1]
        for task in (turn, "average", request.about["category"]):
            tasks.setdefault(task, []).append(rating(judgment.text))
    rated = {task: [points for points in found if points is not None] for task, found in tasks.items()}
    if empty := [task for task, found in rated.items() if not found]:
        raise ValueError(
            f'the judge gave no rating at all for {", ".join(empty)}: it has to end with "Rating: [[5]]"; read its '
            "judgments, and take a stronger judge"
        )
    return Scores({task: mean(found) for task, found in rated.items()}, tasks["average"].count(None))


def evaluate(model, tokenizer, judge: Endpoint, bench: Bench, folder: Path) -> Scores:
    """MT-Bench of a model at hand. Answers and judgments are kept in `folder`, and none is made or paid for twice."""
    local = LocalModel(model, tokenizer)
    answers = answer(bench, local.name(), local, Kept(folder / "answers.jsonl"))
    requests = judgment_requests(bench, judge.model, answers)
    return scores(requests, Kept(folder / "judgments.jsonl").replies(requests, judge))
