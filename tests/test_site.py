"""The report, as a reader has it: from disk, in a browser, at a desk's width and at a phone's."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait
from test_architecture import ROOT
from test_lab import FLAGS

from analysis import page, site, site_html
from analysis.__main__ import PAGES
from taid.studies.sources import LARGE, SOURCES

RESULTS = ROOT / "results"


# Parts of it


@pytest.mark.parametrize(
    "tex", [r"\tfrac1t \lVert q - p_t\rVert_1 \le \max\bigl\lbrace a,\ b\bigr\rbrace", r"e^{-\alpha n / 2}"]
)
def test_a_formula_is_mathml(tex):
    made = site_html.mathml(tex)
    assert made.startswith('<span class="math"><math') and "\\" not in re.sub("<[^>]+>", "", made)


def test_a_formula_that_does_not_come_through_fails():
    with pytest.raises(ValueError, match=r"no MathML for the formula"):
        site_html.mathml(r"\nosuchcommand x")


def test_every_formula_of_the_documents_is_mathml():
    """As arithmatex finds them: between dollars, outside of code."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")]
    plain = [re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL) for text in texts]
    found = [tex for text in plain for tex in re.findall(r"\$\$(.+?)\$\$|\$([^$]+?)\$", text, re.DOTALL)]
    assert len(found) > 100
    for block, inline in found:
        site_html.mathml(block or inline)


def test_a_number_without_rows_of_its_own_has_those_of_its_page_or_is_the_papers():
    line = '<td>KL</td><td><strong>3.05</strong></td><td>1.5</td><td><span title="seed 1">2.5</span></td>'
    content = f"<table><tr><th>method</th><th>A: paper</th><th>ours</th><th>x</th></tr><tr>{line}</tr></table><img src='a'>"
    made = site_html.on_page_content(content, SimpleNamespace(meta={"provenance": "seed 0"}))
    assert made.count('title="from the rows of this page: seed 0"') == 2  # the number, and the picture
    assert made.count('title="as the paper prints it: analysis/paper"') == 1
    assert '<span title="seed 1">2.5</span>' in made and "<td>KL</td>" in made
    assert site_html.on_page_content(content, SimpleNamespace(meta={})) == content


def texts_of(name: str, text: str) -> tuple[str, dict]:
    texts = {name: text, "docs/theory.md": "", site.START: "", site.REPORT: ""}
    return site.linked(text, name, texts, Path("/nowhere")), texts


def test_links_lead_to_pages_of_the_site():
    text = "[a](theory.md#1) [b](../README.md) [c](../results/README.md) [d](../notebooks/theory.ipynb)"
    with pytest.raises(ValueError, match="no page for"):  # of a notebook that is not staged
        texts_of("docs/x.md", text)
    made, _ = texts_of("docs/x.md", text.partition(" [d]")[0])
    assert made == f"[a](theory.md#1) [b](../{site.START}) [c](../{site.REPORT})"


def test_a_file_of_code_becomes_a_page():
    made, texts = texts_of("docs/x.md", "[a](../taid/files.py), `[b](no.py)`")
    assert made.startswith("[a](../code/taid/files.py.md)")
    assert (ROOT / "taid" / "files.py").read_text() in texts["code/taid/files.py.md"]


def test_every_link_of_the_documents_leads_somewhere(tmp_path):
    """In the default lane, so that a page need not wait for the whole site to be built."""
    texts = dict(site.documents()) | {site.REPORT: "", **{f"results/{name}.md": "" for name in PAGES}}
    texts |= {f"notebooks/{path.stem}.md": "" for path in (ROOT / "notebooks").glob("*.ipynb")}
    for name in list(texts):
        site.linked(texts[name], name, texts, tmp_path)


@pytest.mark.parametrize("link", ["[a](nowhere.md)", "![a](nowhere.png)", "[a](../../elsewhere.md)"])
def test_a_link_that_leads_nowhere_fails(link):
    with pytest.raises(ValueError, match=r"there is no|not in the subpath"):
        texts_of("docs/x.md", link)


def test_another_folder_is_not_written_over(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="something else than a site"):
        site.build(RESULTS, tmp_path)


def test_no_rows_are_no_report(tmp_path):
    with pytest.raises(ValueError, match="nothing to report"):
        site.build(tmp_path, tmp_path / "site")


def test_the_licence_of_every_source_is_told():
    text = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    for source in (SOURCES | LARGE).values():
        package = re.split(r"(?<=.)@|==", source.package)[0]
        assert f"`{package}` | {source.licence} |" in text, source.package


def test_the_example_of_a_divergence_trains(tmp_path):
    """The block of docs/add_divergence.md, as a reader runs it."""
    from conftest import tiny_trainer

    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "add_divergence.md").read_text(), re.DOTALL)
    given: dict = {}
    exec(compile(code, "add_divergence.md", "exec"), given)  # noqa: S102
    trainer = tiny_trainer(tmp_path, given["method"], steps=2)
    assert trainer.train().global_step == 2


# The whole


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    return site.build(RESULTS, tmp_path_factory.mktemp("report") / "site").parent


@pytest.fixture(scope="module")
def browser(tmp_path_factory, built):
    """A browser that reaches no host: what a page asks of the network is an error on its console."""
    paths = [shutil.which(name) for name in ("chromium", "chromedriver")]
    assert all(paths), "install the browser: apt-get install chromium chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = paths[0]
    profile = tmp_path_factory.mktemp("profile")
    for flag in (*FLAGS, f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(paths[1]))
    yield driver
    driver.quit()


def cells(browser, table, column: int) -> list[str]:
    return browser.execute_script(
        "return [...arguments[0].tBodies[0].rows].map(row => row.cells[arguments[1]].textContent.trim())",
        table,
        column,
    )


@pytest.mark.slow
def test_every_page_is_whole(built, browser):
    """No error on the console, every picture loads, nothing but code and tables is wider than a phone."""
    pages = sorted(built.rglob("*.html"))
    assert len(pages) > 40
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    for path in pages:
        browser.get(path.as_uri())
        broken = browser.execute_script(
            "return [...document.images].map(i => (i.loading = 'eager', i)).filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
        )
        assert not broken, f"{path.name}: {broken}"
        wide = browser.execute_script(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert wide <= 0, f"{path.name} is {wide} pixels wider than the window"
        assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"], path.name
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.slow
def test_links_lead_to_files_and_anchors_that_are_there(built):
    """The rule by hand: every relative href and src of every page; of those with an anchor, an id there."""
    ids: dict[Path, set[str]] = {}
    for path in built.rglob("*.html"):
        ids[path] = set(re.findall(r'\bid="([^"]+)"', path.read_text(encoding="utf-8")))
    for path in ids:
        for target in re.findall(r'(?:href|src)="([^"]+)"', path.read_text(encoding="utf-8")):
            assert not target.startswith("/"), f"{path} names {target}"
            if re.match(r"[a-z]+:|/", target):
                continue
            name, _, anchor = target.partition("#")
            there = (path.parent / name).resolve() if name else path
            assert there.exists(), f"{path} links to {target}"
            assert not anchor or there not in ids or anchor in ids[there] | {"__skip"}, (
                f"{path} links to {target}"
            )


@pytest.mark.slow
def test_a_table_sorts_by_the_column_that_is_clicked(built, browser):
    browser.set_window_size(1300, 1000)
    browser.get((built / "results" / "table1.html").as_uri())
    table = browser.find_element(By.CSS_SELECTOR, "article table")
    head = table.find_elements(By.TAG_NAME, "th")[2]
    numbers = []
    for _ in range(2):
        browser.execute_script("arguments[0].click()", head)
        shown = [re.match(r"[−\d.]+", text) for text in cells(browser, table, 2)]
        numbers.append([float(found[0].replace("−", "-")) for found in shown if found])
    assert len(numbers[0]) > 10 and numbers[0] == sorted(numbers[0]) == numbers[1][::-1]
    assert head.get_attribute("aria-sort") == "descending"
    browser.execute_script("arguments[0].click()", table.find_elements(By.TAG_NAME, "th")[0])
    names = cells(browser, table, 0)
    assert names.index("Adaptive KL") < names.index("CTKD") < names.index("SFT")


@pytest.mark.slow
def test_a_phone_keeps_the_names_of_the_lines_in_sight(built, browser):
    """A wide table scrolls below its first column, but where that holds sentences and would fill the screen."""
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    left = (
        "const box = document.querySelector('article .md-typeset__scrollwrap'); box.scrollLeft = 120;"
        "return box.querySelector('td').getBoundingClientRect().left - box.getBoundingClientRect().left"
    )
    for name, moved in (("table1", 0), ("index", 0), ("table5", -120)):
        browser.get((built / "results" / f"{name}.html").as_uri())
        assert abs(browser.execute_script(left) - moved) < 20, name
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.slow
def test_a_number_shows_its_rows(built, browser):
    """Oracle: the committed rows."""
    frame = page.load(PAGES["table1"], RESULTS, "cpu")
    browser.get((built / "results" / "table1.html").as_uri())
    first = browser.find_element(By.CSS_SELECTOR, "article table .traced").get_attribute("title")
    seeds, commit, config, *_ = first.split(" · ")
    assert seeds == "seeds 0, 1, 2, 3"
    assert set(commit.removeprefix("commit ").split(", ")) <= set(frame.commit.str[:7])
    assert set(config.removeprefix("config ").split(", ")) <= set(frame.config_hash.str[:8])
    number = "return [...document.querySelectorAll('article td')].filter(t => /\\d/.test(t.textContent))"
    bare = f"{number}.filter(t => !t.title && !t.querySelector('[title]')).map(t => t.textContent)"
    for name in ("table1", "speed"):
        browser.get((built / "results" / f"{name}.html").as_uri())
        assert not browser.execute_script(bare)


@pytest.mark.slow
def test_the_site_is_searched_from_disk(built, browser):
    browser.set_window_size(1300, 1000)
    browser.get((built / "index.html").as_uri())
    box = browser.find_element(By.CSS_SELECTOR, ".md-search__input")
    browser.execute_script("arguments[0].click(); arguments[0].focus()", box)
    box.send_keys("momentum")
    hits = WebDriverWait(browser, 20).until(
        lambda b: b.find_elements(By.CSS_SELECTOR, ".md-search-result__link")
    )
    assert len(hits) > 2


@pytest.mark.slow
def test_formulas_and_notebooks_are_there(built):
    theory = (built / "docs" / "theory.html").read_text(encoding="utf-8")
    assert theory.count("<math") > 100 and "arithmatex" not in theory
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert "<img" in (built / "notebooks" / f"{path.stem}.html").read_text(encoding="utf-8")
    assert "KL(p ‖ q)" in (built / "reference" / "losses.html").read_text(encoding="utf-8")
