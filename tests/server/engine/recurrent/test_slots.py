"""Slots of recurrent states: what sequences and snapshots hold, and which snapshot makes room."""

from __future__ import annotations

import random

from server.engine.recurrent.slots import StateSlots


def apply(copies: list[tuple[int, int]], content: dict[int, object]) -> None:
    for source, target in copies:
        content[target] = content.get(source)


def test_sequences_never_share_a_slot_and_get_them_back() -> None:
    slots = StateSlots(3, 2)
    held = [slots.take() for _ in range(3)]
    assert len(set(held)) == 3
    assert slots.num_held == 3
    slots.release(held[1])
    assert slots.take() == held[1]
    for slot in held:
        slots.release(slot)
    assert slots.num_held == 0


def test_copies_made_late_give_what_copies_made_at_once_give() -> None:
    chance = random.Random(0)
    slots = StateSlots(4, 3)
    held = [slots.take() for _ in range(4)]
    content: dict[int, object] = {}
    at_once: dict[int, object] = {}
    saved: dict[bytes, object] = {}
    for number in range(3000):
        slot, key = chance.choice(held), bytes([chance.randrange(8)])
        match chance.choice(("save", "move", "restore", "forget", "step")):
            case "save":
                if not slots.has(key):
                    saved[key] = at_once.get(slot)
                slots.save(key, slot)
            case "move":
                if slots.move(chance.choice((None, bytes([chance.randrange(8)]))), key, slot):
                    saved[key] = at_once.get(slot)
            case "restore" if slots.has(key):
                slots.restore(key, slot)
                at_once[slot] = saved[key]
            case "forget" if chance.random() < 0.3:
                slots.forget(key)
                assert not slots.has(key)
            case "step":
                apply(slots.take_copies(), content)
                assert [content.get(slot) for slot in held] == [at_once.get(slot) for slot in held]
                content[slot] = at_once[slot] = number
        assert slots.num_snapshots <= 3


def test_the_least_recently_used_snapshot_makes_room() -> None:
    slots = StateSlots(1, 2)
    slot = slots.take()
    slots.save(b"a", slot)
    slots.save(b"b", slot)
    slots.restore(b"a", slot)
    slots.save(b"c", slot)
    assert [slots.has(key) for key in (b"a", b"b", b"c")] == [True, False, True]


def test_a_moving_snapshot_takes_the_place_of_its_previous_unless_others_began_there() -> None:
    slots = StateSlots(1, 8)
    slot = slots.take()
    assert slots.move(None, b"a", slot)
    assert slots.move(b"a", b"b", slot)
    assert not slots.has(b"a")
    slots.restore(b"b", slot)
    assert slots.move(b"b", b"c", slot)
    assert slots.has(b"b")
    assert not slots.move(b"c", b"c", slot)
    assert slots.has(b"c")


def test_moving_snapshots_never_cost_saved_ones() -> None:
    slots = StateSlots(1, 2)
    slot = slots.take()
    slots.save(b"a", slot)
    assert slots.move(None, b"b", slot)
    assert slots.move(None, b"c", slot)
    assert [slots.has(key) for key in (b"a", b"b", b"c")] == [True, False, True]
    slots.save(b"d", slot)
    assert [slots.has(key) for key in (b"a", b"c", b"d")] == [True, False, True]
    assert not slots.move(None, b"e", slot)
    slots.save(b"f", slot)
    assert [slots.has(key) for key in (b"a", b"d", b"f")] == [False, True, True]


def test_without_room_for_snapshots_none_is_kept() -> None:
    slots = StateSlots(1, 0)
    slots.save(b"a", slots.take())
    assert not slots.has(b"a")
    assert slots.take_copies() == []
