"""The operator's config, validated and frozen."""

from fedproxy.config.address import Address, MemberAddress, member_address
from fedproxy.config.load import convert, load, member_from, parse, to_yaml
from fedproxy.config.model import Config, Listener, Member, Organisation, Route, Tracing
from fedproxy.config.report import fault_lines, masked

__all__ = [
    "Address",
    "Config",
    "Listener",
    "Member",
    "MemberAddress",
    "Organisation",
    "Route",
    "Tracing",
    "convert",
    "fault_lines",
    "load",
    "masked",
    "member_address",
    "member_from",
    "parse",
    "to_yaml",
]
