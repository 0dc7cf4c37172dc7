"""Figures: what is cut, grouped and explained; files of pixels and of lines; labels that stand apart."""

import itertools
import re
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from analysis import figures, page, verdicts
from analysis.__main__ import PAGES
from analysis.measures import MEASURES
from analysis.statistics import Estimate, mean_interval
from analysis.style import COLOURS

RESULTS = Path(__file__).parents[1] / "results"
SCORE = MEASURES["score"]


def legends(figure: Figure) -> set[str]:
    """Every label of every legend."""
    parts = [figure, *figure.subfigs]
    return {text.get_text() for part in parts for each in part.legends for text in each.get_texts()}


def test_what_lies_far_out_is_cut_with_its_number():
    values = {"kl": 0.1, "rkl": -0.2, "sft": 0.3, "gkd": -90.0}
    found = {m: mean_interval([v - 0.1, v + 0.1]) for m, v in values.items()}
    figure = figures.differences({"": {SCORE: found}}, {"": list(found)}, to="taid")
    ax = figure.axes[0]
    assert max(map(abs, ax.get_xlim())) < 3 and "−90.00" in [text.get_text() for text in ax.texts]
    spans = [
        line.get_xdata()
        for line in ax.get_lines()
        if len(line.get_xdata()) == 2 and list(line.get_xdata()) != [0, 0]
    ]
    assert len(spans) == 3 and all(ax.get_xlim()[0] <= x <= ax.get_xlim()[1] for span in spans for x in span)
    assert legends(figure) == {figures.INTERVAL, figures.CUT}


def test_an_interval_that_goes_on_keeps_its_dot_and_gets_an_arrow_at_each_end():
    """By hand: three sizes of 1.5, whose fourfold is 6; one of 1 ± 20."""
    found = {m: Estimate(0.5, -0.5, 1.5, 3) for m in ("kl", "rkl", "sft")} | {
        "gkd": Estimate(1.0, -19.0, 21.0, 3)
    }
    ax = figures.around(Figure().subplots(), found, list(found), COLOURS)
    limit = ax.get_xlim()[1]
    assert limit == pytest.approx(1.05 * 1.5) and ax.get_xlim()[0] == -limit
    at_gkd = [line for line in ax.get_lines() if line.get_ydata()[0] == 3]
    assert {line.get_marker() for line in at_gkd} == {"None", "o", "<", ">"} and not ax.texts
    [bar] = [line for line in at_gkd if line.get_marker() == "None"]
    assert list(bar.get_xdata()) == [-limit, limit]


def test_groups_stand_below_their_headings():
    found = {m: mean_interval([0.1, 0.2]) for m in ("kl", "rkl")}
    figure = figures.differences({"": {SCORE: found}}, {"Old": ["kl"], "New": ["rkl"]}, to="taid")
    labels = figure.axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == ["Old", "KL", "New", "RKL"]
    assert [label.get_fontweight() for label in labels] == ["bold", "normal", "bold", "normal"]
    assert figure.axes[0].get_xlabel() == "difference to TAID\n[points of 10], better →"


def test_a_figure_is_saved_in_pixels_and_in_lines_twice_alike(tmp_path):
    figure = figures.canvas(2)
    figure.subplots().plot([0, 1], label="a line")
    figures.legend(figure, figures.BANDS)
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        assert [path.name for path in page.save(folder, {}, page.both({"x": figure}))] == ["x.png", "x.svg"]
    for name in ("x.png", "x.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    image = Image.open(tmp_path / "a" / "x.png")
    assert image.size == (round(figures.WIDTH * 200), 400)
    assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    svg = (tmp_path / "a" / "x.svg").read_text(encoding="utf-8")
    assert not re.search(r"<dc:date>|\d{4}-\d\d-\d\dT", svg) and image.info.keys() <= {"dpi"}


def test_pictures_of_a_page_lead_to_their_lines():
    text = page.document(
        "A page", "cpu", "![words, and more](some_figure.png)\n", {"B": "![x](y.png) [z](z.md)"}
    )
    assert "[![words, and more](some_figure.png)](some_figure.svg)\n" in text
    assert "[![x](y.png)](y.svg) [z](z.md)" in text


def test_every_committed_picture_has_its_lines_beside_it():
    """And no more than five megabytes are of either form."""
    pictures = [*RESULTS.rglob("*.png")]
    assert len(pictures) > 25 and all(path.with_suffix(".svg").exists() for path in pictures)
    for form in ("png", "svg"):
        assert sum(path.with_suffix(f".{form}").stat().st_size for path in pictures) < 5e6


def committed() -> list[tuple[str, Figure]]:
    """Every committed figure, drawn from its rows."""
    frames, drawn = [], []
    for folder, scale in ((RESULTS, "cpu"), (RESULTS / "gpu", "gpu")):
        for each in PAGES.values():
            if (folder / f"{each.name}.jsonl").exists():
                frame = page.load(each, folder, scale)
                drawn += each.figures(frame, scale).items()
                frames += [(each, frame)] * (scale == "cpu")
    return [*drawn, ("forest", verdicts.forest(verdicts.contrasts(frames)))]


def shown(figure: Figure) -> list[tuple[str, object]]:
    """Every text of a figure with its box in pixels, but for labels of ticks beyond their axis."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = {
        text: text.get_window_extent(canvas.get_renderer())
        for text in figure.findobj(Text)
        if text.get_text().strip() and text.get_visible()
    }
    for ax in figure.axes:
        for axis, low, high, side in ((ax.xaxis, *ax.bbox.intervalx, 0), (ax.yaxis, *ax.bbox.intervaly, 1)):
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                for label in (tick.label1, tick.label2):
                    box = boxes.get(label)
                    if box and not low - 2 <= (box.min[side] + box.max[side]) / 2 <= high + 2:
                        del boxes[label]
    return [(text.get_text(), box) for text, box in boxes.items() if box.width > 0]


@pytest.mark.slow
def test_no_label_of_a_committed_figure_collides_or_is_cut_and_every_interval_is_explained():
    for stem, figure in committed():
        texts, frame = shown(figure), figure.bbox
        for words, box in texts:
            inside = frame.x0 - 1 <= box.x0 and box.x1 <= frame.x1 + 1
            assert inside and frame.y0 - 1 <= box.y0 and box.y1 <= frame.y1 + 1, (stem, words)
        for (first, a), (second, b) in itertools.combinations(texts, 2):
            over = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
            assert min(over) <= 1, (stem, first, second)
        lines = [line for ax in figure.axes for line in ax.get_lines() if line.get_alpha() == 0.5]
        bands = [each for ax in figure.axes for each in ax.collections if isinstance(each, PolyCollection)]
        assert not (lines or bands) or figures.INTERVAL in legends(figure), stem
        assert figure.get_figwidth() == figures.WIDTH, stem
