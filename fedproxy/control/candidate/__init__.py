"""Checks whether a BinderHub is fit to join: the requests that an edge sends to a member, once, from outside.

The checks go from the name to a launch, and stop at one that makes the later ones impossible. Each is
bounded in time and size, and whatever goes wrong is a verdict. One launch is started, and abandoned as soon
as its stream has shown whether it delivers events; or else as many as are asked for, one after the other, to
their end. With a reference a launch carries a build token from there; a candidate that refuses the token has
started nothing, and is asked again without it for the other checks.
"""

from fedproxy.control.candidate.check import Candidate, Check, CheckOutcome, Examination, Trial
from fedproxy.control.candidate.examination import examine

__all__ = ["Candidate", "Check", "CheckOutcome", "Examination", "Trial", "examine"]
