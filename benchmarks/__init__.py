"""Load tests of an edge, compared with other proxies: `python -m benchmarks`."""
