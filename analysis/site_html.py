"""What becomes of a page's HTML, called by MkDocs: formulas to MathML, provenance to what shows none."""

import html
import re

from latex2mathml.converter import convert

MATH = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
SIZES = re.compile(r"\\[bB]igg?[lr]?(?![a-zA-Z])")  # MathML's fences stretch by themselves
CELL = re.compile(r"<td((?: style=\"[^\"]*\")?)>(?=[^<]*\d)")  # a number, not yet traced


def on_page_content(content: str, page, **_) -> str:
    """MkDocs' event, after Markdown and before the theme."""
    content = MATH.sub(lambda found: mathml(html.unescape(found[2]), block=found[1] == "div"), content)
    if source := page.meta.get("provenance"):
        title = f'title="from the rows of this page: {html.escape(source)}"'
        content = CELL.sub(rf"<td\1 {title}>", content).replace("<img ", f"<img {title} ")
    return content


def mathml(tex: str, block: bool = False) -> str:
    """A formula as MathML. Raises ValueError for a command that would stand there as it is."""
    made = convert(SIZES.sub("", tex), display="block" if block else "inline")
    text = html.unescape(re.sub(r"<[^>]+>", "", made))
    if "\\" in text:
        raise ValueError(f"no MathML for the formula {tex!r}: it leaves {text!r}")
    return made
