"""fedproxy: the edge for a federation of BinderHubs."""

from importlib.metadata import version

__version__ = version("fedproxy")
