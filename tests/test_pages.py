"""What holds of every page: it says what the committed rows say, whatever rows there are, and stands alone."""

import re
from collections import Counter
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
from page_rows import frame_of as by_hand
from page_rows import row

from analysis import page, reference, rows, verdicts
from analysis.__main__ import PAGES, main, render
from analysis.statistics import difference
from analysis.tables import hover, interval, origin

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
FILLED = [name for name in PAGES if (RESULTS / f"{name}.jsonl").exists()]
COMMITTED = [(RESULTS, name, "cpu") for name in FILLED] + [(RESULTS / "gpu", "speed", "gpu")]


@cache
def frame_of(folder: Path, name: str, scale: str):
    return rows.load(folder / f"{name}.jsonl", scale)


def every() -> verdicts.Frames:
    return [(PAGES[name], frame_of(RESULTS, name, "cpu")) for name in FILLED]


@pytest.mark.parametrize(("folder", "name", "scale"), COMMITTED, ids=lambda v: getattr(v, "name", v))
def test_a_committed_page_is_what_its_rows_say(folder, name, scale):
    text = (folder / f"{name}.md").read_text(encoding="utf-8")
    assert page.render(PAGES[name], frame_of(folder, name, scale), scale, folder) == text


def test_the_committed_verdicts_are_what_the_rows_say():
    assert verdicts.render(every(), "cpu") == (RESULTS / "README.md").read_text(encoding="utf-8")


def test_the_readmes_verdicts_are_what_the_rows_say():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert verdicts.with_brief(readme, every()) == readme
    with pytest.raises(ValueError, match="no place for the verdicts"):
        verdicts.with_brief("# taid\n", every())


def test_the_verdicts_in_brief_are_those_of_the_page():
    """Oracle: the lines of results/README.md, counted by their links and words."""
    lines = (RESULTS / "README.md").read_text(encoding="utf-8").partition("## TAID − KL")[0].splitlines()
    for item, command, seeds, *counts in verdicts.brief(every()).body:
        page_name = item.partition("(results/")[2].removesuffix(".md)")
        own = [line for line in lines if f"]({page_name}.md)" in line]
        assert counts[:3] == [str(sum(f"**{o}**" in line for line in own)) for o in verdicts.OUTCOMES]
        assert int(seeds) >= 3 and command.startswith("`make ")


def test_minutes_count_every_cell_once(tmp_path):
    """By hand: cells of 30 and 60 s, the first with two rows, and one of 90 s of a search; 3 minutes."""
    cells = [row(1.0, metric=m, config={"seed": 0}, seconds=30.0) for m in ("score", "held_out_loss")]
    cells.append(row(1.0, seed=1, config={"seed": 1}, seconds=60.0))
    cells.append(row(1.0, experiment="table1_search", config={"seed": 1}, seconds=90.0))
    assert verdicts.minutes(by_hand(tmp_path, cells)) == 3


def test_a_readme_above_the_rows_takes_up_their_verdicts(tmp_path, monkeypatch, capsys):
    """As make claims runs it; one without markers, somebody else's, is left alone."""
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "figure1.jsonl").write_bytes((RESULTS / "figure1.jsonl").read_bytes())
    for text in ("# taid\n", f"# taid\n{verdicts.BEGIN}\nstale\n{verdicts.END}\nrest\n"):
        (tmp_path / "README.md").write_text(text)
        run(monkeypatch, "claims", "--results", folder)
        found = (tmp_path / "README.md").read_text()
        assert found == text if "stale" not in text else "stale" not in found and found.endswith("rest\n")
    assert "[Figure 1](results/figure1.md) | `make figure1` | 4 |" in found


@pytest.mark.slow
def test_the_committed_figures_are_what_the_rows_say(tmp_path):
    for name, frame in every():
        page.save(tmp_path, {}, page.both(name.figures(frame, "cpu")))
    verdicts.write(every(), tmp_path, "cpu")
    for path in [*tmp_path.glob("*.png"), *tmp_path.glob("*.svg")]:
        assert path.read_bytes() == (RESULTS / path.name).read_bytes(), path.name
    assert {path.name for path in RESULTS.glob("*.png")} == {path.name for path in tmp_path.glob("*.png")}


UNFILLED = [name for name, each in PAGES.items() if each.numbers and name not in FILLED]


def test_every_committed_page_is_rendered_from_rows_or_from_the_paper_s_numbers():
    pages = {path.relative_to(RESULTS).with_suffix("") for path in RESULTS.rglob("*.md")}
    ours = {(folder / name).relative_to(RESULTS) for folder, name, _ in COMMITTED}
    assert ours | {Path("README")} <= pages <= ours | {Path("README"), *map(Path, UNFILLED)}


def test_a_committed_page_without_rows_says_how_to_get_them(monkeypatch):
    monkeypatch.chdir(ROOT)
    for name in (name for name in UNFILLED if (RESULTS / f"{name}.md").exists()):
        with pytest.raises(page.NoRows) as reason:
            page.load(PAGES[name], Path("results"), "cpu")
        expected = page.unfilled(PAGES[name], reason.value, "cpu")
        assert (RESULTS / f"{name}.md").read_text(encoding="utf-8") == expected


# The paper's numbers


PRINTED = [(name, csv) for name, each in PAGES.items() for csv in each.numbers]


@pytest.mark.parametrize(("name", "csv"), PRINTED)
def test_a_page_without_rows_shows_every_number_of_the_paper(name, csv, tmp_path, monkeypatch, capsys):
    """Oracle: the file's own cells, as numbers, each as often as the file has it."""
    run(monkeypatch, name, "--results", tmp_path)
    said, text = capsys.readouterr().out, (tmp_path / f"{name}.md").read_text(encoding="utf-8")
    shown = Counter(float(found) for found in re.findall(r"(?<![\w.])\d+\.\d+(?:e-\d+)?", text))
    cells = pd.read_csv(reference.FOLDER / f"{csv}.csv").select_dtypes("number").stack()
    assert Counter(cells) <= shown and len(cells)
    assert "—" in said and not re.search(r"\b(nan|inf)\b", text)
    for where in (said, text):
        assert f"make {' '.join(PAGES[name].targets or [name])} SCALE=cpu RESULTS={tmp_path}" in where
    assert not (tmp_path / f"{name}.jsonl").exists()


def test_every_table_of_the_paper_has_a_page():
    """Oracle: the files of analysis/paper."""
    assert {csv for _, csv in PRINTED} == {path.stem for path in reference.FOLDER.glob("*.csv")}


def test_no_folder_is_made_for_a_page_without_rows(tmp_path, monkeypatch, capsys):
    run(monkeypatch, "table1", "--results", tmp_path / "absent")
    assert "4.05" in capsys.readouterr().out and not (tmp_path / "absent").exists()


def test_every_figure_and_page_that_a_page_names_is_there():
    for path in RESULTS.rglob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name} names {target}"


@pytest.mark.parametrize("name", FILLED)
def test_one_seed_settles_nothing_and_says_so(name):
    """By the t-interval a single value has no spread to judge by."""
    frame = frame_of(RESULTS, name, "cpu")
    if name == "speed":  # its cells are judged by blocks that take turns
        frame = frame[frame.experiment == "cost"]
    frame = frame[frame.seed == 0]
    if name == "figure3":  # it is judged over kinds of teachers, of one seed each
        frame = frame[(frame.method != "language") | (frame.teacher == "phi-3-mini")]
    assert {f.verdict.outcome for f in page.findings(PAGES[name].comparisons(frame))} == {"inconclusive"}
    text = page.render(PAGES[name], frame, "cpu")
    assert "**supported**" not in text and not re.search(r"\b(nan|inf)\b", text)


@pytest.mark.parametrize(("name", "method"), [(name, "taid") for name in FILLED] + [("table1", "teacher")])
def test_a_page_renders_with_the_rows_of_one_method(name, method):
    """As a run that was cut short leaves them."""
    frame = frame_of(RESULTS, name, "cpu")
    part = frame[frame.method == method]
    assert not re.search(r"\b(nan|inf)\b", page.render(PAGES[name], part, "cpu"))
    PAGES[name].figures(part, "cpu")


def test_smoke_is_never_mistaken_for_a_result():
    frame = frame_of(RESULTS, "adaptivity", "cpu")
    assert "mean nothing" in page.render(PAGES["adaptivity"], frame, "smoke")
    assert "mean nothing" not in page.render(PAGES["adaptivity"], frame, "cpu")


@pytest.mark.parametrize("name", ["ablations", *(n for n in FILLED if n.startswith("table"))])
def test_every_table_has_a_line_for_the_difference_between_taid_and_kl(name):
    """But for claims, and for tables of learning rates, which differences of chosen rates would not be."""
    text = page.render(PAGES[name], frame_of(RESULTS, name, "cpu"), "cpu")
    assert "| **TAID − KL**, n = " in text
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        for table in re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE):
            if re.search(r"\| KL \|", table) and re.search(r"\| TAID \|", table):
                assert "TAID − KL" in table or section.startswith(("Learning rates", "Claims")), section[:60]


def test_pages_do_not_import_pages():
    for name, each in PAGES.items():
        assert each.name == name
        source = (ROOT / "analysis" / f"{name}.py").read_text(encoding="utf-8")
        assert not re.search(rf"from analysis(\.| import .*\b)({'|'.join(PAGES)})\b", source)


# The command line


def run(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["analysis", *map(str, arguments)])
    main()


def refused(monkeypatch, capsys, *arguments: object) -> str:
    """The one line that is said where the command ends with 2."""
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *arguments)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in said
    return said.splitlines()[-1]


def test_a_command_ends_with_its_headline_and_where_all_lies(tmp_path, monkeypatch, capsys):
    (tmp_path / "table6.jsonl").write_bytes((RESULTS / "table6.jsonl").read_bytes())
    run(monkeypatch, "table6", "--results", tmp_path)
    said = capsys.readouterr().out
    assert f"`python -m analysis claims --scale cpu --results {tmp_path}` judges" in said
    assert "20.82 | 1.41 ± 0.07" in said and "TAID − KL, n = 5" in said
    for name in ("table6.md", "table6.png", "table6_map.png", "table6.jsonl"):
        assert str(tmp_path / name) in said and (tmp_path / name).stat().st_size > 1000
    assert not list(tmp_path.glob(".*"))  # no temporary file is left


def test_what_is_missing_is_said_with_the_target_that_makes_it(tmp_path, monkeypatch, capsys):
    said = refused(monkeypatch, capsys, "figure1", "--results", tmp_path)
    assert "there is no" in said and f"`make figure1 SCALE=cpu RESULTS={tmp_path}`" in said
    (tmp_path / "figure1.jsonl").touch()
    assert "has no rows of scale cpu; " in refused(monkeypatch, capsys, "figure1", "--results", tmp_path)
    part = (RESULTS / "figure2.jsonl").read_bytes()[:200_000].rpartition(b"\n")[0]
    (tmp_path / "figure2.jsonl").write_bytes(part + b"\n")
    said = refused(monkeypatch, capsys, "figure2", "--scale", "smoke", "--results", tmp_path)
    assert "has no rows of scale smoke, only of cpu" in said
    assert "`make bench cost SCALE=cpu" in refused(monkeypatch, capsys, "speed", "--results", tmp_path)
    assert "invalid choice" in refused(monkeypatch, capsys, "table11")
    assert "invalid choice" in refused(monkeypatch, capsys, "table1", "--scale", "huge")
    assert "`make table6-protocol-1 SCALE=gpu` writes them" in refused(
        monkeypatch, capsys, "table6", "--scale", "gpu"
    )


def test_a_broken_line_is_named_and_not_left_out_in_silence(tmp_path, monkeypatch, capsys):
    (tmp_path / "table2.jsonl").write_text('{"experiment": "table2"}\n')
    assert "table2.jsonl" in refused(monkeypatch, capsys, "report", "--results", tmp_path)


def test_of_many_pages_those_without_rows_are_named(tmp_path, capsys):
    (tmp_path / "rounds.jsonl").write_bytes((RESULTS / "rounds.jsonl").read_bytes())
    render("report", tmp_path, "cpu")
    said = capsys.readouterr().out
    others = len(PAGES) - 1
    assert (
        "self-distillation" in said and said.count("left out: ") + said.count("Ours are missing: ") == others
    )


def test_every_target_of_make_that_is_named_is_one():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", makefile, re.MULTILINE))
    places = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *RESULTS.rglob("*.md")]
    places += [
        path
        for folder in ("taid", "paper_experiments", "benchmarks", "analysis")
        for path in (ROOT / folder).rglob("*.py")
    ]
    for path in places:
        for words in re.findall(
            r"`make ((?:[a-z][a-z0-9-]*)(?: [a-z][a-z0-9-]*)*)", path.read_text(encoding="utf-8")
        ):
            assert set(words.split()) <= targets, f"{path.relative_to(ROOT)} names `make {words}`"
    for name, each in PAGES.items():
        assert set(each.targets or [name]) <= targets


# Where numbers come from

SPAN = re.compile(r'<span class="traced" title="([^"]*)">(.*?)</span>')


@pytest.mark.parametrize("name", ["table3", "figure1", "ablations"])
def test_a_traced_page_is_the_committed_one_with_its_rows(name):
    """Oracle: the committed page without the marks; and the rows, which know every hash and commit that is shown."""
    frame = frame_of(RESULTS, name, "cpu")
    text = page.render(PAGES[name], rows.traced(frame), "cpu")
    assert SPAN.sub(r"\2", text) == (RESULTS / f"{name}.md").read_text(encoding="utf-8")
    shown = SPAN.findall(text)
    assert len(shown) > 30
    for title, _ in shown:
        seeds, commits, hashes, *_ = title.split(" · ")
        known = frame[frame.config_hash.str[:8].isin(hashes.removeprefix("config ").split(", "))]
        assert set(commits.removeprefix("commit ").split(", ")) == set(known.commit.str[:7])
        assert {int(seed) for seed in seeds.split(" ", 1)[1].split(", ")} == set(known.seed)


def test_a_difference_knows_the_rows_of_both_sides():
    """By hand: two methods, two seeds, four rows."""

    def traced(method: str, seed: int, value: float) -> rows.Traced:
        return rows.Traced(
            value, frozenset([rows.Origin(seed, "c" * 40, False, f"{method}{seed}", "cpu", "2025-01-01T00")])
        )

    scores = {m: {s: traced(m, s, v + s) for s in (0, 1)} for m, v in (("taid", 2.0), ("kl", 1.0))}
    found = difference(rows.mapped(scores, lambda v: 2 * v), "taid", "kl")
    assert found.mean == 2 and {o.config_hash for o in found.origins} == {"taid0", "taid1", "kl0", "kl1"}
    assert (
        origin(found.origins)
        == "seeds 0, 1 · commit ccccccc · config kl0, kl1, taid0, taid1 · cpu · 2025-01-01"
    )
    assert interval(found) == hover("2.00 [2.00, 2.00]", found.origins)
    assert interval(difference({"taid": {0: 2.0}, "kl": {0: 1.0}}, "taid", "kl")) == "1.00 (1 seed)"
