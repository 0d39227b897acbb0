"""The browser of the tests of pages."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.browser import running_browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with running_browser() as started:
        yield started
