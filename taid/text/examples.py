"""Data sets as people have them → examples of tokens: a list of rows, datasets.Dataset, streams of either kind."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path

from torch.utils.data import IterableDataset, get_worker_info
from transformers import DataCollatorForSeq2Seq, DataCollatorWithFlattening, DataCollatorWithPadding

from taid.data import IGNORE, Collator, KeepEnds, keeping_ends, pack_documents, tokens_of
from taid.logits import embeddings_of, position_limit
from taid.text.chat import LAYOUTS, TOKENISED, Encoder, Unusable, layout

PADDING = (DataCollatorForSeq2Seq, DataCollatorWithPadding, DataCollatorWithFlattening, KeepEnds)
# Columns of TRL and of chat templates: 0 where nothing is to be learned
MASKS = ("completion_mask", "assistant_mask", "assistant_masks", "loss_mask")
TOGETHER = 1000  # rows of a data set that are packed with one another
MAX_LENGTH = 1024  # where no max_length is given and the models have as many positions


def _columns_of(data) -> set[str]:
    """The columns of a data set; none are known of a stream, or of what has no first row."""
    if not isinstance(data, Sequence) and not hasattr(data, "column_names"):
        return set()
    return set(getattr(data, "column_names", None) or (isinstance(data, Sequence) and data and data[0]) or ())


def _holds_text(columns: set[str]) -> bool:
    kinds = [known for known in LAYOUTS if set(known) <= columns]
    return bool(kinds) and kinds[0] not in TOKENISED


def _check_columns(columns: Iterable[str], name: str) -> None:
    """Raises ValueError for columns beside tokens that say what is learned, or where documents begin, in another
    form than is read here: `remove_unused_columns` would drop them, and all would be learned."""
    columns = set(columns)
    if "labels" not in columns and (masks := [mask for mask in MASKS if mask in columns]):
        raise ValueError(
            f"{name} has {' and '.join(masks)}, and no labels: add 'labels', the input_ids, but {IGNORE} where a mask is 0"
        )
    if "seq_lengths" in columns and "position_ids" not in columns:
        raise ValueError(
            f"{name} has rows of several documents, with seq_lengths: add 'position_ids', counted anew in each, or "
            "leave them unpacked and pass packing=True"
        )


class Text:
    """What a trainer makes of its data sets: examples and a collator of ours, if it was given no collator.

    A given one is taken with its data sets as they are, but learns the end of a sequence where that is the
    padding too (`taid.data.KeepEnds`). Raises ValueError for what then would do nothing, for padding that a model
    cannot read, and see `length_for`.
    """

    def __init__(
        self, processing_class, models: Iterable, collator, max_length: int | None, packing: bool, ranks=1
    ):
        self.tokenizer = getattr(processing_class, "tokenizer", processing_class)  # of a processor, or itself
        self.max_length, self.cut = length_for(models, max_length), max_length is not None and not packing
        self.given, self.ranks = collator is not None, ranks
        if self.given and (packing or max_length is not None):
            raise ValueError(
                "packing and max_length are for text that is made tokens of here, without data_collator"
            )
        pad = getattr(self.tokenizer, "pad_token_id", None)
        self.collator: Callable = Collator(0 if pad is None else pad)  # masked, whichever it is
        if self.given:
            self.collator = keeping_ends(collator)
            pads = isinstance(self.collator, PADDING)
            pad = getattr(getattr(collator, "tokenizer", None), "pad_token_id", None) if pads else None
        _check_padding_token(pad, models)

    def examples(self, data, name: str, packing: bool = False):
        """`examples` of a data set, or the data set itself."""
        if data is None:
            return None
        _check_rows(data, name)
        if self.given and isinstance(self.collator, PADDING):
            if _holds_text(columns := _columns_of(data)):
                padding = type(self.collator).__name__
                raise ValueError(f"{name} holds text, and {padding} pads tokens: leave out data_collator")
            _check_columns(columns, name)
        found = data if self.given else examples(data, self.tokenizer, self.max_length, packing, name)
        if found is data and self.cut and name == "train_dataset":
            raise ValueError(f"{name} holds tokens, which max_length does not cut: cut them, or leave it out")
        return _for_ranks(found, self.ranks)


def examples(data, tokenizer, max_length: int, packing: bool = False, name: str = "train_dataset"):
    """`data` as examples {"input_ids", "labels"} of at most `max_length` tokens, see `taid.text.chat.LAYOUTS`; a data
    set that has tokens already as it is. With `packing`, several to a row, see `taid.data.pack_documents`.

    Rows without anything to learn are left out, with a warning that counts them and says why; ValueError if
    none is left, for unknown columns, and for a dictionary of splits.
    """
    if isinstance(data, Mapping):
        first = next(iter(data), "train")
        raise ValueError(f"{name} has the splits {', '.join(data)}: pass one of them, {name}=data[{first!r}]")
    if isinstance(data, str | Path):
        raise ValueError(f"{name} is the string {str(data)!r}: load it first, with datasets.load_dataset")
    encode = _Encode(tokenizer, max_length, packing, name)
    streamed, of_datasets = not hasattr(data, "__len__"), hasattr(data, "column_names")
    once = isinstance(data, Iterator) and not isinstance(data, IterableDataset)
    if once or not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")):
        raise ValueError(
            f"{name} is a {type(data).__name__}, which cannot be read again and again: pass a list of rows, or "
            "datasets.IterableDataset.from_generator"
        )
    if streamed and not of_datasets:
        return _Stream(data, encode)
    _check_rows(data, name)
    first = _first_row(data, name)
    if layout(first) in TOKENISED:
        _check_tokens(data if isinstance(data, list | tuple) else [first], name)
        if not packing:
            return data
    if not of_datasets:
        rows = [encode.described(data[i]) for i in range(len(data))]
        _report([(row["left_out"], row["cut"]) for row in rows], max_length, name)
        return encode.finished(rows)
    if streamed:
        encode.try_some(data)
        return data.map(encode.batch, batched=True, batch_size=TOGETHER, remove_columns=list(first))
    return _of_datasets(data, encode, max_length, packing, name)


def _check_rows(data, name: str) -> None:
    """Raises ValueError for a data set without rows; what a stream has is not known."""
    if hasattr(data, "__len__") and not len(data):
        raise ValueError(f"{name} has no rows")


def _first_row(data, name: str) -> Mapping:
    try:
        first = data[0] if hasattr(data, "__len__") else next(iter(data), ...)
    except KeyError:  # of a DataFrame
        first = data
    if first is ...:
        raise ValueError(f"{name} has no rows")
    return _row(first, name)


def _row(row, name: str) -> Mapping:
    """The row. Raises ValueError for one that has no columns."""
    if not isinstance(row, Mapping):
        raise ValueError(
            f"a row of {name} is a dictionary from columns to values, not a {type(row).__name__}: pass such rows, "
            "datasets.Dataset.from_pandas(…) of a data frame, or a data_collator that takes yours"
        )
    return row


def _check_tokens(rows: Sequence[Mapping], name: str) -> None:
    """Raises ValueError for rows of tokens that are not all of one layout, or that `tokens_of` cannot read."""
    first = layout(rows[0])
    kinds: dict[tuple[str, ...], int] = {}  # columns → the first row that has them
    for i, row in enumerate(rows):
        kinds.setdefault(tuple(_row(row, name)), i)
    for columns, i in kinds.items():
        if layout(columns) != first:
            raise ValueError(
                f"row {i} of {name} has the columns {', '.join(columns)}, and the first {' and '.join(first)}: pass "
                "rows of one kind"
            )
        _check_columns(columns, name)
    tokens_of(rows[0])


def _of_datasets(data, encode: "_Encode", max_length: int, packing: bool, name: str):
    from datasets import Features, List, Value

    columns = {"input_ids": List(Value("int64")), "labels": List(Value("int64"))}
    features = Features(columns | {"left_out": Value("string"), "cut": Value("bool")})
    rows = data.map(
        encode.described, remove_columns=data.column_names, features=features, desc=f"Tokens of {name}"
    )
    left_out = list(rows["left_out"])
    _report(list(zip(left_out, rows["cut"], strict=True)), max_length, name)
    rows = rows.select([i for i, reason in enumerate(left_out) if not reason])
    rows = rows.remove_columns(["left_out", "cut"])
    if not packing:
        return rows
    packed = partial(_packed, max_length=max_length)
    return rows.map(packed, batched=True, batch_size=TOGETHER, remove_columns=["input_ids", "labels"])


def _packed(columns: dict[str, list], max_length: int) -> dict[str, list]:
    return _columns(pack_documents(_rows(columns), max_length))


def _rows(columns: Mapping[str, Sequence]) -> list[dict]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _columns(rows: Sequence[dict]) -> dict[str, list]:
    return (
        {name: [row[name] for row in rows] for name in rows[0]} if rows else {"input_ids": [], "labels": []}
    )


class _Encode:
    """Rows → examples, all at once or, of a stream, some by some."""

    def __init__(self, tokenizer, max_length: int, packing: bool, name: str):
        self.encode, self.packing, self.name = Encoder(tokenizer, max_length), packing, name
        self.max_length, self.warned = max_length, False

    def described(self, row: Mapping) -> dict:
        """The example, with the reason if it is to be left out, and whether it was cut."""
        try:
            example, cut = self.encode(_row(row, self.name))
        except Unusable as reason:
            return {"input_ids": [], "labels": [], "left_out": str(reason), "cut": False}
        return {**example, "left_out": "", "cut": cut}

    def finished(self, rows: Iterable[dict]) -> list[dict]:
        """The rows of use, packed if that is wanted."""
        kept = [{name: row[name] for name in ("input_ids", "labels")} for row in rows if not row["left_out"]]
        return pack_documents(kept, self.max_length) if self.packing else kept

    def try_some(self, stream: Iterable[Mapping]) -> None:
        """Raises ValueError if none of a stream's first rows is of use."""
        reasons = []
        for row in islice(stream, TOGETHER):
            reasons.append((self.described(row)["left_out"], False))
            if not reasons[-1][0]:
                return
        _report(reasons, self.max_length, f"the first {len(reasons)} of {self.name}")

    def batch(self, columns: Mapping[str, Sequence]) -> dict[str, list]:
        """A batch of a stream, as columns."""
        return _columns(self.some(_rows(columns)))

    def some(self, rows: Sequence[Mapping]) -> list[dict]:
        """Some rows of a stream; the first that is left out gives a warning."""
        described = [self.described(row) for row in rows]
        reasons = [row["left_out"] for row in described if row["left_out"]]
        if reasons and not self.warned:
            self.warned = True
            warnings.warn(f"rows of {self.name} are left out, the first for: {reasons[0]}", stacklevel=2)
        return self.finished(described)


class _Stream(IterableDataset):
    """A stream that is not of the library datasets, row by row or, packed, a thousand rows at a time.

    A torch stream deals out its rows among the workers of a loader itself, as for plain Trainer; of any other each
    of n workers makes all examples, the same whatever n, and gives every n-th.
    """

    def __init__(self, rows: Iterable[Mapping], encode: _Encode):
        self.rows, self.encode = rows, encode

    def set_epoch(self, epoch: int) -> None:
        """Of the rows, if they have several orders."""
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(epoch)

    def __iter__(self):
        worker = None if isinstance(self.rows, IterableDataset) else get_worker_info()
        own = (worker.id, None, worker.num_workers) if worker else (0, None)
        return islice(self._examples(), *own)

    def _examples(self) -> Iterator[Mapping]:
        size = TOGETHER if self.encode.packing else 1
        waiting, useful = [], False
        rows = ((row, False) for row in self.rows)
        for row, end in chain(rows, [({}, True)]):
            if not end and layout(_row(row, self.encode.name)) in TOKENISED:
                _check_columns(row, self.encode.name)
                if not self.encode.packing:
                    useful = True
                    yield row
                    continue
            waiting += [] if end else [row]
            if len(waiting) == size or end:
                for example in self.encode.some(waiting):
                    useful = True
                    yield example
                waiting = []
        if not useful:
            raise ValueError(f"no row of {self.encode.name} can be learned from, or it has none")


def _for_ranks(data, ranks: int):
    """A stream whose shards accelerate would deal out unevenly, so that it deals out rows; else `data` itself."""
    return _Unsharded(data) if getattr(data, "num_shards", None) and data.num_shards % ranks else data


class _Unsharded(IterableDataset):
    def __init__(self, stream):
        self.stream = stream

    def __iter__(self):
        yield from self.stream

    def set_epoch(self, epoch: int) -> None:
        self.stream.set_epoch(epoch)


def _report(rows: Sequence[tuple[str, bool]], max_length: int, name: str) -> None:
    """Say how many rows are left out, and why, and how many were cut. Raises ValueError if none is left."""
    reasons = Counter(reason for reason, _ in rows if reason)
    firsts = {reason: i for i, (reason, _) in reversed(list(enumerate(rows)))}
    listed = [
        f"{reason}: {count} (row {firsts[reason]}{' first' if count > 1 else ''})"
        for reason, count in reasons.most_common(3)
    ]
    why = "; ".join(listed + ["other reasons"] * (len(reasons) > 3))
    if reasons.total() == len(rows):
        raise ValueError(f"no row of {name} can be learned from. {why}")
    if reasons:
        warnings.warn(f"{reasons.total()} of {len(rows)} rows of {name} are left out. {why}", stacklevel=4)
    if cut := sum(cut for _, cut in rows):
        warnings.warn(
            f"{cut} of {len(rows)} rows of {name} are cut after max_length={max_length} tokens", stacklevel=4
        )


def _check_padding_token(token: int | None, models: Iterable) -> None:
    """Raises ValueError for a padding token that a model has no embedding for: masked ones are looked up too."""
    for model in models:
        entries = embeddings_of(model)
        if token is not None and entries is not None and token >= entries:
            raise ValueError(
                f"the padding token is {token}, and a model has embeddings for {entries} tokens: call "
                "model.resize_token_embeddings(len(tokenizer)), or set tokenizer.pad_token = tokenizer.eos_token"
            )


def length_for(models: Iterable, max_length: int | None) -> int:
    """The `max_length` of examples: MAX_LENGTH unless given, and no more than the models have positions.

    Raises ValueError for one that is no number of tokens, or more than they have.
    """
    known = [position_limit(model) for model in models]
    positions = min([size for size in known if size], default=None)
    if max_length is None:
        return min(MAX_LENGTH, positions or MAX_LENGTH)
    if not isinstance(max_length, int) or max_length < 2:
        raise ValueError(
            f"max_length={max_length!r}: an example has 2 tokens at least, one to learn and one before it"
        )
    if positions and max_length > positions:
        raise ValueError(
            f"max_length={max_length}, but a model has {positions} positions: ask for at most these"
        )
    return max_length
