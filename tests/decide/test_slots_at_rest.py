"""Edges that share out the slots of a member ask no more once nothing changes."""

import pytest

from fedproxy.decide.slots import Grant, Holding, Slots, grant

MEMBER = "a"


class SlotSharing:
    """So many edges, one member, and a store that answers at once."""

    def __init__(self, edges: int, most: int) -> None:
        self.most = most
        self.holdings: dict[int, Holding] = {}
        self.edges = [Slots() for _ in range(edges)]
        for each in self.edges:
            each.edges, each.cut_off = edges, False
            each.apply({MEMBER: most})

    def ask(self, number: int) -> bool:
        """One edge asks, if it has to; whether it did."""
        own = self.edges[number]
        if not (claims := own.claims()):
            return False
        claim = claims[MEMBER]
        others = [each for other, each in self.holdings.items() if other != number]
        answer: Grant = grant(claim, others, len(self.edges))
        self.holdings[number] = Holding(max(answer.slots, claim.used), claim.used, claim.wants)
        if own.granted(claims, {MEMBER: answer}):
            for other in self.edges:
                if other is not own:
                    other.touch([MEMBER])
        return True

    def settle(self, most: int) -> int:
        """So many times somebody asked until nobody did; gives up after `most` rounds."""
        asked = 0
        for _ in range(most):
            now = sum([self.ask(number) for number in range(len(self.edges))])
            if not now:
                return asked
            asked += now
        raise AssertionError("they ask for ever")


@pytest.mark.parametrize("edges", [1, 2, 3, 7, 8, 9, 10, 11, 30, 50])
@pytest.mark.parametrize("most", [1, 9, 20, 100])
def test_edges_at_rest_stop_asking_and_have_their_even_part(edges: int, most: int) -> None:
    fleet = SlotSharing(edges, most)
    assert fleet.settle(20) <= 4 * edges
    held = [each.held for each in fleet.holdings.values()]
    assert sum(held) <= most
    # Whoever came too late for an even part asks again with the next beat.
    for each in fleet.edges:
        each.touch_wanted()
    fleet.settle(20)
    assert min(each.held for each in fleet.holdings.values()) >= most // edges


def test_edges_that_all_want_what_is_taken_do_not_wake_each_other_for_ever() -> None:
    fleet = SlotSharing(5, 4)
    fleet.settle(20)
    for number, each in enumerate(fleet.edges):
        each.use({MEMBER: fleet.holdings[number].held})
        each.want(MEMBER)
    fleet.settle(20)


def test_edge_that_drains_holds_only_what_it_uses() -> None:
    fleet = SlotSharing(2, 10)
    fleet.settle(20)
    fleet.edges[0].use({MEMBER: 2})
    fleet.edges[0].retire()
    fleet.settle(20)
    assert fleet.holdings[0].held == 2
