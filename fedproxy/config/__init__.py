"""What an operator writes, validated and frozen."""

from fedproxy.config.address import Address, MemberAddress, member_address
from fedproxy.config.load import convert, load, member_from, parse, to_yaml
from fedproxy.config.model import Config, Listener, Member, Organisation, Route
from fedproxy.config.report import PENDING, fault_lines, masked, not_in_force

__all__ = [
    "PENDING",
    "Address",
    "Config",
    "Listener",
    "Member",
    "MemberAddress",
    "Organisation",
    "Route",
    "convert",
    "fault_lines",
    "load",
    "masked",
    "member_address",
    "member_from",
    "not_in_force",
    "parse",
    "to_yaml",
]
