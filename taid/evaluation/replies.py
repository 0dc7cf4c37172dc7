"""Replies to chat requests, by a model at hand or behind an OpenAI-compatible endpoint; kept, so that none is asked for twice.

kept = Kept(folder / "answers.jsonl")
replies = kept.replies(requests, Endpoint("gpt-4"))       # or LocalModel(model, tokenizer)
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from taid.evaluation.generation import generate, room
from taid.files import locked, write_whole
from taid.results import digest
from taid.teacher.digests import digest_of_model

CHARACTERS_PER_TOKEN = 4  # of English, about: for what is not asked yet, or not counted by the endpoint
GARBLED = 5  # times that a reply without a text in it is asked for again


class NoReply(ValueError):
    """An endpoint did not answer; the message says what it said and what to do."""


@dataclass(frozen=True)
class Request:
    """What is asked, and of which model: equal requests have one reply. `about` is for readers of the file."""

    model: str
    messages: tuple[dict[str, str], ...]
    temperature: float
    max_tokens: int
    about: Mapping[str, Any] = field(compare=False)

    @property
    def key(self) -> str:
        return digest(_fields(self))

    def tokens(self) -> int:
        """About how many tokens the messages are."""
        return sum(len(message["content"]) for message in self.messages) // CHARACTERS_PER_TOKEN


@dataclass(frozen=True)
class Reply:
    """A text, and the tokens that it took, counted by who wrote it."""

    text: str
    prompt_tokens: int
    completion_tokens: int


class Kept:
    """Replies in a file of JSON lines; one process at a time writes it, and it is whole after each reply.

    Raises ValueError for a line that is no reply.
    """

    def __init__(self, path: Path):
        self.path = path
        self.lines: dict[str, dict] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._read()

    def _read(self) -> None:
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                record = json.loads(line)
                self.lines[record["key"]] = record
                _reply(record)
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"{self.path}, line {number} is no reply ({error!r}): mend or delete it"
                ) from error

    def missing(self, requests: Iterable[Request]) -> list[Request]:
        """Those without a reply, each once."""
        named = {request.key: request for request in requests}
        return [request for key, request in named.items() if key not in self.lines]

    def replies(self, requests: Sequence[Request], ask: Callable) -> list[Reply]:
        """A reply to each request; `ask` gives (request, reply) for those that are not here yet, in any order.

        What was answered before an error is kept.
        """
        with locked(self.path.parent):
            self._read()  # another process may have written since
            for request, reply in ask(self.missing(requests)):
                self.lines[request.key] = (
                    {"key": request.key} | dict(request.about) | _fields(request) | asdict(reply)
                )
                lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in self.lines.values())
                write_whole(self.path, "".join(lines))
        return [_reply(self.lines[request.key]) for request in requests]


def _fields(request: Request) -> dict:
    return {name: value for name, value in asdict(request).items() if name != "about"}


def _reply(record: dict) -> Reply:
    return Reply(**{name: record[name] for name in Reply.__dataclass_fields__})


@dataclass(frozen=True)
class Endpoint:
    """A model behind an address of the OpenAI protocol: several requests at a time, each tried again with back-off.

    The client of `openai` tries again after a dropped connection, a stall of `timeout` seconds and the codes 408,
    409, 429 and 5xx, after 0.5 s, 1 s, … 8 s, or the time that the server names. `url` None: `$OPENAI_BASE_URL`, else
    OpenAI's own; the key is `$OPENAI_API_KEY`.

    Raises NoReply where that does not help, or another try would not; what was answered until then is kept.
    """

    model: str
    url: str | None = None
    concurrency: int = 4
    retries: int = 12
    timeout: float = 300  # seconds

    def __call__(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Reply]]:
        if not requests:
            return
        client, pool = self._client(), ThreadPoolExecutor(self.concurrency)
        waiting = {pool.submit(self._ask, client, request): request for request in requests}
        try:
            for future in as_completed([*waiting]):
                if future.exception():
                    break
                yield waiting.pop(future), future.result()
        finally:
            pool.shutdown(cancel_futures=True)  # those on their way are paid for: waited for, and kept
        errors = []
        for future, request in waiting.items():
            if future.cancelled():
                continue
            if error := future.exception():
                errors.append(error)
            else:
                yield request, future.result()
        if errors:
            raise errors[0]

    def _client(self):
        try:
            import openai
        except ImportError:
            raise NoReply("endpoints are asked by the package openai: pip install openai") from None
        try:
            return openai.OpenAI(base_url=self.url, max_retries=self.retries, timeout=self.timeout)
        except openai.OpenAIError as error:
            raise NoReply(
                f"{error} (for a server of your own that wants no key, OPENAI_API_KEY=none)"
            ) from None

    def _ask(self, client, request: Request) -> Reply:
        import openai

        for attempt in range(GARBLED):
            try:
                found = client.chat.completions.create(
                    model=request.model,
                    messages=list(request.messages),
                    temperature=request.temperature,
                    max_tokens=request.max_tokens,
                )
            except json.JSONDecodeError:
                found = None
            except openai.APIError as error:
                status = getattr(error, "status_code", 0)
                said = " ".join(str(error.message).split())[:300]
                raise NoReply(
                    f"{request.model} at {client.base_url}: {f'status {status}, ' if status else ''}{said}. "
                    f"{ADVICE.get(status, OTHERWISE)}; what was answered is kept, the same command goes on"
                ) from error
            if (reply := _of_completion(found, request)) is not None:
                return reply
            time.sleep(min(0.1 * 2**attempt, 8))
        raise NoReply(
            f"{request.model} at {client.base_url} answered {GARBLED} times without a text ({str(found)[:200]!r}): "
            "is it the address of an OpenAI-compatible API, …/v1? What was answered is kept"
        )


ADVICE = {
    400: "See what the server says of the request",
    401: "Set OPENAI_API_KEY to a key of this endpoint",
    403: "The key may not use this model",
    404: "Check the name of the model, and that the address ends where the API begins, …/v1",
    429: "Wait, or ask fewer at a time (concurrency)",
}
OTHERWISE = "Check that the server runs and that its address is right"


def _of_completion(found, request: Request) -> Reply | None:
    """The reply in a completion; None where there is no text in it. Tokens are estimated where none are counted."""
    choices = getattr(found, "choices", None)
    message = getattr(choices[0], "message", None) if choices else None
    text = getattr(message, "content", None)
    if not isinstance(text, str):
        return None
    usage = getattr(found, "usage", None)
    prompt = getattr(usage, "prompt_tokens", None)
    completion = getattr(usage, "completion_tokens", None)
    return Reply(
        text,
        request.tokens() if prompt is None else prompt,
        len(text) // CHARACTERS_PER_TOKEN if completion is None else completion,
    )


@dataclass(frozen=True)
class LocalModel:
    """A model at hand, by its tokenizer's chat template; the draw depends on the requests and the batch alone.

    A response ends where the model has no more positions. Raises ValueError for a tokenizer without a template,
    and for a conversation that leaves no position for a response.
    """

    model: Any
    tokenizer: Any
    batch_size: int = 16

    def name(self, called: str = "model") -> str:
        """The name under which its replies are kept: other weights never get them."""
        return f"{called}@{digest_of_model(self.model)[:12]}"

    def __call__(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Reply]]:
        prompts = [self._prompt(request) for request in requests]
        rooms = [self._room(prompt, r) for prompt, r in zip(prompts, requests, strict=True)]
        alike: dict[tuple[float, int], list[int]] = {}
        for i, request in enumerate(requests):
            alike.setdefault((request.temperature, rooms[i]), []).append(i)
        for (temperature, left), rows in alike.items():
            for start in range(0, len(rows), self.batch_size):
                chosen = rows[start : start + self.batch_size]
                texts = generate(
                    self.model,
                    self.tokenizer,
                    [{"prompt_ids": prompts[i]} for i in chosen],
                    left,
                    temperature,
                    batch_size=self.batch_size,
                )
                for i, text in zip(chosen, texts, strict=True):
                    length = len(self.tokenizer(text, add_special_tokens=False)["input_ids"])
                    yield requests[i], Reply(text, len(prompts[i]), length)

    def _prompt(self, request: Request) -> list[int]:
        if not self.tokenizer.chat_template:
            raise ValueError(
                "the tokenizer has no chat template: set tokenizer.chat_template to the one it was trained with"
            )
        return self.tokenizer.apply_chat_template(
            list(request.messages), add_generation_prompt=True, return_dict=True
        )["input_ids"]

    def _room(self, prompt: list[int], request: Request) -> int:
        try:
            return room(self.model, len(prompt), request.max_tokens)
        except ValueError as error:
            raise ValueError(f"{error} ({dict(request.about)})") from None
