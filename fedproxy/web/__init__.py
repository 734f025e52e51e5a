"""aiohttp: the pages for visitors and operators, and the admin API."""
