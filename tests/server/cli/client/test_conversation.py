"""The chat's conversation: what /steer understands, and turns that always alternate."""

from __future__ import annotations

from typing import Any

import pytest

from server.cli.client.chat import printable
from server.cli.client.conversation import Conversation, InvalidCommand, parse_entry
from server.cli.client.vectors import ranges


@pytest.mark.parametrize(
    ("command", "entry"),
    [
        ("honest", {"vector": "honest"}),
        ("honest 1.5", {"vector": "honest", "scale": 1.5}),
        ("honest@3f9a1c -2", {"vector": "honest@3f9a1c", "scale": -2.0}),
        ("honest scale=0.5 layers=12-16,20", {"vector": "honest", "scale": 0.5, "layers": "12-16,20"}),
        (
            'honest positions={"of":"prompt","last":4}',
            {"vector": "honest", "positions": {"of": "prompt", "last": 4}},
        ),
        (
            "honest layers=3 positions=all 2 operation=clamp",
            {"vector": "honest", "layers": "3", "positions": "all", "scale": 2.0, "operation": "clamp"},
        ),
    ],
)
def test_entries(command: str, entry: dict[str, Any]) -> None:
    assert parse_entry(command) == entry


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("honest much", "scale: expected a number"),
        ("honest nan", "scale: expected a number"),
        ("honest 1 2", "scale is given twice"),
        ("honest layers=", "unexpected .*; usage: /steer"),
        ("honest layer=3", "unexpected .*; usage: /steer"),
        ("honest positions=answer", "prompt, response, all"),
        ('honest positions={"of":"response","last":4}', "not known while it is written"),
        ("honest vector=other", "vector is given twice"),
    ],
)
def test_what_is_not_understood_is_refused(command: str, said: str) -> None:
    conversation = Conversation()
    conversation.steer("cheerful")
    with pytest.raises(InvalidCommand, match=said):
        conversation.steer(command)
    assert conversation.steering == [{"vector": "cheerful"}]


def test_steering_accumulates_and_a_name_given_again_replaces_its_entry() -> None:
    conversation = Conversation()
    for command in ("honest", "cheerful 2", "honest 0.5", ""):
        conversation.steer(command)
    assert conversation.steering == [{"vector": "cheerful", "scale": 2.0}, {"vector": "honest", "scale": 0.5}]
    conversation.steer("off")
    assert conversation.steering == []


def test_beginning_anew_keeps_the_steering() -> None:
    conversation = Conversation("Be brief.")
    conversation.steer("honest")
    conversation.add("Hi", "Hello")
    assert [turn["role"] for turn in conversation.messages_with("Bye")] == ["system", "user", "assistant", "user"]
    conversation.begin(conversation.system)
    assert [turn["content"] for turn in conversation.messages_with("Hi")] == ["Be brief.", "Hi"]
    assert conversation.steering == [{"vector": "honest"}]


def test_an_answer_cannot_command_the_terminal() -> None:
    assert printable("a\x1b[31mb\x07\r\nc\té – 🙂") == "a[31mb\nc\té – 🙂"


def test_layers_are_shown_as_ranges() -> None:
    assert ranges([3, 4, 5, 9, 11, 12]) == "3-5,9,11-12"
    assert ranges([]) == ""
