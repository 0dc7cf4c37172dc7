"""Text as people have it → tokens and labels: conversations, prompts with completions, plain text.

A label is the token where it is to be learned, else IGNORE. Of a conversation each assistant's turn is learned,
up to the token that ends it, and nothing else: neither what the template writes before it nor what follows.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import jinja2
import tokenizers
from transformers.utils.chat_template_utils import render_jinja_template

from taid.data import IGNORE, tokens_of

LAYOUTS = {
    ("input_ids",): f"tokens, with 'labels' ({IGNORE} where nothing is to be learned) or all of them learned",
    ("prompt_ids", "response_ids"): "tokens, of `taid.data.encode`",
    ("messages",): "a conversation, [{'role': 'user', 'content': …}, {'role': 'assistant', 'content': …}]",
    ("prompt", "completion"): "two strings, joined as they stand, or two lists of messages",
    ("text",): "a string, all of it learned",
}
"""Columns → what they hold; the first that fits counts. Of prompt and completion the completion is learned. Further
columns are left alone, but "tools", which goes to the chat template."""
TOKENISED = (("prompt_ids", "response_ids"), ("input_ids",))
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Unusable(ValueError):
    """A row from which nothing can be learned, and why."""


def layout(columns: Iterable[str]) -> tuple[str, ...]:
    """Which of LAYOUTS a row with these columns has. Raises ValueError that lists them."""
    columns = list(columns)
    for known in LAYOUTS:
        if set(known) <= set(columns):
            return known
    lines = "\n".join(f"    {' and '.join(known)}: {meaning}" for known, meaning in LAYOUTS.items())
    raise ValueError(
        f"no text to learn in the columns {', '.join(map(repr, columns))}. A row has one of\n{lines}\n"
        "Rename your columns so, or pass a data_collator of your own that makes 'input_ids' and 'labels'."
    )


def check_tokenizer(tokenizer) -> None:
    """Raises TypeError for the name of a tokenizer, and for one of the library tokenizers, which knows no padding."""
    if isinstance(tokenizer, str | Path):
        raise TypeError(
            f"processing_class is {str(tokenizer)!r}: load it, AutoTokenizer.from_pretrained({str(tokenizer)!r})"
        )
    if isinstance(tokenizer, tokenizers.Tokenizer):
        raise TypeError(
            "processing_class is a tokenizers.Tokenizer: pass transformers' PreTrainedTokenizerFast(tokenizer_object=…, "
            "pad_token=…, eos_token=…)"
        )


class Encoder:
    """Row of text → ({"input_ids", "labels"}, whether they were cut after `max_length` tokens).

    What follows the last label is left out.

    Raises Unusable for a row without anything to learn, ValueError for one of another layout.
    """

    def __init__(self, tokenizer, max_length: int):
        check_tokenizer(tokenizer)
        self.tokenizer, self.max_length, self.template = tokenizer, max_length, Template(tokenizer)

    def __call__(self, row: Mapping) -> tuple[dict[str, list[int]], bool]:
        kind = layout(row)
        if missing := [column for column in kind if row[column] is None]:
            raise Unusable(f"no {' and no '.join(missing)} (None)")
        try:
            ids, labels = self._encode(kind, row)
        except (TypeError, UnicodeError) as error:  # half of a surrogate pair, which JSON can hold
            raise Unusable(f"text that the tokenizer cannot take ({error})") from error
        learned = [i for i, label in enumerate(labels[: self.max_length]) if label != IGNORE and i > 0]
        if not learned:
            raise Unusable(f"nothing to learn in the first {self.max_length} tokens (max_length)")
        stop = learned[-1] + 1
        return {"input_ids": ids[:stop], "labels": labels[:stop]}, len(ids) > self.max_length

    def _encode(self, kind: tuple[str, ...], row: Mapping) -> tuple[list[int], list[int]]:
        if kind in TOKENISED:
            return tokens_of(row)
        if self.tokenizer is None:
            raise ValueError(
                f"{' and '.join(kind)} have to be made tokens of: pass processing_class=tokenizer"
            )
        tools = _tools(row.get("tools"))
        values = [row[column] for column in kind]
        if kind == ("messages",) and _is_list(values[0]):
            return conversation(self.template, values[0], 0, tools)
        if kind == ("prompt", "completion") and all(map(_is_list, values)):
            return conversation(self.template, [*values[0], *values[1]], len(values[0]), tools)
        if kind != ("messages",) and all(isinstance(value, str) for value in values):
            return plain(self.tokenizer, *values) if len(values) == 2 else plain(self.tokenizer, "", *values)
        types = " and ".join(type(value).__name__ for value in values)
        raise Unusable(f"{types} in {' and '.join(kind)}, which should be {LAYOUTS[kind]}")


def plain(tokenizer, prompt: str, completion: str) -> tuple[list[int], list[int]]:
    """A prompt as the tokenizer has it at inference, its completion, and the sequence's end, which are learned.

    Raises Unusable for an empty text, and where a tokenizer that puts a space before a text joins the completion's
    first token with the prompt's last.
    """
    if not prompt and not completion:
        raise Unusable("empty text")
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    before = _without_end(_begun(tokenizer, prompt), end) if prompt else []
    alone = tokenizer(completion, add_special_tokens=False)["input_ids"] if prompt else []
    if not prompt or _puts_space(tokenizer, completion, alone):
        whole = _begun(tokenizer, prompt + completion)
        if whole[: len(before)] != before:
            raise Unusable(
                "a completion whose first token is one with the end of its prompt: let the completion begin with the "
                "space between them, or the prompt end before that token"
            )
        alone = whole[len(before) :]
    after = _without_end(alone, end)
    return [*before, *after, *end], [*[IGNORE] * len(before), *after, *end]


def _begun(tokenizer, text: str) -> list[int]:
    """The tokens of a text that begins a sequence; one that writes the token of the beginning itself has it once."""
    bos = tokenizer.bos_token
    return tokenizer(text, add_special_tokens=not (bos and text.startswith(bos)))["input_ids"]


def _puts_space(tokenizer, text: str, ids: list[int]) -> bool:
    """Whether the tokens [n] of a text begin with a space that it has not, as those of Llama 2 and Mistral 7B do."""
    written = "".join(tokenizer.convert_ids_to_tokens(ids))
    spaces = len(written) - len(written.lstrip("▁Ġ"))  # as SentencePiece and byte-level BPE write them
    return spaces > len(text) - len(text.lstrip(" "))


def _tools(tools):
    """The column "tools", which may be written as JSON."""
    try:
        return _without_none(json.loads(tools) if isinstance(tools, str) else tools) or None
    except json.JSONDecodeError as error:
        raise Unusable(f"tools that are no JSON ({error})") from error


def _is_list(value) -> TypeGuard[list]:
    return isinstance(value, list | tuple)


def _without_end(ids: list[int], end: list[int]) -> list[int]:
    return ids[:-1] if end and ids[-1:] == end else ids


def conversation(
    template: "Template", messages: list[dict], first: int, tools
) -> tuple[list[int], list[int]]:
    """Tokens in the tokenizer's chat template; the assistants' turns from message `first` on are learned.

    Where a turn is, the template's own {% generation %} says; of a template without it, what it writes before
    the turn does, as a prompt, and that has to be how the whole begins, in text and in tokens.
    """
    turns = [_message(message) for message in messages]
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()  # nothing after the last answer is learned
    answers = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not any(i >= first for i in answers):
        raise Unusable("no turn of an assistant to learn")
    ids, spans = template.turns(turns, answers, tools)
    last = template.turn_end(ids, spans[-1], template.special)
    ending = template.special & {ids[last - 1]}
    labels = [IGNORE] * len(ids)
    for i, (start, stop) in zip(answers, spans, strict=True):
        if i >= first:
            stop = template.turn_end(ids, (start, stop), ending)
            labels[start:stop] = ids[start:stop]
    ids, labels = ids[:last], labels[:last]
    end = template.tokenizer.eos_token_id
    if not ending and end is not None:  # no token of the template's ends a turn, so the sequence's end does
        ids, labels = [*ids, end], [*labels, end]
    return ids, labels


def _common(a, b) -> int:
    """How long the common beginning of two sequences is."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _message(message: dict) -> dict:
    """Without the Nones that a table of differing messages is filled up with."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise Unusable("a message without a role: a message is {'role': …, 'content': …}")
    message = _without_none(message)
    calls = message.get("tool_calls", [])
    if not (_is_list(calls) and all(isinstance(call, dict) for call in calls)):
        raise Unusable("a message whose tool_calls are no list of calls")
    if "content" not in message and not message.get("tool_calls"):
        raise Unusable("a message without content")
    if _is_list(parts := message.get("content")):  # templates for text alone would write the list as it is
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
            raise Unusable(
                "a message with more than text: images and sounds need a data_collator of their own"
            )
        message["content"] = "".join(part["text"] for part in parts)
    elif not isinstance(parts, str | None):
        raise Unusable(f"a message whose content is of type {type(parts).__name__}")
    return message


def _without_none(value):
    if isinstance(value, dict):
        return {name: _without_none(item) for name, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if _is_list(value) else value


class Template:
    """A tokenizer's chat template at work."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items() if tokenizer else ()
        self.special = {i for i, token in added if token.special}

    def turns(self, turns: list[dict], answers: list[int], tools) -> tuple[list[int], list[tuple[int, int]]]:
        """The tokens of a conversation, and where in them each of the `answers` is, [start, stop)."""
        if not self.tokenizer.chat_template:
            raise ValueError(
                "the tokenizer has no chat template for messages: set tokenizer.chat_template, take the tokenizer "
                "of a chat model, or give 'prompt' and 'completion' as strings"
            )
        source = self.tokenizer.get_chat_template(tools=tools)
        text, marked = self._render(source, turns, tools, mark=bool(GENERATION.search(source)))
        ids = self._tokens(text)
        if marked is None:
            return ids, [self._span(source, turns, i, tools, text, ids) for i in answers]
        if len(marked) != len(answers):
            raise Unusable("other turns of an assistant than the chat template marks with {% generation %}")
        return ids, [
            (self._prompt(ids, text[:start]), self._shared(ids, text[:end])) for start, end in marked
        ]

    def _render(self, source: str, turns: list[dict], tools, mark: bool = False, **options):
        """The text, and where the template marks the assistant's turns in it [characters]."""
        try:
            rendered: Any = render_jinja_template(
                [turns],
                tools=tools,
                chat_template=source,
                return_assistant_tokens_mask=mark,
                **self.tokenizer.special_tokens_map,
                **options,
            )
        except (jinja2.TemplateError, TypeError, KeyError) as error:
            raise Unusable(f"a conversation that the chat template refuses ({error})") from error
        [text], marked = rendered
        return text, marked[0] if mark else None

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _prompt(self, ids: list[int], text: str) -> int:
        """The number of tokens of a prompt, with which the conversation's have to begin."""
        before = self._tokens(text)
        if ids[: len(before)] != before:
            raise Unusable("a turn whose first token is one with the end of its prompt")
        return len(before)

    def _shared(self, ids: list[int], text: str) -> int:
        """How many tokens of a text the conversation begins with."""
        return _common(ids, self._tokens(text))

    def _span(self, source, turns: list[dict], i: int, tools, text: str, ids: list[int]) -> tuple[int, int]:
        prompt, _ = self._render(source, turns[:i], tools, add_generation_prompt=True)
        so_far, _ = self._render(source, turns[: i + 1], tools)
        if not text.startswith(prompt):
            raise Unusable(
                "a conversation whose chat template writes another prompt than the whole begins with: mark the turns "
                "of the assistant in the template with {% generation %}"
            )
        answer = text[len(prompt) : _common(text, so_far)]
        calls = [call.get("function", call).get("name") for call in turns[i].get("tool_calls", [])]
        said = [turns[i].get("content"), *calls]
        if not all(part.strip() in answer for part in said if isinstance(part, str)):
            raise Unusable("a turn of an assistant that the chat template leaves out or changes")
        return self._prompt(ids, prompt), self._shared(ids, so_far)

    def turn_end(self, ids: list[int], span: tuple[int, int], endings: set[int]) -> int:
        """Where a turn ends: after the last special token in it, if but space follows; else after the one of
        `endings` that follows on it; else where it stops."""
        start, stop = span
        last = stop
        while last > start and ids[last - 1] not in self.special and self._is_space(ids[last - 1]):
            last -= 1
        if last > start and ids[last - 1] in self.special:
            return last
        return stop + 1 if endings.intersection(ids[stop : stop + 1]) else stop

    def _is_space(self, token: int) -> bool:
        return not self.tokenizer.decode([token]).strip()
