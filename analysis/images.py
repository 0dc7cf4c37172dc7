"""What the pages of Tables 7 and 8 share: classifiers of images, the paper's accuracies beside ours."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import claims, figures, reference
from analysis.figures import Panel
from analysis.measures import Measure
from analysis.page import Comparison, Page
from analysis.rows import Pair, Scores, scores, seeds, without_references
from analysis.statistics import Estimate, difference, mean_interval
from analysis.style import COLOURS, name, pair_name
from analysis.tables import MISSING, Table, effect, marks, number, plural, value, versus

ALONE = "sft"
METHODS = ("kl", "ctkd", "dkd", "mlkd", "taid")  # the paper's order
MEASURES = {  # the primary one first
    "accuracy": Measure("accuracy", "percent", 2, 1),
    "held_out_loss": Measure("held-out loss", "nats/image", 3, -1),
    "kl_to_teacher": Measure("KL to the teacher", "nats/image", 3, -1),
}


class ImagesPage:
    """The parts of a page of one table; `note` is what is to be said of its numbers in the paper."""

    def __init__(self, table: str, data: str, note: str):
        self.table, self.data, self.note = table, data, note
        self.item = f"Table {table.removeprefix('table')}"
        self.paper = reference.images(table)

    def page(self, title: str) -> Page:
        return Page(
            self.table,
            f"{self.item}: {title}",
            self.preamble,
            self.headline,
            self.sections,
            self.comparisons,
            lambda frame, scale: {self.table: self.draw(frame, scale)},
            numbers=[reference.IMAGES[self.table]],
        )

    def of(self, frame: pd.DataFrame, pair: Pair, metric: str = "accuracy") -> Scores:
        return scores(frame, self.table, metric).get(pair, {})

    def preamble(self, frame: pd.DataFrame, scale: str) -> str:
        steps = max([config.get("steps", 0) for config in frame.config], default=0)
        return (
            f"*Paper*: {self.data}, top-1 accuracy [percent]. *Ours ({scale})*: a part of Fashion-MNIST (ten kinds of"
            " clothes), 14 × 14 pixels, the same networks with a quarter or an eighth of the channels, trained from"
            f" scratch for {steps} steps. Compare the order of methods, not numbers across columns."
            f" {plural(seeds(frame, self.table), 'seed')}; ± is half of the 95% t-interval over them. Seeds differ in"
            " the student's initialisation and the order of the data; there is one teacher of each kind. *Student"
            " alone*: trained on the labels, without a teacher. What the study is: `docs/vision.md`.\n\n"
            f"![Difference to KL: the paper's and ours]({self.table}.png)\n\n"
            "*Figure*: difference to KL's accuracy; hollow the paper's, filled ours, paired by seed, with 95% intervals."
            " What lies far out is cut, with an arrow.\n"
        )

    def headline(self, frame: pd.DataFrame, scale: str) -> Table:
        """Method × pair: the paper's accuracy and ours; TAID − KL last."""
        found = {pair: self.of(frame, pair) for pair in self.paper}
        count = seeds(frame, self.table)
        formats = {pair: marks(without_references(by)) for pair, by in found.items()}

        def cells(method: str, pair: Pair) -> list[str]:
            theirs = self.paper[pair].get(method)
            shown = value(found[pair].get(method), 1 if method == "teacher" else count)
            shown = shown.removesuffix(" (1 seed)") if method == "teacher" else shown
            return [
                MISSING if theirs is None else number(theirs),
                formats[pair].get(method, "{}").format(shown),
            ]

        listed = [*METHODS, *(m for m in (ALONE, "teacher") if any(m in by for by in found.values()))]
        body = [[label(m), *(cell for pair in self.paper for cell in cells(m, pair))] for m in listed]
        first, *gaps = versus(*((by, 2) for by in found.values()))
        papers = (by["taid"] - by["kl"] for by in self.paper.values())
        gap = [first, *(c for p, ours in zip(papers, gaps, strict=True) for c in (number(p), ours))]
        header = [
            "method",
            *(h for pair in self.paper for h in (f"{pair_name(pair)}: paper", f"ours ({scale})")),
        ]
        note = "Bold: our best mean of the pair. †: a tie, for the paired interval to the best includes 0."
        return Table(header, [*body, gap], note)

    def sections(self, frame: pd.DataFrame, scale: str) -> dict[str, str]:
        return {
            "Accuracy: the paper and ours": self.headline(frame, scale).markdown(),
            "Likelihoods": self.likelihoods(frame).markdown(),
            "Room for a teacher": self.room(frame).markdown(),
            "Learning rates": self.learning_rates(frame).markdown(),
            "The paper's numbers": f"{self.note}\n",
        }

    def likelihoods(self, frame: pd.DataFrame) -> Table:
        """Pair and method × the other measures; TAID − KL last for each pair."""
        body = []
        for pair in self.paper:
            found = {metric: self.of(frame, pair, metric) for metric in MEASURES if metric != "accuracy"}
            formats = {
                metric: marks(MEASURES[metric].oriented(without_references(by)))
                for metric, by in found.items()
            }
            body += [
                [
                    pair_name(pair),
                    label(m),
                    *(
                        formats[metric]
                        .get(m, "{}")
                        .format(value(by.get(m), seeds(frame, self.table), MEASURES[metric].digits))
                        for metric, by in found.items()
                    ),
                ]
                for m in (*METHODS, ALONE)
                if any(m in by for by in found.values())
            ]
            if any({"taid", "kl"} <= by.keys() for by in found.values()):
                gaps = versus(*((by, MEASURES[metric].digits) for metric, by in found.items()))
                body.append([pair_name(pair), *gaps])
        header = ["pair", "method", *(m.heading for key, m in MEASURES.items() if key != "accuracy")]
        return Table(header, body, text_columns=2)

    def room(self, frame: pd.DataFrame) -> Table:
        """How far the teacher is above the student alone: without room there is nothing to distil."""
        body = []
        for pair in self.paper:
            found = self.of(frame, pair)
            if "teacher" in found and ALONE in found:
                (teacher,) = found["teacher"].values()
                gaps = mean_interval([teacher - alone for alone in found[ALONE].values()])
                gap = effect(gaps, MEASURES["accuracy"])
                body.append(
                    [pair_name(pair), number(teacher), value(found[ALONE], seeds(frame, self.table)), gap]
                )
        return Table(
            ["pair", "teacher ↑ [percent]", "student alone ↑ [percent]", "teacher − student alone"], body
        )

    def learning_rates(self, frame: pd.DataFrame) -> Table:
        """The rate taken for each method and pair; a mark where it lies at an edge of the grid."""
        searched = frame[(frame.experiment == f"{self.table}_search") & (frame.metric == "accuracy")]
        grid = sorted(searched.learning_rate.dropna().unique())
        chosen = frame[(frame.experiment == self.table) & (frame.metric == "accuracy")]
        rates = chosen.groupby(["teacher", "student", "method"]).learning_rate.max()

        def cell(pair: Pair, method: str) -> str:
            if (*pair, method) not in rates.index:
                return MISSING
            rate = rates[(*pair, method)]
            return f"{rate:g}{' *' if len(grid) > 1 and rate in (grid[0], grid[-1]) else ''}"

        body = [[pair_name(pair), *(cell(pair, m) for m in (*METHODS, ALONE))] for pair in self.paper]
        note = (
            f"By the accuracy on validation images in shorter runs of seed 100; the grid: {', '.join(f'{r:g}' for r in grid)}."
            " *: at an edge of it."
        )
        return Table(["pair", *(label(m) for m in (*METHODS, ALONE))], body if len(grid) else [], note)

    def comparisons(self, frame: pd.DataFrame) -> list[Comparison]:
        return [
            Comparison(
                pair_name(pair),
                measure,
                self.of(frame, pair, metric),
                claims.images(self.item, paper),
                paper if metric == "accuracy" else None,
            )
            for pair, paper in self.paper.items()
            for metric, measure in MEASURES.items()
        ]

    def draw(self, frame: pd.DataFrame, scale: str) -> Figure:
        """A panel per pair: each method's accuracy less KL's, in the paper and here."""
        panels = []
        for pair, paper in self.paper.items():
            found = self.of(frame, pair)
            theirs = {m: mean_interval([paper[m] - paper["kl"]]) for m in METHODS if m != "kl"}
            ours: dict[str, Estimate] = {
                m: gap for m in (*METHODS, ALONE) if m != "kl" and (gap := difference(found, m, "kl"))
            }
            kl = [*found.get("kl", {}).values()]
            note = f"ours ({scale}): KL {np.mean(kl):.1f}" if kl else ""
            panels.append(Panel(pair_name(pair), theirs, ours, note, "percent", "percent"))
        return figures.paper_beside_ours(panels, COLOURS, "kl")


def label(method: str) -> str:
    return {ALONE: "student alone"}.get(method, name(method))
