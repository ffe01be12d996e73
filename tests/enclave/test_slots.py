"""Which slot computes a query, and for whom what it has kept is used."""

from __future__ import annotations

import pytest

from aigovtool.enclave.runtime.slots import Slots
from aigovtool.errors import UnavailableError
from aigovtool.ids import ConsumerId

ALICE, BOB = ConsumerId("cons_alice"), ConsumerId("cons_bob")


def take(slots: Slots, consumer: ConsumerId, prompt: str, *, shared: bool = False):
    return slots.taken(consumer, prompt.encode(), shared=shared, given_up=lambda: False)


def once(slots: Slots, consumer: ConsumerId, prompt: str, *, shared: bool = False):
    with take(slots, consumer, prompt, shared=shared) as slot:
        slots.begun(slot, consumer, prompt.encode())
        return slot.number, slot.cached


def test_a_conversation_goes_on_where_it_was() -> None:
    slots = Slots(3)
    assert once(slots, ALICE, "one") == (0, False)
    assert once(slots, ALICE, "two") == (1, False)
    assert once(slots, ALICE, "one more") == (0, True)
    assert once(slots, ALICE, "two more") == (1, True)


def test_another_consumer_never_has_what_was_kept_for_one() -> None:
    slots = Slots(1)
    assert once(slots, ALICE, "secret") == (0, False)
    assert once(slots, BOB, "secret") == (0, False)
    assert once(slots, ALICE, "secret") == (0, False)  # it is Bob's by now
    assert once(slots, ALICE, "secret") == (0, True)


def test_a_shared_prefix_serves_everyone() -> None:
    slots = Slots(2)
    assert once(slots, ALICE, "system prompt, a") == (0, False)
    assert once(slots, BOB, "system prompt, b", shared=True) == (0, True)
    assert once(slots, BOB, "something else", shared=True) == (1, False)
    assert once(slots, ALICE, "system prompt, a") == (0, False)  # shared no more


def test_the_slot_that_was_not_used_for_longest_is_taken() -> None:
    slots = Slots(2)
    once(slots, ALICE, "one")
    once(slots, BOB, "two")
    once(slots, ALICE, "one")
    assert once(slots, ConsumerId("cons_carol"), "three") == (1, False)


@pytest.mark.parametrize("shared", [False, True])
def test_a_query_that_fails_before_it_is_computed_inherits_nothing(shared: bool) -> None:
    """The slot still keeps what it had: of somebody else."""
    slots = Slots(1)
    once(slots, ALICE, "secret")
    with take(slots, BOB, "secret", shared=shared):
        pass
    assert once(slots, BOB, "secret") == (0, False)


def test_a_query_of_ones_own_that_fails_leaves_what_was_kept() -> None:
    slots = Slots(1)
    once(slots, ALICE, "one")
    with take(slots, ALICE, "one more"):
        pass
    assert once(slots, ALICE, "one more") == (0, True)


def test_a_busy_slot_is_not_taken_and_whoever_waits_can_give_up() -> None:
    slots, given_up = Slots(2), False
    with take(slots, ALICE, "one") as first, take(slots, ALICE, "one") as second:
        assert {first.number, second.number} == {0, 1}
        given_up = True
        with (
            pytest.raises(UnavailableError),
            slots.taken(ALICE, b"one", shared=False, given_up=lambda: given_up),
        ):
            pass
    assert once(slots, ALICE, "one") == (0, False)
