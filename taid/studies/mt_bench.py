"""MT-Bench of a student: its answers, the judgments, the scores; tokens and cost before and after.

    export OPENAI_API_KEY=…
    make mt-bench MODEL=./distilled JUDGE=gpt-4 PRICE="30 60"
    python -m taid.studies.mt_bench --model ./distilled --judge gpt-4 --price 30 60 --dry-run
    python -m taid.studies.mt_bench --model student --model-url http://localhost:8000/v1 --judge gpt-4

The student is a folder or a name on the hub, or whatever answers at --model-url. All replies are kept in --output,
runs/mt_bench/<model> by default: the same command goes on where another stopped, and asks nothing twice.
"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError

from taid.command.hub import load_model, load_tokenizer
from taid.evaluation import mt_bench
from taid.evaluation.replies import CHARACTERS_PER_TOKEN, Endpoint, Kept, LocalModel, Reply, Request
from taid.studies import sources
from taid.studies.jobs import positive


def parser() -> ArgumentParser:
    made = ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument(
        "--model", required=True, help="the student: folder, hub name, or its name at --model-url"
    )
    made.add_argument("--model-url", help="an OpenAI-compatible endpoint that serves the student, …/v1")
    made.add_argument("--judge", default="gpt-4", help="(default: gpt-4, the paper's)")
    made.add_argument("--judge-url", help="its endpoint (default: $OPENAI_BASE_URL, else OpenAI's)")
    made.add_argument(
        "--data", type=Path, help="a folder as FastChat's fastchat/llm_judge/data (default: fetched)"
    )
    made.add_argument(
        "--output", type=Path, help="where the replies are kept (default: runs/mt_bench/<model>)"
    )
    made.add_argument("--concurrency", type=positive, default=4, help="requests at a time (default: 4)")
    made.add_argument(
        "--price",
        type=float,
        nargs=2,
        metavar=("IN", "OUT"),
        help="of the judge, dollars for a million tokens",
    )
    made.add_argument("--dry-run", action="store_true", help="say what it would take, and stop")
    return made


def before(requests: Sequence[Request], price: Sequence[float] | None) -> str:
    """What requests take at most: prompts by their characters, responses by their limit."""
    prompt = sum(request.tokens() for request in requests)
    completion = sum(request.max_tokens for request in requests)
    cost = f", at most ${dollars(prompt, completion, price):.2f}" if price else ""
    return f"{len(requests)} judgments to ask, about {prompt:,} tokens in, at most {completion:,} out{cost}"


def after(replies: Sequence[Reply], price: Sequence[float] | None) -> str:
    """What replies took, as the endpoint counted."""
    prompt = sum(reply.prompt_tokens for reply in replies)
    completion = sum(reply.completion_tokens for reply in replies)
    cost = f", ${dollars(prompt, completion, price):.2f}" if price else ""
    return f"{len(replies)} judgments asked, {prompt:,} tokens in, {completion:,} out{cost}"


def dollars(prompt: int, completion: int, price: Sequence[float]) -> float:
    """`price` is for a million tokens in, and out."""
    return (prompt * price[0] + completion * price[1]) / 1e6


def table(found: mt_bench.Scores) -> str:
    lines = [f"  {task:12} {points:5.2f}" for task, points in found.points.items()]
    left_out = (
        f"\n{found.unrated} judgments without a rating are left out, as in FastChat" if found.unrated else ""
    )
    return "\n".join(["points of 10", *lines]) + left_out


def student(given: Namespace) -> tuple[str, Endpoint | LocalModel]:
    """The name that the answers are kept under, and who gives them."""
    if given.model_url:
        return given.model, Endpoint(given.model, given.model_url, given.concurrency)
    model = load_model(given.model, "model")
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]  # as transformers has it wrapped
    local = LocalModel(model, load_tokenizer(given.model))
    return local.name(Path(given.model).name), local


def run(given: Namespace) -> None:
    bench = mt_bench.read(given.data or sources.fetch("mt_bench"))
    if bench.changed:
        print(f"no scores of MT-Bench as published: {', '.join(bench.changed)} differ")
    if given.dry_run:
        longest = "x" * (mt_bench.ANSWER_TOKENS * CHARACTERS_PER_TOKEN)
        fresh = mt_bench.judgment_requests(bench, given.judge, [(longest, longest)] * len(bench.questions))
        print(f"{given.judge}: {before(fresh, given.price)}, with answers as long as can be")
        return
    folder = given.output or Path("runs/mt_bench") / Path(given.model).name
    name, ask = student(given)
    answers = mt_bench.answer(bench, name, ask, Kept(folder / "answers.jsonl"))
    requests, kept = mt_bench.judgment_requests(bench, given.judge, answers), Kept(folder / "judgments.jsonl")
    missing = kept.missing(requests)
    print(
        f"{given.judge}: {before(missing, given.price)}; kept are {len(requests) - len(missing)}", flush=True
    )
    judgments = kept.replies(requests, Endpoint(given.judge, given.judge_url, given.concurrency))
    asked = [reply for request, reply in zip(requests, judgments, strict=True) if request in missing]
    print(f"{given.judge}: {after(asked, given.price)}; all in {folder}")
    print(table(mt_bench.scores(requests, judgments)))


def main(words: Sequence[str] | None = None) -> int:
    try:
        run(parser().parse_args(words))
    # RuntimeError is torch's: of weights that are NaN, or of memory; a template's is of turns that it does not take
    except (ValueError, OSError, RuntimeError, ImportError, TemplateError, SafetensorError) as error:
        print(f"mt_bench: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mt_bench: stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
