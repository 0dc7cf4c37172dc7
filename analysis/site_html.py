"""What becomes of a page's HTML, called by MkDocs: formulas to MathML, provenance to what shows none."""

import html
import re

from bs4 import BeautifulSoup
from latex2mathml.converter import convert

MATH = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
SIZES = re.compile(r"\\[bB]igg?[lr]?(?![a-zA-Z])")  # MathML's fences stretch by themselves
PRINTED = "as the paper prints it: analysis/paper"


def on_page_content(content: str, page, **_) -> str:
    """MkDocs' event, after Markdown and before the theme."""
    content = MATH.sub(lambda found: mathml(html.unescape(found[2]), block=found[1] == "div"), content)
    source = page.meta.get("provenance")
    return sourced(content, f"from the rows of this page: {source}") if source else content


def sourced(content: str, source: str) -> str:
    """Every picture, and every number of a table that does not show its own rows, with a title: the paper's in the
    columns that are called so, else `source`."""
    soup = BeautifulSoup(content, "html.parser")
    for picture in soup.find_all("img"):
        picture["title"] = source
    for table in soup.find_all("table"):
        heads = [cell.get_text() for cell in table.find_all("th")]
        for line in table.find_all("tr"):
            for head, cell in zip(heads, line.find_all("td"), strict=False):
                if re.search(r"\d", cell.get_text()) and not cell.find(title=True):
                    cell["title"] = PRINTED if re.search(r"\bpaper\b", head) else source
    return str(soup)


def mathml(tex: str, block: bool = False) -> str:
    """A formula as MathML. Raises ValueError for a command that would stand there as it is."""
    made = convert(SIZES.sub("", tex), display="block" if block else "inline")
    text = html.unescape(re.sub(r"<[^>]+>", "", made))
    if "\\" in text:
        raise ValueError(f"no MathML for the formula {tex!r}: it leaves {text!r}")
    return made if block else f'<span class="math">{made}</span>'
