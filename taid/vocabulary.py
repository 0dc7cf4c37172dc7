"""Which entries of two vocabularies mean the same, and which are padding.

Padding is what neither side's tokenizer knows: entries that a table has so that its length is round (Qwen2.5:
151,936 entries, 151,665 tokens).
"""

import warnings

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import cached_file

PADDING = 1024  # tables are padded to a multiple of this at most (Megatron: 128 times the ranks of a tensor)
PROBE_TEXT = "Hello world, it's 3.14 o'clock!\n\tdef f(x):  return x  # naïve Grüße, 你好, Привет 🙂"


def tokenizer_of(processing_class) -> PreTrainedTokenizerBase | None:
    """The tokenizer itself, or the one inside a processor; None for anything else."""
    for found in (processing_class, getattr(processing_class, "tokenizer", None)):
        if isinstance(found, PreTrainedTokenizerBase):
            return found
    return None


def tokenizer_named(name: str | None) -> PreTrainedTokenizerBase | None:
    """The tokenizer that lies with a model of this name or folder, None if there is none. Runs no code of a hub."""
    try:
        if not name or cached_file(name, "tokenizer_config.json") is None:
            return None
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError):
        return None


def tokens(tokenizer) -> int:
    """The number of entries up to the last that the tokenizer knows, added tokens included."""
    return 1 + max(tokenizer.get_vocab().values())


def compared_tokenizers(student, teacher, vocab_size: int | None = None) -> int:
    """The number of tokens of two tokenizers that are one; or `vocab_size`, if they agree on as many.

    Raises ValueError, naming the first entry that differs, where one knows what the other does not, or where
    they split a text of digits, code and several scripts in two ways.
    """
    theirs, ours = teacher.get_vocab(), student.get_vocab()
    differing = min((entry for _, entry in ours.items() ^ theirs.items()), default=None)
    if differing is not None and (vocab_size is None or differing < vocab_size):
        names = [dict(zip(v.values(), v, strict=True)).get(differing, "nothing") for v in (ours, theirs)]
        raise ValueError(
            f"the vocabularies differ in more than padding: entry {differing} is {names[0]!r} to the student's "
            f"tokenizer and {names[1]!r} to the teacher's. Distil between models of one tokenizer; to distil "
            f"the first n entries alone, where n is at most {differing}, pass vocab_size=n."
        )
    shared = tokens(student) if vocab_size is None else vocab_size
    split = [t(PROBE_TEXT, add_special_tokens=False)["input_ids"] for t in (student, teacher)]
    if split[0] != split[1] and max(map(max, split)) < shared:
        raise ValueError(
            "the tokenizers of student and teacher have one vocabulary, but split a text in two ways: the "
            "teacher would see what it never learned. Distil between models of one tokenizer."
        )
    return shared


def known_vocabularies(model, processing_class, teacher, teacher_processing_class, vocab_size) -> dict:
    """What is known before the first batch, as `shared_vocabulary` takes it: `vocab_size` of both sides, `known` of
    the student's. Tokenizers that are not given are looked for where their models were loaded from.

    Raises ValueError as `compared_tokenizers`, for a teacher_processing_class without a tokenizer, and for a
    vocab_size without a teacher.
    """
    if vocab_size is not None and (not isinstance(vocab_size, int) or vocab_size < 1):
        raise ValueError(f"vocab_size={vocab_size!r}: name the number of first entries to distil, at least 1")
    if vocab_size is not None and teacher is None:
        raise ValueError(
            f"vocab_size={vocab_size} is what student and teacher share, and there is no teacher: leave it out"
        )
    names = [
        getattr(each, "name_or_path", None) if teacher is not None else None for each in (model, teacher)
    ]
    ours = tokenizer_of(processing_class) or tokenizer_named(names[0])
    theirs = tokenizer_of(teacher_processing_class) or tokenizer_named(names[1])
    if teacher_processing_class is not None and tokenizer_of(teacher_processing_class) is None:
        kind = type(teacher_processing_class).__name__
        raise ValueError(f"teacher_processing_class is a {kind}: pass the teacher's tokenizer or processor")
    if ours is not None and theirs is not None:
        vocab_size = compared_tokenizers(ours, theirs, vocab_size)
    return {"vocab_size": vocab_size, "known": None if ours is None else tokens(ours)}


def shared_vocabulary(
    student: int, teacher: int, vocab_size: int | None = None, known: int | None = None
) -> int:
    """The number of first entries to distil, of a student's and a teacher's numbers of entries.

    It is `vocab_size` where that is known to hold for both. Else it is `known`, the number of tokens of the
    student's tokenizer, or all if that is None, provided that the teacher's tokenizer can be the same: both
    tables are equally long, or the teacher's has no entry beyond `known`, or (with a warning) both have some. In
    the first case and the last what is beyond `known` is no more than PADDING.

    Raises ValueError, naming the numbers and what to pass, where more than padding may differ.
    """
    smaller, sizes = min(student, teacher), f"the student's has {student} entries, the teacher's {teacher}"
    if vocab_size is not None:
        if vocab_size > smaller and student != teacher:
            raise ValueError(
                f"the vocabularies differ in more than padding: {sizes}, and the tokenizer has {vocab_size} "
                "tokens (or vocab_size= says so). Distil between models of one tokenizer, or call "
                "resize_token_embeddings of the smaller one."
            )
        return min(vocab_size, smaller)
    too_long = known is not None and max(student, teacher) >= min(2 * known, known + PADDING)
    if (student == teacher and not too_long) or known == teacher < student:
        return smaller if known is None else min(known, smaller)
    if known is None or known >= smaller or too_long:
        tokenizer = "no tokenizer was given" if known is None else f"the tokenizer has {known} tokens"
        raise ValueError(
            f"the vocabularies may differ in more than padding: {sizes}, {tokenizer}, and the teacher's own is "
            "not known. Pass both tokenizers, processing_class=… and teacher_processing_class=…, to have them "
            "compared, or vocab_size=n if the first n entries mean the same to both models."
        )
    warnings.warn(
        f"entries from {known} on are taken for padding: {sizes}, the student's tokenizer knows {known} tokens, and "
        "the teacher's own is not known. Pass it as teacher_processing_class=… to be sure.",
        stacklevel=2,
    )
    return known
