"""A rig that tests the edge byte by byte: scripted members, a raw client, and the edge between them."""

from tests.rig.client import RawClient
from tests.rig.edge import Edge, edge
from tests.rig.member import Conn, Script, Scripted, answer, blackhole, per_request, refusing
from tests.rig.message import Message, chunked, fields_of
from tests.rig.names import Reply, Zone, name_server
from tests.rig.wire import Ended, guard, until

__all__ = [
    "Conn",
    "Edge",
    "Ended",
    "Message",
    "RawClient",
    "Reply",
    "Script",
    "Scripted",
    "Zone",
    "answer",
    "blackhole",
    "chunked",
    "edge",
    "fields_of",
    "guard",
    "name_server",
    "per_request",
    "refusing",
    "until",
]
