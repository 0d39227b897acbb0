"""A headless Chromium for the tests of the pages: no page may log an error or request another address."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def running_browser() -> Iterator[Any]:
    """Starts the browser; skips the test where there is none."""
    interface = pytest.importorskip("playwright.sync_api", reason="playwright (of the extra `dev`) is not installed")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    with interface.sync_playwright() as playwright:
        # A container's root has no sandbox to give; the pages are our own.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_page(
    browser: Any, address: str, *, width: int = 1280, scheme: str = "light", allowed: str = "file://", **options: Any
) -> Iterator[Any]:
    """A page; at its end, nothing may be on its console and no address but `allowed` may have been requested."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
    page = context.new_page()
    page.set_default_timeout(60_000)
    complaints: list[str] = []
    requested: list[str] = []
    page.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requested.append(request.url))
    try:
        page.goto(address)
        yield page
        assert complaints == []
        assert [url for url in requested if not url.startswith((allowed, "data:", "blob:"))] == []
    finally:
        context.close()


def wait_until(page: Any, condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Waits until a condition holds; polled from Python, since a page's policy may forbid `eval`."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, "the page does not become what it must"
        page.wait_for_timeout(50)
