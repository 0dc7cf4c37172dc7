"""What all pages share: from the rows of one item to its page, its figures and its judged claims."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from analysis import rows
from analysis.measures import Measure
from analysis.predicates import Claim, Verdict, in_paper
from analysis.rows import Scores
from analysis.tables import MISSING, Table, effect, provenance

UNSAID = {"png": "Software", "svg": "Date"}  # what a figure's file would hold of the day and of matplotlib
DPI = 200
PICTURE = re.compile(r"(!\[[^\]]*\]\((\w+)\.png\))")
SMOKE = "**Scale smoke: the numbers mean nothing. They show that everything runs, and no more.**\n\n"


@dataclass(frozen=True)
class Comparison:
    """Scores of one measure in one place, the claims about them, and the paper's numbers, turned alike.

    Of comparisons with one `where` the first is by the primary measure.
    """

    where: str  # a pair, a teacher; "" where there is but one
    measure: Measure
    scores: Scores  # as measured
    claims: Sequence[Claim] = ()
    paper: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Finding:
    """A claim judged by one measure; `paper` is what the paper's own numbers say of it."""

    where: str
    measure: Measure
    claim: Claim
    verdict: Verdict
    paper: Verdict | None


@dataclass(frozen=True)
class Page:
    """What is a page's own: results/`name`.jsonl gives results/`name`.md and its figures."""

    name: str
    title: str
    preamble: Callable[[pd.DataFrame, str], str]
    headline: Callable[[pd.DataFrame, str], Table]  # the paper beside ours, also for the terminal
    sections: Callable[[pd.DataFrame, str], Mapping[str, str]]  # by heading, the headline's first
    comparisons: Callable[[pd.DataFrame], list[Comparison]]
    figures: Callable[[pd.DataFrame, str], Mapping[str, Figure]]  # by the file's stem
    targets: Sequence[str] = ()  # of make, that fill its rows; its own name unless said
    beside: Callable[[Path], Mapping[str, str]] = lambda folder: {}  # sections from other files of the folder
    numbers: Sequence[str] = ()  # files of analysis/paper: `sections` of no rows shows these, ours as dashes


class NoRows(ValueError):
    """There is nothing to render."""


def load(page: Page, folder: Path, scale: str) -> pd.DataFrame:
    """The page's rows of one scale.

    Raises NoRows if there are none, and says which target of make writes them.
    """
    path = folder / f"{page.name}.jsonl"
    if folder.is_file():
        raise ValueError(f"{folder} is a file: what is asked for is the folder of the rows")
    frame = rows.load(path, scale)
    if not frame.empty:
        return frame
    if not path.exists():
        raise NoRows(f"there is no {path}; {advice(page, folder, scale)}")
    others = ", ".join(sorted(rows.scales(path)))
    only = f", only of {others}" if others else ""
    raise NoRows(f"{path} has no rows of scale {scale}{only}; {advice(page, folder, scale)}")


def advice(page: Page, folder: Path, scale: str) -> str:
    """Which target of make writes rows of this scale, and where."""
    if folder == Path("runs") / scale or (scale == "smoke" and folder.resolve() == Path("results").resolve()):
        return f"`make {' '.join(page.targets or [page.name])} SCALE={scale}` writes them, to runs/{scale}"
    return f"`make {' '.join(page.targets or [page.name])} SCALE={scale} RESULTS={folder}` writes them"


def render(page: Page, frame: pd.DataFrame, scale: str, folder: Path | None = None) -> str:
    """The whole page, from the rows of one scale, and from what the folder has beside them. Equal rows give
    equal text; no rows, no section."""
    (first, headline), *others = page.sections(frame, scale).items()
    sections = {first: headline, "Claims": claims(findings(page.comparisons(frame)))}
    sections |= {**dict(others), **(page.beside(folder) if folder else {}), "Provenance": provenance(frame)}
    return document(page.title, scale, page.preamble(frame, scale), sections)


def unfilled(page: Page, reason: NoRows, scale: str) -> str:
    """The page without rows of ours: why, what writes them, and the paper's numbers beside dashes."""
    preamble = f"Ours are missing: {reason}. The paper's numbers:\n"
    return document(page.title, "paper", preamble, page.sections(rows.empty(), scale))


def document(title: str, scale: str, preamble: str, sections: Mapping[str, str]) -> str:
    """Title, at the scale smoke a warning, preamble, and the sections that are not empty; every figure leads to
    its drawing in lines, which lies beside it."""
    body = "".join(f"\n## {heading}\n\n{text}" for heading, text in sections.items() if text)
    text = f"# {title}\n\n{SMOKE if scale == 'smoke' else ''}{preamble}{body}"
    return PICTURE.sub(r"[\1](\2.svg)", text)


def write(page: Page, frame: pd.DataFrame, folder: Path, scale: str) -> list[Path]:
    """Render the rows of one scale to `folder`/name.md and its figures; the files written."""
    text = {f"{page.name}.md": render(page, frame, scale, folder)}
    return save(folder, text, both(page.figures(frame, scale)))


def both(figures: Mapping[str, Figure]) -> dict[str, Figure]:
    """A file of pixels and one of lines for each figure, by the file's stem."""
    return {f"{stem}.{form}": figure for stem, figure in figures.items() for form in ("png", "svg")}


def save(folder: Path, texts: Mapping[str, str], figures: Mapping[str, Figure]) -> list[Path]:
    """Each file whole or not at all: a temporary one, then renamed. Figures by the file's name."""
    contents = {name: text.encode() for name, text in texts.items()}
    for name, figure in figures.items():
        image, form = BytesIO(), name.rpartition(".")[2]
        with rc_context({"svg.hashsalt": name}):  # equal rows give equal bytes
            figure.savefig(image, format=form, dpi=DPI, metadata={UNSAID[form]: None})
        contents[name] = few_colours(image) if form == "png" else image.getvalue()
    for name, content in contents.items():
        part = folder / f".{name}.part"
        part.write_bytes(content)
        part.replace(folder / name)
    return [folder / name for name in contents]


def few_colours(image: BytesIO) -> bytes:
    """The PNG in 256 colours, as many as a drawing has but for the edges of its letters: a third of the bytes."""
    small = BytesIO()
    drawn = Image.open(image).convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE)
    drawn.save(small, "png", optimize=True)
    return small.getvalue()


def findings(comparisons: Sequence[Comparison]) -> list[Finding]:
    """Every claim of every comparison, judged."""
    return [
        Finding(
            each.where,
            each.measure,
            claim,
            claim.predicate(each.measure.oriented(each.scores)),
            paper if (paper := in_paper(claim, each.paper or {})).estimate else None,
        )
        for each in comparisons
        for claim in each.claims
    ]


def by_claim(found: Sequence[Finding]) -> list[list[Finding]]:
    """The findings of one claim in one place together, the one by the primary measure first."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in found:
        groups.setdefault((finding.where, finding.claim.name), []).append(finding)
    return list(groups.values())


RULE = (
    "In brackets the 95% interval of first − second, paired by seed, turned so that more is better (× is a"
    " ratio). *Supported*: the interval lies wholly where the claim has it. *Contradicted*: wholly elsewhere."
    " Else *inconclusive*; one seed settles nothing. Above several rivals: all must be passed; a contradiction"
    " is Bonferroni-corrected over them. The first column of verdicts is by the primary measure."
    " `make claims` corrects for the number of claims.\n"
)


def claims(found: Sequence[Finding]) -> str:
    """A line per claim and place, a column per measure; a table for claims of the same measures. And the rule."""
    blocks: dict[tuple[Measure, ...], list[list[Finding]]] = {}
    for group in by_claim(found):
        blocks.setdefault(tuple(f.measure for f in group), []).append(group)
    tables = [verdict_table(measures, groups).markdown() for measures, groups in blocks.items()]
    return "\n".join([*tables, RULE]) if tables else ""


def verdict_table(measures: Sequence[Measure], groups: Sequence[Sequence[Finding]]) -> Table:
    """Where and in the paper: columns only if they say something."""
    places, papers = any(g[0].where for g in groups), any(f.paper for g in groups for f in g)
    body = []
    for group in groups:
        paper = next((f.paper for f in group if f.paper), None)
        known = MISSING_IN_PAPER if paper is None else IN_PAPER[paper.outcome]
        body.append(
            [
                *([group[0].where] if places else []),
                group[0].claim.statement,
                group[0].claim.paper_item,
                *([known] if papers else []),
                *(_judged(f) for f in group),
                group[0].verdict.explanation,
            ]
        )
    header = [
        *(["where"] if places else []),
        "claim",
        "from",
        *(["in the paper"] if papers else []),
        *(measure.heading for measure in measures),
        "difference",
    ]
    return Table(header, body, text_columns=len(header))


def _judged(finding: Finding) -> str:
    """Verdict and effect; a dash where there are no rows to judge."""
    estimate = finding.verdict.estimate
    return f"**{finding.verdict.outcome}** {effect(estimate, finding.measure)}" if estimate else MISSING


MISSING_IN_PAPER = "no numbers"
IN_PAPER = {"supported": "holds", "contradicted": "does not hold", "inconclusive": "does not hold"}


def write_unfilled(page: Page, reason: NoRows, folder: Path, scale: str) -> str:
    """Write the page without rows to `folder`, if there is one; what to say on the terminal.

    Raises the reason where the paper prints no numbers either.
    """
    if not page.numbers:
        raise reason
    if folder.is_dir():
        save(folder, {f"{page.name}.md": unfilled(page, reason, scale)}, {})
    headline = page.headline(rows.empty(), scale).aligned()
    return f"{page.title}: the paper's numbers\n\n{headline}\nOurs are missing: {reason}.\n"


def summary(page: Page, frame: pd.DataFrame, scale: str, written: Sequence[Path]) -> str:
    """For the terminal: the headline, where page, figures and rows lie, and what to look at next."""
    text, *images = written
    folder = text.parent
    judge = (
        "make claims"
        if folder.name == "results"
        else f"python -m analysis claims --scale {scale} --results {folder}"
    )
    places = {
        "page": str(text),
        "figure": "  ".join(map(str, images)),
        "rows": f"{text.with_suffix('.jsonl')} ({len(frame):,} of scale {scale})",
        "next": f"`{judge}` judges every claim that has rows; `make report` makes one site of all pages",
    }
    warning = "The numbers mean nothing at this scale.\n" if scale == "smoke" else ""
    lines = "".join(f"{what:<8}{where}\n" for what, where in places.items())
    return f"{page.title} (scale {scale})\n{warning}\n{page.headline(frame, scale).aligned()}\n{lines}"
