"""Makes README's picture: the first screen of a real report, `results/quick`, as Chromium shows it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "results" / "quick" / "report" / "index.html"
TARGET = ROOT / "docs" / "images" / "report.png"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def main() -> int:
    """Take the screenshot."""
    from playwright.sync_api import sync_playwright

    chromium = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    if chromium is None or not REPORT.exists():
        print("needs Chromium (apt-get install chromium) and the results of `make demo`", file=sys.stderr)
        return 1
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=_ARGUMENTS)
        page = browser.new_page(viewport={"width": 1100, "height": 900}, color_scheme="light", device_scale_factor=1.5)
        page.goto(REPORT.as_uri())
        page.wait_for_load_state("networkidle")
        page.wait_for_timeout(1500)
        page.screenshot(path=str(TARGET))
        browser.close()
    print(TARGET.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
