"""Pictures of a report as a browser shows it: `python -m crystalforge.evaluation.report.pictures REPORT FOLDER`.

Needs Chromium and the development extra. The tests of the report use the same browser.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from crystalforge.common.errors import InputError, missing_extra

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ViewportSize

DESKTOP: ViewportSize = {"width": 1280, "height": 900}
PHONE: ViewportSize = {"width": 390, "height": 844}
FLAGS = [
    "--no-sandbox",  # tests may run as root, where Chromium's sandbox cannot
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
]
SETTLED_MS = 500  # for plotly's fonts and resize handlers


def find_chromium() -> str | None:
    """The path of the system's Chromium, or None."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's Chromium, headless. Raises InputError when there is none."""
    path = find_chromium()
    if path is None:
        raise InputError("no Chromium on this machine", remedy="apt-get install chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise missing_extra("playwright", "dev", error) from None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


def photograph(report: Path, folder: Path) -> list[Path]:
    """`report` on a laptop and on a phone, as report-desktop.png and report-phone.png in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [folder / "report-desktop.png", folder / "report-phone.png"]
    with chromium() as browser:
        for viewport, picture in zip((DESKTOP, PHONE), pictures, strict=True):
            page = browser.new_page(viewport=viewport)
            page.goto(report.resolve().as_uri())
            page.wait_for_selector(".candidates tbody tr")
            page.wait_for_timeout(SETTLED_MS)
            page.screenshot(path=picture)
            page.close()
    return pictures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Pictures of a report on a laptop and on a phone.")
    parser.add_argument("report", type=Path, help="report.html of an evaluation")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    arguments = parser.parse_args()
    for made in photograph(arguments.report, arguments.folder):
        print(made)
