"""`make lab`, as a reader has it: JupyterLab in a browser, run all, move a slider, see another figure."""

import os
import shutil
import socket
import subprocess
import sys
import urllib.request

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait
from test_architecture import ROOT

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1400,1000",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture
def lab(tmp_path):
    """Address of a JupyterLab over a copy of the notebook, with settings and kernels of its own."""
    shutil.copy(ROOT / "notebooks" / "mode_collapse.ipynb", tmp_path)
    homes = {f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    port = free_port()
    options = f"--no-browser --allow-root --port={port} --ServerApp.port_retries=0 --IdentityProvider.token="
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options.split(), f"--ServerApp.root_dir={tmp_path}"],
            env=os.environ | homes | {"PYTHONPATH": str(ROOT)}, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture
def browser(tmp_path):
    paths = [shutil.which(name) for name in ("chromium", "chromedriver")]
    assert all(paths), "install the browser: apt-get install chromium chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = paths[0]
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(paths[1]))
    yield driver
    driver.quit()


@pytest.mark.slow
def test_a_slider_redraws_its_figure(lab, browser):
    def wait(seconds, condition):
        return WebDriverWait(browser, seconds, 0.2, [Exception]).until(lambda _: condition())

    def find(css, text=""):
        return next(one for one in browser.find_elements(By.CSS_SELECTOR, css) if text in one.text)

    def status():
        return find(".jp-Notebook-ExecutionIndicator").get_attribute("data-status")

    def figure():
        return find(".widget-interact .widget-output img").get_attribute("src")

    def run_all():
        """Asked again, and its question for a kernel answered, while JupyterLab still connects to its own."""
        for button in browser.find_elements(By.CSS_SELECTOR, ".jp-Dialog-button.jp-mod-accept"):
            button.click()
        find(".lm-MenuBar-item", "Run").click()
        wait(5, lambda: find(".lm-Menu-itemLabel", "Run All Cells")).click()
        return wait(5, lambda: status() == "busy")

    wait(60, lambda: urllib.request.urlopen(f"{lab}/api"))
    browser.get(f"{lab}/lab/tree/mode_collapse.ipynb")
    wait(60, lambda: status() == "idle")
    wait(60, run_all)
    wait(600, lambda: status() == "idle")
    assert not browser.find_elements(By.CSS_SELECTOR, "[data-mime-type='application/vnd.jupyter.error']")
    before = wait(10, figure)
    slider = find(".widget-slider [role=slider]")
    slider.send_keys(Keys.ARROW_RIGHT)
    wait(30, lambda: slider.get_attribute("aria-valuenow") == "6.5" and figure() != before)
