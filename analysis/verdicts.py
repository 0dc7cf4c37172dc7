"""All claims on one page, `results/README.md`, in brief in the README; TAID − KL over all tables, `forest.png` and `.svg`."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from analysis import figures, reference
from analysis.measures import Measure
from analysis.page import Finding, Page, both, by_claim, document, findings, save
from analysis.rows import without_references
from analysis.statistics import Estimate, difference, holm, rank_agreement, rank_stability
from analysis.tables import MISSING, Table, counted, effect, interval, number, plural

Frames = Sequence[tuple[Page, pd.DataFrame]]

TITLE = "What the rows say of each claim"
OUTCOMES = ("supported", "contradicted", "inconclusive")
BEGIN, END = "<!-- verdicts, by `make claims` -->", "<!-- end of the verdicts -->"  # in the README
SIDES = ("TAID better", "KL better", "holds 0")  # of an interval of TAID − KL
PAPER = ("Table", "Figure", "cost")  # how the paper's own items begin
PREAMBLE = (
    "One line per claim and place, by the primary measure of its table; `make claims` renders it from the rows"
    " beside this page. *Ours*: first − second, paired by seed, turned so that more is better, with the 95%"
    " interval (× is a ratio). *Supported*: the interval lies wholly where the claim has it; *contradicted*: wholly"
    " elsewhere; else *inconclusive*. *After Holm*: corrected for the number of claims on the page, where that"
    " changes the verdict. *Others*: how many of the other measures (readings, settings) come to the same verdict."
    " *Paper*: the same difference in the paper's own numbers and measure; a dash where it prints none. Of the cost *ours* is the"
    " measured time over the claimed one. *Minutes*: of all the cells on the claim's page, one after the other, their"
    " search for learning rates among them.\n\n"
    "Primary measures were named on 2026-11-25, when these rows were known: in Table 1 the score, in Table 2 KL to"
    " the teacher, in Table 3 the teacher's ranking per token, in Table 6 the log-likelihood (accuracy is too"
    " coarse there), in Figure 2 the noise within a window, for the cost the first setting.\n"
)


class Line(NamedTuple):
    """A claim in one place: by the primary measure first, then by the others; p after Holm's correction; and what
    the cells of its page took."""

    page: Page
    found: list[Finding]
    p: float
    minutes: float

    @property
    def outcome(self) -> str:
        return self.found[0].verdict.outcome

    @property
    def of_the_paper(self) -> bool:
        return self.found[0].claim.paper_item.startswith(PAPER)


class Contrast(NamedTuple):
    """TAID − KL in one place by one measure, turned so that more is better for TAID."""

    where: str
    measure: Measure
    estimate: Estimate


def judged(frames: Frames) -> list[Line]:
    """Every claim of every page, corrected within its page."""
    lines = []
    for page, frame in frames:
        groups = by_claim(findings(page.comparisons(frame)))
        groups = [group for group in groups if any(f.verdict.estimate for f in group)]  # that have rows
        corrected = holm([group[0].verdict.p for group in groups])
        took = minutes(frame)
        lines += [Line(page, group, p, took) for group, p in zip(groups, corrected, strict=True)]
    return lines


def minutes(frame: pd.DataFrame) -> float:
    """What all cells of the rows took, one after the other."""
    return frame.drop_duplicates(["experiment", "config_hash"]).seconds.sum() / 60


def table(lines: Sequence[Line]) -> Table:
    """The verdicts; the item links to its page."""
    shown = ("item", "claim", "where", "paper", "ours", "n", "measure", "verdict", "after Holm", "others")
    header = [*shown, "minutes"]
    return Table(header, [cells(line) for line in lines], text_columns=len(header))


def cells(line: Line) -> list[str]:
    first, *others = line.found
    papers = (effect_of(f.paper.estimate, f.measure) for f in line.found if f.paper and f.paper.estimate)
    estimate, holm_says = first.verdict.estimate, first.verdict.at(line.p)
    agree = sum(other.verdict.outcome == line.outcome for other in others)
    return [
        f"[{first.claim.paper_item}]({line.page.name}.md)",
        first.claim.statement,
        first.where or MISSING,
        next(papers, MISSING),
        effect(estimate, first.measure),
        str(estimate.n) if estimate else MISSING,
        first.measure.heading,
        f"**{line.outcome}**",
        "" if holm_says == line.outcome else holm_says,
        f"{agree} of {len(others)}" if others else MISSING,
        number(line.minutes, 0),
    ]


def effect_of(estimate: Estimate, measure: Measure) -> str:
    """The paper's difference, which has no interval."""
    return effect(Estimate(estimate.mean, 0, 0, 1), measure).removesuffix(" (1 seed)")


def tally(lines: Sequence[Line]) -> str:
    """How many verdicts of each kind, before and after the correction."""
    before = [sum(line.outcome == outcome for line in lines) for outcome in OUTCOMES]
    after = [sum(line.found[0].verdict.at(line.p) == outcome for line in lines) for outcome in OUTCOMES]
    counts = ", ".join(
        f"{b} {outcome} ({a} after Holm)" for b, a, outcome in zip(before, after, OUTCOMES, strict=True)
    )
    return f"{plural(len(lines), 'verdict')}: {counts}.\n"


def contrasts(frames: Frames) -> list[Contrast]:
    """TAID − KL wherever a table has both and one way is better. (The ablations repeat Table 1's first pair.)"""
    found = []
    for page, frame in frames:
        for each in page.comparisons(frame) if page.name.startswith(("table", "decide")) else ():
            estimate = difference(each.measure.oriented(each.scores), "taid", "kl")
            if each.measure.sign and estimate:
                item = page.title.partition(":")[0]
                found.append(
                    Contrast(f"{item}, {each.where}" if each.where else item, each.measure, estimate)
                )
    return found


def contrast_table(found: Sequence[Contrast]) -> Table:
    body = [
        [c.where, c.measure.heading, counted(c.estimate, c.measure.digits), side(c.estimate)] for c in found
    ]
    return Table(
        ["where", "measure", "TAID − KL, right is better for TAID", "interval"], body, text_columns=2
    )


def side(estimate: Estimate) -> str:
    if estimate.n == 1:
        return MISSING
    return "TAID better" if estimate.low > 0 else "KL better" if estimate.high < 0 else "holds 0"


def sides(found: Sequence[Contrast]) -> str:
    better, worse, open_ = (sum(side(c.estimate) == what for c in found) for what in SIDES)
    return (
        f"Of {plural(len(found), 'interval')} {better} lie on TAID's side, {worse} on KL's, {open_} hold 0. They are not"
        " independent: measures of one table come from the same students.\n"
    )


def ranks(frames: Frames) -> Table:
    """How far the order of methods is the paper's, and how far it is the same from seed to seed."""
    body = []
    for page, frame in frames:
        comparisons = page.comparisons(frame)
        papers = {each.where: each.paper for each in comparisons if each.paper and len(each.paper) >= 5}
        for each in comparisons:
            ours = without_references(each.measure.oriented(each.scores))
            agreement = rank_agreement(papers.get(each.where, {}), ours)
            if agreement:
                stable = rank_stability({m: ours[m] for m in papers[each.where] if m in ours})
                shown = [interval(agreement), MISSING if stable is None else number(stable)]
                body.append(
                    [page.title.partition(":")[0], each.where or MISSING, each.measure.heading, *shown]
                )
    note = (
        "Spearman's ρ over the methods. *With the paper*: of our means with the paper's numbers; the interval is the"
        " middle 95% over all ways to draw the seeds with replacement, rough with so few. *Between seeds*: mean ρ"
        " of the orders that two seeds give. 0 is no agreement; an order that is not the same from seed to seed"
        " cannot be the paper's either."
    )
    return Table(["item", "where", "measure", "with the paper", "between seeds"], body, note, text_columns=3)


def forest(found: Sequence[Contrast]) -> Figure:
    """A panel per measure, for units differ."""
    panels: dict[str, dict[str, Estimate]] = {}
    for contrast in found:
        panels.setdefault(contrast.measure.heading, {})[contrast.where] = contrast.estimate
    return figures.forest(panels, "← KL better   TAID − KL   TAID better →")


def render(frames: Frames, scale: str) -> str:
    """The page, from all items that have rows."""
    lines, found = judged(frames), contrasts(frames)
    paper, ours = ([line for line in lines if line.of_the_paper is side] for side in (True, False))
    sections = {
        "The paper's claims": f"{tally(paper)}\n{table(paper).markdown()}" if paper else "",
        "TAID − KL in every table": (
            f"![TAID − KL](forest.png)\n\n{sides(found)}\n{contrast_table(found).markdown()}" if found else ""
        ),
        "The order of methods": ranks(frames).markdown(),
        "What reviewers asked, and the theory": f"{tally(ours)}\n{table(ours).markdown()}" if ours else "",
        "Outside evidence": (reference.FOLDER / "outside.md").read_text(encoding="utf-8"),
    }
    return document(TITLE, scale, PREAMBLE, sections)


def write(frames: Frames, folder: Path, scale: str) -> str:
    """Write README.md and the forest to `folder`, and the brief to a README.md above it that has a place for it; what
    to say on the terminal: the paper's claims in brief."""
    found, paper = contrasts(frames), [line for line in judged(frames) if line.of_the_paper]
    drawn = both({"forest": forest(found)}) if found else {}
    text, *images = save(folder, {"README.md": render(frames, scale)}, drawn)
    above = folder.resolve().parent / "README.md"
    if above.exists() and BEGIN in above.read_text(encoding="utf-8"):
        save(above.parent, {above.name: with_brief(above.read_text(encoding="utf-8"), frames)}, {})
    header = ["page", "claim", "where", "paper", "ours", "verdict"]
    body = [[line.page.name, line.found[0].claim.name, *cells(line)[2:5], line.outcome] for line in paper]
    shown = Table(header, body, text_columns=len(header)).aligned()
    places = f"page    {text}\nfigure  {'  '.join(map(str, images)) or MISSING}\n"
    return f"{TITLE} (scale {scale})\n\n{shown}\n{tally(paper)}\n{places}"


def brief(frames: Frames) -> Table:
    """A line per item with claims of the paper: how many verdicts of each kind, and TAID − KL by all measures."""
    body = []
    for page, frame in frames:
        lines = [line for line in judged([(page, frame)]) if line.of_the_paper]
        if lines:
            sided = [side(contrast.estimate) for contrast in contrasts([(page, frame)])]
            seeds = max((e.n for line in lines for f in line.found if (e := f.verdict.estimate)), default=0)
            body.append(
                [
                    f"[{page.title.partition(':')[0]}](results/{page.name}.md)",
                    f"`make {' '.join(page.targets or [page.name])}`",
                    str(seeds or MISSING),
                    *(str(sum(line.outcome == outcome for line in lines)) for outcome in OUTCOMES),
                    " / ".join(str(sided.count(what)) for what in SIDES) if sided else MISSING,
                ]
            )
    header = ["item", "command", "seeds", *OUTCOMES, f"TAID − KL: {' / '.join(SIDES)}"]
    return Table(header, body, text_columns=2)


def with_brief(readme: str, frames: Frames) -> str:
    """The README with `brief` between its two markers. Raises ValueError without them."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"README.md has no place for the verdicts: the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{brief(frames).markdown()}\n{END}{after}"
