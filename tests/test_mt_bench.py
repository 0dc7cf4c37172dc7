"""MT-Bench against a real HTTP server that answers, stalls, sends garbage, refuses and hangs up; no cache, no network.

The questions are made up here; FastChat's own are read where the cache has them.
"""

import json
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import tiny_model, tiny_tokenizer

from taid.evaluation import mt_bench, replies
from taid.evaluation.mt_bench import FILES, JUDGE_PROMPTS, QUESTIONS, REFERENCES, rating
from taid.evaluation.replies import Endpoint, Kept, LocalModel, NoReply, Request
from taid.studies import mt_bench as study
from taid.studies import sources

CATEGORIES = ("writing", "math", "stem")


def write(folder, count: int = 3, **changed):
    """A folder as FastChat's: question i is of category i modulo 3; the judge's prompts show what they are given."""
    numbers = range(81, 81 + count)
    files = {
        QUESTIONS: [
            {"question_id": n, "category": CATEGORIES[n % 3], "turns": [f"Q{n}a?", f"Q{n}b?"]}
            for n in numbers
        ],
        REFERENCES: [{"question_id": n, "choices": [{"turns": [f"R{n}a", f"R{n}b"]}]} for n in numbers],
        JUDGE_PROMPTS: [
            {"name": "single-v1", "prompt_template": "{question}|{answer}"},
            {"name": "single-math-v1", "prompt_template": "{question}|{ref_answer_1}|{answer}"},
            {
                "name": "single-v1-multi-turn",
                "prompt_template": "{question_1}|{answer_1}|{question_2}|{answer_2}",
            },
            {
                "name": "single-math-v1-multi-turn",
                "prompt_template": "{ref_answer_1}|{ref_answer_2}|{answer_1}|{answer_2}",
            },
        ],
    } | changed
    for name, lines in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"system_prompt": "Judge."} | line) + "\n" for line in lines))
    return folder


class Server:
    """An OpenAI-compatible server on this machine. `faults` maps a text to what happens, one after another, to the
    requests whose last message holds it, before they are answered."""

    def __init__(self, text=lambda asked: "Fine. Rating: [[7]]", usage: bool = True):
        self.asked: list[dict] = []  # bodies, in the order of arrival
        self.times: list[float] = []
        self.faults: dict[str, list] = {}
        self.busy = self.most = 0
        self.text, self.usage, self.released = text, usage, threading.Event()
        lock, server = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server.asked.append(body)
                    server.times.append(time.monotonic())
                    server.busy += 1
                    server.most = max(server.most, server.busy)
                    last = body["messages"][-1]["content"]
                    waiting = next((f for text, f in server.faults.items() if text in last and f), [])
                    fault = waiting.pop(0) if waiting else None
                try:
                    server.answer(self, body, fault)
                finally:
                    with lock:
                        server.busy -= 1

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, handler, body: dict, fault) -> None:
        if fault == "drop":
            handler.close_connection = True
            handler.connection.shutdown(2)
            return
        if fault == "stall":
            self.released.wait(5)
            handler.close_connection = True
            return
        if isinstance(fault, int):
            self.send(handler, fault, json.dumps({"error": {"message": f"no, {fault}"}}).encode())
            return
        if isinstance(fault, bytes):
            self.send(handler, 200, fault, "text/html" if fault.startswith(b"<") else "application/json")
            return
        reply = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": self.text(body)},
                }
            ],
        }
        if self.usage:
            reply["usage"] = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        self.send(handler, 200, json.dumps(reply).encode())

    @staticmethod
    def send(handler, code: int, content: bytes, kind: str = "application/json") -> None:
        handler.send_response(code)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(content)))
        handler.send_header(
            "retry-after-ms", "5"
        )  # what a server may ask for; the client's own wait is tested apart
        handler.end_headers()
        handler.wfile.write(content)


@pytest.fixture
def serve(monkeypatch):
    """Makes servers, which end with the test; GARBLED replies are waited for only shortly."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    servers = []

    def start(**options) -> Server:
        servers.append(Server(**options))
        return servers[-1]

    yield start
    for server in servers:
        server.released.set()
        server.http.shutdown()
        server.http.server_close()


def request(text: str, model: str = "m") -> Request:
    return Request(model, ({"role": "user", "content": text},), 0.0, 8, {"question_id": text})


def texts(kept: Kept, asked: list[Request], endpoint) -> list[str]:
    return [reply.text for reply in kept.replies(asked, endpoint)]


# --- an endpoint and its faults

FAULTS = {
    "drop": ["drop"],
    "stall": ["stall"],
    "429": [429, 429],
    "500": [500],
    "503": [503],
    "no JSON": [b"{"],
    "a page": [b"<html>busy</html>"],
    "no choices": [b"{}", b'{"choices": []}', b'{"choices": null}'],
    "no text": [b'{"choices": [{"message": {"role": "assistant", "content": null}}]}'],
    "a list": [b"[1]"],
    "a number": [b"7"],
}


def test_whatever_a_server_does_once_is_tried_again(serve, tmp_path):
    server = serve(text=lambda body: "re: " + body["messages"][-1]["content"])
    server.faults = {text: list(faults) for text, faults in FAULTS.items()}
    asked = [request(text) for text in [*FAULTS, "nothing wrong"]]
    endpoint = Endpoint("m", server.url, concurrency=len(asked), timeout=0.5)
    assert texts(Kept(tmp_path / "kept.jsonl"), asked, endpoint) == [
        f"re: {text}" for text in [*FAULTS, "nothing wrong"]
    ]
    tries = Counter(body["messages"][-1]["content"] for body in server.asked)
    assert tries == {text: len(faults) + 1 for text, faults in FAULTS.items()} | {"nothing wrong": 1}


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (400, "status 400, .*no, 400.*what the server says"),
        (401, "status 401.*Set OPENAI_API_KEY"),
        (403, "status 403.*may not use"),
        (404, "status 404.*name of the model.*/v1"),
        (429, "status 429.*fewer at a time"),
        (500, "status 500.*server runs"),
        ("drop", "Connection error.*server runs"),
        ("stall", "timed out.*server runs"),
        (b"<html>", "5 times without a text.*<html>.*OpenAI-compatible"),
        (b"{", "5 times without a text"),
    ],
    ids=str,
)
def test_what_stays_wrong_is_said_and_what_was_answered_is_kept(serve, tmp_path, monkeypatch, fault, says):
    monkeypatch.setattr(replies.time, "sleep", lambda seconds: None)  # the waits between garbled replies
    server = serve()
    server.faults = {"bad": [fault] * 20}
    asked, path = [request("good"), request("bad"), request("after")], tmp_path / "kept.jsonl"
    endpoint = Endpoint("m", server.url, concurrency=1, retries=1, timeout=0.3)
    with pytest.raises(NoReply, match=says) as error:
        Kept(path).replies(asked, endpoint)
    assert "kept" in str(error.value) and server.url in str(error.value).replace("/v1/", "/v1")
    assert [json.loads(line)["question_id"] for line in path.read_text().splitlines()][:1] == ["good"]
    server.faults, before = {}, len(server.asked)
    assert len(Kept(path).replies(asked, endpoint)) == 3
    again = [body["messages"][-1]["content"] for body in server.asked[before:]]
    assert "good" not in again and "bad" in again, "what was answered is not asked again"


def test_a_refusal_lets_no_further_request_start(serve, tmp_path):
    server = serve()
    server.faults = {"r0": [401]}
    with pytest.raises(NoReply):
        Kept(tmp_path / "k.jsonl").replies([request(f"r{i}") for i in range(50)], Endpoint("m", server.url))
    assert len(server.asked) < 50


def test_no_more_requests_at_a_time_than_allowed(serve, tmp_path):
    server = serve(text=lambda body: time.sleep(0.02) or "ok")
    Kept(tmp_path / "k.jsonl").replies([request(f"r{i}") for i in range(12)], Endpoint("m", server.url, 3))
    assert server.most == 3


@pytest.mark.slow
def test_each_wait_is_about_twice_the_one_before(serve, tmp_path):
    """Without a word of the server: 0.5 s, 1 s and 2 s, each up to a quarter shorter (openai's client)."""
    server = serve()
    server.faults = {"bad": ["drop"] * 3}
    Kept(tmp_path / "k.jsonl").replies([request("bad")], Endpoint("m", server.url))
    waits = [later - earlier for earlier, later in zip(server.times, server.times[1:], strict=False)]
    for wait, longest in zip(waits, (0.5, 1, 2), strict=True):
        assert 0.75 * longest <= wait < longest + 0.3


def test_no_server_and_no_key(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    kept = Kept(tmp_path / "k.jsonl")
    with pytest.raises(NoReply, match="Connection error.*Check that the server runs"):
        kept.replies([request("a")], Endpoint("m", "http://127.0.0.1:9/v1", retries=0))
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(NoReply, match="OPENAI_API_KEY=none"):
        kept.replies([request("a")], Endpoint("m", "http://127.0.0.1:9/v1"))
    assert not (tmp_path / "k.jsonl").exists()


def test_tokens_are_estimated_where_the_server_counts_none(serve, tmp_path):
    server = serve(text=lambda body: "y" * 40, usage=False)
    [reply] = Kept(tmp_path / "k.jsonl").replies([request("x" * 400)], Endpoint("m", server.url))
    assert (reply.prompt_tokens, reply.completion_tokens) == (
        100,
        10,
    )  # a token of English is about 4 characters


# --- what is kept


def test_a_request_is_asked_once_and_another_is_not_taken_for_it(tmp_path):
    """Whatever decides a reply is in its key: model, messages, temperature, limit; what is for readers is not."""
    asked: list[Request] = []

    def ask(requests):
        asked.extend(requests)
        yield from ((r, replies.Reply(str(len(asked)), 1, 1)) for r in requests)

    one = request("a")
    others = [
        request("b"),
        request("a", model="n"),
        Request("m", one.messages, 0.7, 8, {}),
        Request("m", one.messages, 0.0, 9, {}),
    ]
    kept = Kept(tmp_path / "k.jsonl")
    assert len(kept.replies([one, one, *others], ask)) == 6
    same = Request("m", one.messages, 0.0, 8, {"question_id": "called otherwise"})
    Kept(tmp_path / "k.jsonl").replies([same, *others], ask)
    assert asked == [one, *others]


def test_two_processes_share_a_file(tmp_path):
    """Oracle: the union. The second finds what the first wrote after the second had read the file."""
    first, second = Kept(tmp_path / "k.jsonl"), Kept(tmp_path / "k.jsonl")
    first.replies([request("a")], lambda todo: [(r, replies.Reply("first", 1, 1)) for r in todo])
    found = second.replies(
        [request("a"), request("b")], lambda todo: [(r, replies.Reply("second", 1, 1)) for r in todo]
    )
    assert [reply.text for reply in found] == ["first", "second"]
    assert len(Kept(tmp_path / "k.jsonl").lines) == 2


@pytest.mark.parametrize("line", ["{", "[]", "7", '{"key": "a"}', '{"text": "b"}', ""])
def test_a_damaged_file_is_named_and_left_alone(tmp_path, line):
    path = tmp_path / "k.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(ValueError, match="k.jsonl, line 1 is no reply.*mend or delete"):
        Kept(path)
    assert path.read_text() == f"{line}\n"


# --- the protocol


@pytest.mark.parametrize(
    ("judgment", "points"),
    [
        ("Good. Rating: [[7]]", 7),
        ("[[8.5]] because", 8.5),
        ("Rating: [6]", 6),
        ("[5] then [[9]]", 9),  # the doubled brackets come first
        ("Rating: [[3]] and [[4]]", 3),
        ("Rating: 7", None),
        ("[[11]]", None),
        ("[[0]]", None),
        ("[[rating]]", None),
        ("", None),
    ],
)
def test_ratings(judgment, points):
    """As in FastChat's common.py, but that what is no rating from 1 to 10 counts as none."""
    assert rating(judgment) == points


def test_the_messages_are_those_of_the_protocol(tmp_path):
    """By hand, from FastChat's gen_model_answer.py and common.py."""
    bench = mt_bench.read(write(tmp_path))
    writing, math, _ = bench.questions
    assert mt_bench.answer_request("m", writing).messages == ({"role": "user", "content": "Q81a?"},)
    second = mt_bench.answer_request("m", math, "one")
    assert [message["content"] for message in second.messages] == ["Q82a?", "one", "Q82b?"]
    assert [message["role"] for message in second.messages] == ["user", "assistant", "user"]
    assert (second.temperature, second.max_tokens) == (0.0, 1024)
    assert mt_bench.answer_request("m", writing).temperature == 0.7
    shown = [
        mt_bench.judgment_request("j", bench, question, ("A1", "A2"), turn).messages
        for question in (writing, math)
        for turn in (1, 2)
    ]
    assert [system["content"] for system, _ in shown] == ["Judge."] * 4
    assert [user["content"] for _, user in shown] == [
        "Q81a?|A1",
        "Q81a?|A1|Q81b?|A2",
        "Q82a?|R82a|A1",
        "R82a|R82b|A1|A2",
    ]
    judged = mt_bench.judgment_request("j", bench, math, ("{answer_2} {", "%s"), 2)
    assert judged.messages[1]["content"] == "R82a|R82b|{answer_2} {|%s", "braces in an answer are an answer's"
    assert (judged.temperature, judged.max_tokens) == (0.0, 2048)


def test_scores_are_means_over_what_was_rated(tmp_path):
    """By hand: first turns 8 and 6, second turns 4 and none."""
    bench = mt_bench.read(write(tmp_path, count=2))
    requests = mt_bench.judgment_requests(bench, "j", [("a", "b")] * 2)
    given = ["[[8]]", "[[4]]", "[[6]]", "none"]
    found = mt_bench.scores(requests, [replies.Reply(text, 1, 1) for text in given])
    assert found.points == {"first turn": 7, "average": 6, "writing": 6, "second turn": 4, "math": 6}
    assert found.unrated == 1
    with pytest.raises(ValueError, match="no rating at all for second turn.*stronger judge"):
        mt_bench.scores(requests, [replies.Reply(text, 1, 1) for text in ("[[8]]", "-", "[[6]]", "-")])


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({QUESTIONS: [{"question_id": 1, "category": "math", "turns": ["a"]}]}, "question 1 has 1 turns"),
        ({QUESTIONS: [{"question_id": 1, "category": "math", "turns": ["a", "b"]}]}, "no reference answer"),
        ({QUESTIONS: [{"question_id": 1, "category": "x", "turns": ["a", "b"]}] * 2}, "twice"),
        ({QUESTIONS: []}, "no question"),
        ({JUDGE_PROMPTS: []}, "has no single-math-v1, single"),
    ],
)
def test_what_files_lack_is_named(tmp_path, changed, says):
    with pytest.raises(ValueError, match=says):
        mt_bench.read(write(tmp_path, **changed))


def test_missing_and_damaged_files_are_named(tmp_path):
    write(tmp_path)
    (tmp_path / REFERENCES).write_text("{\n")
    with pytest.raises(ValueError, match="gpt-4.jsonl holds a line that is no JSON"):
        mt_bench.read(tmp_path)
    (tmp_path / REFERENCES).unlink()
    with pytest.raises(ValueError, match=r"there is no .*gpt-4.jsonl.*FastChat's"):
        mt_bench.read(tmp_path)


# --- models at hand

TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


def chat_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_a_local_model_is_judged_by_turn_and_nothing_is_asked_twice(serve, tmp_path, monkeypatch):
    """Oracle: what the judge was programmed to say: 9 for first turns, 3 for second."""
    monkeypatch.setattr(mt_bench, "ANSWER_TOKENS", 8)
    prompts = [
        {"name": name, "prompt_template": text}
        for name, text in {
            "single-v1": "one {question} {answer}",
            "single-math-v1": "one {question} {answer}",
            "single-v1-multi-turn": "two {question_2} {answer_2}",
            "single-math-v1-multi-turn": "two {question_2} {answer_2}",
        }.items()
    ]
    bench = mt_bench.read(write(tmp_path / "data", **{JUDGE_PROMPTS: prompts}))
    server = serve(text=lambda b: f"[[{9 if b['messages'][1]['content'].startswith('one') else 3}]]")
    model, tokenizer = tiny_model(), chat_tokenizer()
    judge = Endpoint("j", server.url)
    found = mt_bench.evaluate(model, tokenizer, judge, bench, tmp_path / "out")
    assert found.points == {"first turn": 9, "second turn": 3, "average": 6} | dict.fromkeys(CATEGORIES, 6)
    assert len(server.asked) == 6
    assert mt_bench.evaluate(model, tokenizer, judge, bench, tmp_path / "out") == found
    assert len(server.asked) == 6
    answers = [json.loads(line) for line in (tmp_path / "out/answers.jsonl").read_text().splitlines()]
    assert sorted((line["question_id"], line["turn"]) for line in answers) == [
        (number, turn) for number in (81, 82, 83) for turn in (1, 2)
    ]
    mt_bench.evaluate(tiny_model(seed=1), tokenizer, judge, bench, tmp_path / "out")
    assert len(Kept(tmp_path / "out/answers.jsonl").lines) == 12, "other weights answer for themselves"


def test_a_local_response_ends_where_the_positions_do(monkeypatch):
    """By hand: 16 positions leave 14 after two tokens, of which 8 are asked for, and 4 after twelve."""
    rooms = {}

    def generate(model, tokenizer, examples, room, temperature, batch_size):
        rooms.update({len(example["prompt_ids"]): room for example in examples})
        return ["w3"] * len(examples)

    monkeypatch.setattr(replies, "generate", generate)
    local = LocalModel(tiny_model(max_position_embeddings=16), chat_tokenizer())
    assert len([*local([request("w3 w4"), request("w3 " * 12)])]) == 2
    assert rooms == {2: 8, 12: 4}
    with pytest.raises(ValueError, match="16 tokens leaves no place.*16 positions"):
        list(local([request("w3 " * 16)]))
    with pytest.raises(ValueError, match="no chat template"):
        list(LocalModel(tiny_model(), tiny_tokenizer())([request("w3")]))


# --- the command


def test_the_command_says_what_it_takes_before_and_after(serve, tmp_path, capsys):
    server = serve()
    write(tmp_path / "data", count=2)
    words = ["--model", "s", "--model-url", server.url, "--judge", "j", "--judge-url", server.url]
    words += ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "out"), "--price", "30", "60"]
    assert study.main([*words, "--dry-run"]) == 0
    assert not server.asked and not (tmp_path / "out").exists()
    assert "j: 4 judgments to ask, about " in (said := capsys.readouterr().out)
    assert "differ" in said, "questions of ours are no MT-Bench"
    assert study.main(words) == 0
    said = capsys.readouterr().out
    # by hand: four judgments of 100 tokens in and 10 out, at $30 and $60 a million
    assert "j: 4 judgments asked, 400 tokens in, 40 out, $0.01" in said
    assert "at most 8,192 out, at most $0.49; kept are 0" in said
    assert "average       7.00" in said
    assert len(server.asked) == 8
    assert study.main(words) == 0
    assert "0 judgments to ask" in capsys.readouterr().out
    assert len(server.asked) == 8


def test_the_command_ends_with_a_sentence(serve, tmp_path, capsys):
    server = serve()
    server.faults = {"Q": [404]}
    write(tmp_path)
    words = [
        "--model",
        "s",
        "--model-url",
        server.url,
        "--data",
        str(tmp_path),
        "--output",
        str(tmp_path / "o"),
    ]
    assert study.main(words) == 2
    assert capsys.readouterr().err.startswith("mt_bench: s at http://127.0.0.1")
    assert study.main(["--model", str(tmp_path / "none"), "--data", str(tmp_path)]) == 2
    assert "there is no folder" in capsys.readouterr().err


WRONG = {  # of a student in a folder → (what is changed of its model, its template, what is said)
    "tokenizer": ({"vocab_size": 2}, TEMPLATE, "take the tokenizer that it was trained with"),
    "positions": ({"max_position_embeddings": 1}, TEMPLATE, "leaves no place for a response"),
    "template": ({}, "{{ raise_exception('no such turn') }}", "no such turn"),
    "weights": ({}, TEMPLATE, "nan"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_student_that_cannot_answer_is_one_sentence(wrong, tmp_path, capsys):
    options, template, says = WRONG[wrong]
    model, tokenizer = tiny_model(**options), chat_tokenizer()
    tokenizer.chat_template = template
    if wrong == "weights":
        model.get_output_embeddings().weight.data.fill_(float("nan"))
    for saved in (model, tokenizer):
        saved.save_pretrained(tmp_path / "s")
    write(tmp_path / "data")
    words = ["--model", str(tmp_path / "s"), "--data", str(tmp_path / "data"), "--output", str(tmp_path)]
    assert study.main(words) == 2
    [said] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mt_bench: ")]
    assert says in said


def test_the_published_questions():
    """Oracles: FastChat's data card: 80 questions, ten in each of eight categories, references for thirty."""
    bench = mt_bench.read(sources.fetch("mt_bench"))
    assert bench.changed == () and len(FILES) == 3
    assert Counter(question.category for question in bench.questions) == dict.fromkeys(
        mt_bench.TEMPERATURES, 10
    )
    assert [question.number for question in bench.questions] == list(range(81, 161))
    assert sum(question.references is not None for question in bench.questions) == 30
    asked = [r.messages[1]["content"] for r in mt_bench.judgment_requests(bench, "j", [("An A", "A B")] * 80)]
    assert all("An A" in text for text in asked)
    assert not any(re.search(r"\{(question|answer|ref_answer)(_\d)?\}", text) for text in asked)
