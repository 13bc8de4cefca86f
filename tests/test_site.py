"""The pages as a site: `make docs`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)  # strict: a link that leads nowhere fails
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_every_page_is_there_and_nothing_is_fetched_from_elsewhere(site):
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    for page in {*pages, Path("index.html"), Path("contributing.html")}:
        text = (site / page).read_text()
        assert not re.findall(r"<(?:script|img)[^>]+src=\"https?:|<link[^>]+href=\"https?:", text), page
    assert "RUN_DIR|SWEEP_DIR" in (site / "index.html").read_text()


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_is_wider_than_the_window(site, width, tmp_path):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    from tests.conftest import CHROMEDRIVER

    options = webdriver.ChromeOptions()
    options.add_experimental_option(
        "mobileEmulation", {"deviceMetrics": {"width": width, "height": 800, "pixelRatio": 1}}
    )
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--user-data-dir={tmp_path}/profile"):
        options.add_argument(word)
    with webdriver.Chrome(options=options, service=Service(CHROMEDRIVER)) as browser:
        for page in ("index.html", "tracking.html", "handoff.html", "methods/score.html"):
            browser.get((site / page).as_uri())
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width, page
