"""The report: one static site of all results, documents, notebooks and the library's reference, to open from disk.

    python -m analysis.site [--results results] [--output site]

Pages lie as in the repository, so that their links hold; those of results are rendered from the rows once more, with the
provenance of each number under the pointer. MkDocs makes the rest, by docs/site/mkdocs.yml; formulas become MathML here.
"""

import argparse
import posixpath
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pandas as pd
from mkdocs.commands.build import build as mkdocs_build
from mkdocs.config import load_config
from mkdocs.exceptions import MkDocsException
from nbconvert import MarkdownExporter

from analysis import page, rows, verdicts
from analysis.__main__ import PAGES
from analysis.tables import origin

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "docs" / "site" / "mkdocs.yml"
LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)\s]*)?(\))")
START, REPORT = "start.md", "results/index.md"
REMOTE = re.compile(
    r'<link\b[^>]*\bhref="https?:[^>]*>'
)  # matplotlib's player asks for its icons; site.css has others
CODE = (".py", ".sh", ".yaml", ".toml")
HOW_TO = ("distill", "add_divergence", "offline_teacher", "trainer", "paper_scale", "many_gpus")


def build(results: Path, output: Path) -> Path:
    """The site in `output`, whole or not at all; its first page.

    Raises ValueError for a link or an image that leads nowhere, and what `page.load` raises of damaged rows.
    """
    if output.exists() and not (output / "index.html").exists() and any(output.iterdir()):
        raise ValueError(f"{output} holds something else than a site: name another folder with --output")
    with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        docs, made = Path(scratch) / "docs", Path(scratch) / "site"
        stage(results, docs)
        nav = navigation(docs)
        try:
            config = load_config(
                str(CONFIG),
                docs_dir=str(docs),
                site_dir=str(made),
                nav=nav,
                hooks=[str(Path(__file__).with_name("site_html.py"))],
                strict=True,
            )
            config.plugins["mkdocstrings"].config["handlers"]["python"]["paths"] = [str(ROOT)]
            mkdocs_build(config)
        except MkDocsException as error:
            raise ValueError(f"the site has faults, see above: {error}") from error
        (made / "404.html").unlink()  # a server's, with links from its root
        shutil.rmtree(output, ignore_errors=True)
        made.rename(output)
    return output / "index.html"


# --- Pages, as the repository lays them out -------------------------------------------------------------------


def stage(results: Path, docs: Path) -> None:
    """Every page of the site below `docs`, as Markdown."""
    texts = dict(documents()) | dict(of_results(results)) | dict(notebooks(docs)) | dict(reference())
    todo = list(texts)
    while todo:  # a link may add a page
        known, name = set(texts), todo.pop()
        texts[name] = linked(texts[name], name, texts, docs)
        todo += texts.keys() - known
    for name, text in texts.items():
        write(docs / name, text)
    shutil.copytree(CONFIG.parent, docs / "site", ignore=shutil.ignore_patterns("*.yml"))


def documents() -> Iterator[tuple[str, str]]:
    """(place in the site, Markdown) of what is written by hand."""
    yield START, (ROOT / "README.md").read_text(encoding="utf-8")
    for path in [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]:
        yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


def of_results(folder: Path) -> Iterator[tuple[str, str]]:
    """The first page, all verdicts, and a page for each item, its numbers traced; without rows the paper's alone."""
    frames = []
    for where, scale, names in ((folder, "cpu", list(PAGES)), (folder / "gpu", "gpu", ["speed"])):
        for name in names:
            place = str(Path("results") / where.relative_to(folder) / f"{name}.md")
            try:
                frame = rows.traced(page.load(PAGES[name], where, scale))
            except page.NoRows as reason:
                if where == folder:  # documents may link to it
                    alone = f"# {PAGES[name].title}\n\nOurs are missing: {reason}.\n"
                    yield place, page.unfilled(PAGES[name], reason, scale) if PAGES[name].numbers else alone
                continue
            if where == folder:
                frames.append((PAGES[name], frame))
            yield place, with_provenance(page.render(PAGES[name], frame, scale, where), frame)
    if not frames:
        raise ValueError(f"{folder} has no rows of scale cpu: there is nothing to report")
    together = pd.concat([frame for _, frame in frames])
    yield REPORT, with_provenance(verdicts.render(frames, "cpu"), together)
    yield "index.md", first_page(frames)


def with_provenance(text: str, frame: pd.DataFrame) -> str:
    """The page, whose front matter tells analysis/site_html.py where its rows come from."""
    return f'---\nprovenance: "{origin(frozenset(frame.origin))}"\n---\n{text}'


def first_page(frames: verdicts.Frames) -> str:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    trust = readme.partition("**How far to trust it**")[2].partition("\n\n")[0]
    return (
        "# What the rows say of TAID\n\n"
        "The paper's claims, judged by 95% intervals over seeds: how many are supported, contradicted or open, and on"
        f" which side TAID − KL lies by each measure. [Every claim](results/README.md). [Start here]({START}).\n\n"
        f"{verdicts.brief(frames).markdown()}\n"
        "[![TAID − KL in every table, right is better for TAID](results/forest.png)](results/forest.svg)\n\n"
        f"**How far to trust it**{trust}\n"
    )


def notebooks(docs: Path) -> Iterator[tuple[str, str]]:
    """Every notebook as it was executed, its pictures beside it."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        body, resources = MarkdownExporter().from_notebook_node(nbformat.read(path, as_version=4))
        body = REMOTE.sub("", body)
        for name, content in resources["outputs"].items():
            body = body.replace(f"({name})", f"({path.stem}_{name})")
            picture = docs / "notebooks" / f"{path.stem}_{name}"
            picture.parent.mkdir(parents=True, exist_ok=True)
            picture.write_bytes(content)
        yield f"notebooks/{path.stem}.md", body


def reference() -> Iterator[tuple[str, str]]:
    """A page for each module of the library, from its docstrings."""
    for path in sorted((ROOT / "taid").iterdir()):
        name = path.stem
        if path.name == "studies" or name.startswith("_") or not (path.suffix == ".py" or path.is_dir()):
            continue
        modules = [f"taid.{name}"]
        if path.is_dir():
            modules += [f"taid.{name}.{one.stem}" for one in sorted(path.glob("[a-z]*.py"))]
        blocks = [f"{'#' if module == modules[0] else '##'} {module}\n\n::: {module}\n" for module in modules]
        yield f"reference/{name}.md", "\n".join(blocks)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


# --- Links ----------------------------------------------------------------------------------------------------


def linked(text: str, name: str, texts: dict[str, str], docs: Path) -> str:
    """The page with its links led to what the site has: a notebook's page, a file of code as a page of its own
    (added to `texts`), a picture (copied), a committed page whose rows are not in this folder."""

    def lead(found: re.Match) -> str:
        opening, target, anchor, closing = found.groups()
        here = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
        if re.match(r"[a-z]+:", target) or here in texts or (docs / here).exists():
            return found[0]
        wanted = relative(ROOT, (ROOT / name).parent / target)
        place = {"README.md": START, "results/README.md": REPORT}.get(wanted, wanted).replace(".ipynb", ".md")
        if place not in texts:
            source = ROOT / wanted
            if source.suffix in (".png", ".svg", ".gif"):
                (docs / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, docs / place)
            elif source.suffix == ".md":
                texts[place] = source.read_text(encoding="utf-8")
            elif source.suffix in CODE:
                place = f"code/{place}.md"
                texts[place] = (
                    f"# {wanted}\n\n```{source.suffix[1:]}\n{source.read_text(encoding='utf-8')}```\n"
                )
            else:
                raise ValueError(f"{name} links to {target}, which the site has no page for")
        up = "../" * name.count("/")
        return f"{opening}{up}{place}{anchor or ''}{closing}"

    parts = re.split(r"(```.*?```|`[^`\n]*`)", text, flags=re.DOTALL)
    return "".join(part if part.startswith("`") else LINK.sub(lead, part) for part in parts)


def relative(root: Path, path: Path) -> str:
    """The path below `root`, without "..". Raises ValueError where there is no such file, or it lies elsewhere."""
    found = path.resolve().relative_to(root.resolve())
    if not path.exists():
        raise ValueError(f"there is no {found}")
    return str(found)


# --- Navigation -----------------------------------------------------------------------------------------------


def navigation(docs: Path) -> list:
    """What is found below `docs`, verdicts first."""
    there = {str(path.relative_to(docs)) for path in docs.rglob("*.md")}
    how_to = [f"docs/{name}.md" for name in HOW_TO if f"docs/{name}.md" in there]
    items = [f"results/{name}.md" for name in PAGES if f"results/{name}.md" in there]
    gpu = [{"The same on a GPU": name} for name in ["results/gpu/speed.md"] if name in there]
    background = sorted(name for name in there if name.startswith("docs/") and name not in how_to)
    sections = {
        "Verdicts": [{"In brief": "index.md"}, {"Every claim": REPORT}, {"Start here": START}],
        "Tables and figures": [*items, *gpu],
        "How to": how_to,
        "Behind the numbers": background,
        "Notebooks": sorted(name for name in there if name.startswith("notebooks/")),
        "Reference": sorted(name for name in there if name.startswith("reference/")),
        "The repository": ["CONTRIBUTING.md", "CHANGELOG.md"],
    }
    return [{title: pages} for title, pages in sections.items() if pages]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.site", description="Build the report as a site."
    )
    parser.add_argument(
        "--results", type=Path, default=ROOT / "results", help="folder of the rows (default: results)"
    )
    parser.add_argument(
        "--output", type=Path, default=ROOT / "site", help="folder of the site (default: site)"
    )
    given = parser.parse_args()
    try:
        first = build(given.results, given.output.resolve())
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(f"the report: {first.as_uri()}")


if __name__ == "__main__":
    main()
