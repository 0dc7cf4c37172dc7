"""Which tokens of a text are learned. Oracle: the labelled tokens, decoded, are what the assistant said, and its end."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from taid.data import IGNORE
from taid.text.chat import LAYOUTS, Encoder, Unusable, layout, plain

SPECIAL = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|end|>")
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ANSWER = "{% if m['role'] == 'assistant' %}{% generation %}"
TEMPLATES = {  # name → (template, what it writes after an answer: within a conversation, and at its end)
    "ChatML with a system prompt of its own": (CHATML, "<|im_end|>", "<|im_end|>"),
    "begin of sequence, trimmed, as Llama 3's": (
        "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n\n{{ m['content'] | trim }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n\n{% endif %}",
        "<|end|>",
        "<|end|>",
    ),
    "an end of the whole, as Phi-3's": (
        "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        "<|end|>",
        "<|end|>\n</s>",
    ),
    "no token for an end, as Vicuna's first": (
        "{% for m in messages %}{{ m['role'] | upper }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}",
        "\n",
        "\n</s>",
    ),
    "marked, the end within": (
        f"{{% for m in messages %}}<|{{{{ m['role'] }}}}|>{ANSWER}{{{{ m['content'] }}}}<|end|>{{% endgeneration %}}"
        "{% else %}{{ m['content'] }}{% endif %}{% endfor %}",
        "<|end|>",
        "<|end|>",
    ),
    "marked, the end without": (
        f"{{% for m in messages %}}<|{{{{ m['role'] }}}}|>{ANSWER}{{{{ m['content'] }}}}{{% endgeneration %}}"
        "{% else %}{{ m['content'] }}{% endif %}<|end|>\n{% endfor %}",
        "<|end|>",
        "<|end|>",
    ),
    "marked, without an end": (
        f"{{% for m in messages %}}<|{{{{ m['role'] }}}}|>{ANSWER}{{{{ m['content'] }}}}{{% endgeneration %}}"
        "{% else %}{{ m['content'] }}{% endif %}{% endfor %}",
        "",
        "</s>",
    ),
}


def bytes_tokenizer(template: str | None = None, pad: str = "<pad>", merges=()) -> PreTrainedTokenizerFast:
    """A token a byte, or as `merges` join them, so that every text comes back as it was."""
    alphabet = [*pre_tokenizers.ByteLevel.alphabet(), *(a + b for a, b in merges)]
    bpe = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(sorted(alphabet))}, merges=list(merges)))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=pad, bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = template
    return tokenizer


def chat(*texts: str) -> list[dict]:
    """User and assistant in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def learned(tokenizer, row: dict, max_length: int = 1000) -> list[str]:
    """The runs of labelled tokens, decoded."""
    example, _ = Encoder(tokenizer, max_length)(row)
    runs, before = [], IGNORE
    for token, label in zip(example["input_ids"], example["labels"], strict=True):
        assert label in (IGNORE, token)
        if label != IGNORE:
            runs = [*runs, []] if before == IGNORE else runs
            runs[-1].append(token)
        before = label
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(
    "texts",
    [
        ("Hi", "Hello!"),
        ("Hi", "Hello!", "And you?", "Well.\n\nThank you"),
        ("¿Qué?", "日本語 🙂 é", "x", "y"),
        ("Hi", "", "again", "yes"),
        ("Hi", "yes", "thanks"),  # nothing after the last answer
    ],
)
def test_the_answers_and_their_ends_are_learned(name, texts):
    template, within, at_the_end = TEMPLATES[name]
    answers = texts[1::2]
    space = " " if "Vicuna" in name else ""
    expected = [f"{space}{text}{within}" for text in answers[:-1]] + [f"{space}{answers[-1]}{at_the_end}"]
    assert learned(bytes_tokenizer(template), {"messages": chat(*texts)}) == [run for run in expected if run]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation_is_what_the_tokenizer_makes_of_it(name):
    """Oracle: apply_chat_template, up to what follows the last answer's end."""
    tokenizer = bytes_tokenizer(TEMPLATES[name][0])
    messages = chat("Hi", "Hello!", "And you?", "Well.")
    ids = Encoder(tokenizer, 1000)({"messages": messages})[0]["input_ids"]
    whole = tokenizer.apply_chat_template(messages, return_dict=False)
    at = len(ids) - (TEMPLATES[name][2].endswith("</s>") and tokenizer.eos_token_id not in whole)
    assert ids[:at] == whole[:at] and not tokenizer.decode(whole[at:]).strip("\n")


def test_system_and_tools_are_context_and_calls_are_learned():
    template = (
        "{% if tools %}<|user|>{{ tools | length }} tools<|end|>{% endif %}{% for m in messages %}<|{{ m['role'] }}|>"
        "{{ m['content'] }}{% for c in m['tool_calls'] %}CALL {{ c['function']['name'] }}{% endfor %}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add"}}]}
    messages = [
        {"role": "system", "content": "Be kind.", "tool_calls": None},
        {"role": "user", "content": "1 + 1?", "tool_calls": None},
        call,
        {"role": "tool", "content": "2", "tool_calls": None},
        {"role": "assistant", "content": "Two.", "tool_calls": None},
    ]
    row = {"messages": messages, "tools": [{"type": "function", "function": {"name": "add"}}]}
    tokenizer = bytes_tokenizer(template)
    assert learned(tokenizer, row) == ["CALL add<|end|>", "Two.<|end|>"]
    assert "1 tools" in tokenizer.decode(Encoder(tokenizer, 1000)(row)[0]["input_ids"])
    with pytest.raises(Unusable, match="leaves out"):  # a template that knows no calls
        learned(bytes_tokenizer(CHATML), row)


def test_parts_of_text_are_text():
    """Not the list as Python writes it, which is what most templates would make of it."""
    parts = [
        {"role": turn["role"], "content": [{"type": "text", "text": turn["content"]}]}
        for turn in chat("a", "b")
    ]
    tokenizer = bytes_tokenizer(CHATML)
    assert Encoder(tokenizer, 99)({"messages": parts}) == Encoder(tokenizer, 99)(
        {"messages": tuple(chat("a", "b"))}
    )


def test_of_prompt_and_completion_the_completion_is_learned():
    tokenizer = bytes_tokenizer(CHATML)
    assert learned(tokenizer, {"prompt": "Q: 1?\nA:", "completion": " one"}) == [" one</s>"]
    row = {"prompt": chat("a", "b", "c"), "completion": chat("x", "d")[1:]}
    assert learned(tokenizer, row) == ["d<|im_end|>"]
    assert learned(tokenizer, {"prompt": "", "completion": "all"}) == ["all</s>"]
    assert learned(tokenizer, {"prompt": "say nothing", "completion": ""}) == ["</s>"]
    assert learned(tokenizer, {"text": "all of it</s>"}) == ["all of it</s>"]


def spaced_tokenizer(prefix: bool = True) -> PreTrainedTokenizerFast:
    """One that puts a space before a text, as those of Llama 2 and Mistral 7B, and the beginning of a sequence."""
    pieces = ["<pad>", "</s>", "<s>", "▁", "a", ":", "4", "2", "▁a", "▁4", "▁:"]
    bpe = Tokenizer(
        models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[("▁", "a"), ("▁", "4"), ("▁", ":")])
    )
    scheme = "first" if prefix else "never"
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    bpe.decoder = decoders.Metaspace(prepend_scheme=scheme)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="</s>", bos_token="<s>")


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize(
    ("prompt", "completion"), [("a:", "42"), ("a:", " 42"), ("a", ":4"), ("", "a:"), ("a:", "")]
)
def test_prompt_and_completion_are_joined_as_they_stand(prompt, completion, prefix):
    """Oracle: the tokens of the text, and those of the prompt alone."""
    tokenizer = spaced_tokenizer(prefix)
    ids, labels = plain(tokenizer, prompt, completion)
    assert ids == [*tokenizer(prompt + completion)["input_ids"], 1]
    before = len(tokenizer(prompt)["input_ids"]) if prompt else 0
    assert labels == [IGNORE] * before + ids[before:]


def test_a_space_that_the_completion_should_begin_with_is_told():
    with pytest.raises(Unusable, match="let the completion begin with the space between them"):
        plain(spaced_tokenizer(), "a: ", "42")


@pytest.mark.parametrize(("prompt", "completion"), [("", "<s>a:"), ("<s>a", ":")])
def test_a_text_with_a_beginning_of_its_own_begins_once(prompt, completion):
    ids, _ = plain(spaced_tokenizer(), prompt, completion)
    assert ids.count(2) == 1 and ids[0] == 2


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": []}, "no turn of an assistant"),
        ({"messages": chat("only the user")}, "no turn of an assistant"),
        ({"messages": [{"role": "system", "content": "x"}]}, "no turn of an assistant"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "images and sounds need a data_collator",
        ),
        ({"messages": chat("\ud800", "x")}, "text that the tokenizer cannot take"),
        ({"messages": chat("x", 5)}, "content is of type int"),
        ({"messages": chat("x", "y"), "tools": "add"}, "tools that are no JSON"),
        ({"messages": [*chat("x"), {"role": "assistant", "tool_calls": "add"}]}, "tool_calls are no list"),
        ({"messages": None}, r"no messages \(None\)"),
        ({"messages": "Hi"}, "str in messages"),
        ({"messages": [{"from": "human", "value": "x"}]}, "without a role"),
        ({"messages": [*chat("x"), {"role": "assistant", "content": None}]}, "without content"),
        ({"prompt": "x", "completion": None}, r"no completion \(None\)"),
        ({"prompt": "x", "completion": chat("y")}, "str and list in prompt and completion"),
        ({"prompt": chat("a", "b"), "completion": chat("c")}, "no turn of an assistant"),
        ({"prompt": "", "completion": ""}, "empty text"),
        ({"text": ""}, "empty text"),
        ({"text": 5}, "int in text"),
        ({"text": "x" * 9, "n": 1}, None),
        (
            {"messages": chat("so long a prompt that nothing else fits into it", "x")},
            "nothing to learn in the first 40",
        ),
    ],
)
def test_what_cannot_be_learned_from_says_why(row, words):
    tokenizer = bytes_tokenizer(CHATML)
    if words is None:
        assert learned(tokenizer, row, 40)
        return
    with pytest.raises(Unusable, match=words):
        learned(tokenizer, row, 40)


def test_a_response_is_cut_and_a_label_kept():
    tokenizer = bytes_tokenizer()
    example, cut = Encoder(tokenizer, 6)({"prompt": "abcd", "completion": "efgh"})
    assert cut and tokenizer.decode([i for i in example["labels"] if i != IGNORE]) == "ef"
    assert not Encoder(tokenizer, 9)({"prompt": "abcd", "completion": "efgh"})[1]


@pytest.mark.parametrize(
    ("template", "merges", "words"),
    [
        (
            "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}>{% endif %}",
            (),
            "prompt",
        ),
        ("{{ raise_exception('roles must alternate') }}", (), r"refuses \(roles must alternate\)"),
        (  # earlier answers lose what Qwen 3 calls thoughts
            "{% for m in messages %}<|{{ m['role'] }}|>"
            "{{ m['content'] if loop.last or m['role'] == 'user' else m['content'][1:] }}<|end|>"
            "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
            (),
            "leaves out",
        ),
        (
            "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }};{% endfor %}"
            "{% if add_generation_prompt %}a:{% endif %}",
            ((":", "H"),),
            "first token is one with the end of its prompt",
        ),
    ],
)
def test_a_template_whose_prompts_are_no_beginnings_is_refused(template, merges, words):
    with pytest.raises(Unusable, match=words):
        learned(bytes_tokenizer(template, merges=merges), {"messages": chat("Q", "Hello", "R", "Hi")})


def test_without_a_template_messages_are_refused():
    with pytest.raises(ValueError, match="no chat template for messages"):
        learned(bytes_tokenizer(), {"messages": chat("Q", "A")})


def test_tokens_go_before_the_text_they_were_made_of():
    assert layout(["messages", "input_ids", "labels"]) == ("input_ids",)


def test_unknown_columns_are_told_the_known_ones():
    with pytest.raises(ValueError, match="'instruction', 'output'") as error:
        layout(["instruction", "output"])
    assert all(column in str(error.value) for known in LAYOUTS for column in known)
