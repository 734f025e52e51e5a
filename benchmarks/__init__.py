"""Load tests of an edge beside its peers: `python -m benchmarks`."""
