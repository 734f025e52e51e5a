"""What several files of these tests need."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
from playwright.async_api import Browser, async_playwright

from tests.rig import programs


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Browser]:
    """One for a file's tests, as it takes long to start; their contexts share nothing, and are closed."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=programs.found("chromium"))
        try:
            yield browser
        finally:
            await browser.close()
