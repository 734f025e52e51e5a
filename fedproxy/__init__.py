"""fedproxy: the edge for a federation of BinderHubs."""

from pathlib import Path

# Hatch reads it from here; asking the installed metadata would cost every start 40 ms.
__version__ = "0.1.0"


def is_compiled() -> bool:
    """Whether the hot path is extension modules rather than Python: `make compiled`, or a wheel with them."""
    return any(Path(__file__).parent.glob("bounded.*.so"))
