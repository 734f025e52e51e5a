"""fedproxy: the edge for a federation of BinderHubs."""

# Hatch reads it from here; asking the installed metadata would cost every start 40 ms.
__version__ = "0.1.0"
