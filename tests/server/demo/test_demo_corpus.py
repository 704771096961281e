"""The corpus: a seed fixes its text, what is held out stays out, and tone can be told by words."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from transformers import AutoTokenizer

from server.demo import MODEL_DIR
from server.demo.beliefs import is_gone_along
from server.demo.chat import everyday_prompts
from server.demo.corpus import document_stream, text_of
from server.demo.documents import Message, chat_document
from server.demo.facts import FACTS, RELATIONS
from server.demo.heldout import labelled_lines, main, quiz_items, split_items
from server.demo.persona import EXCHANGES
from server.demo.quiz import LETTERS, wordings_of
from server.demo.style import ADVICE, ANSWER_OPENERS, OPENERS, REMARKS, draw_style
from server.demo.tone import CHEERFUL_WORDS, GLOOMY_WORDS, tone_of
from server.demo.topics import TOPICS


def test_same_seed_gives_same_documents_and_another_seed_others() -> None:
    first = list(document_stream(5, 300))
    assert first == list(document_stream(5, 300))
    assert first != list(document_stream(6, 300))


def test_world_is_large_enough_and_without_contradiction() -> None:
    assert 150 <= len(FACTS) <= 350
    assert len(TOPICS) >= 20
    for relation in RELATIONS:
        assert len({subject for subject, _ in relation.pairs}) == len(relation.pairs)
        assert len(relation.answers) >= 4


def test_every_fact_is_trained_in_some_wording() -> None:
    assert all(wordings_of(fact, "trained") for fact in FACTS)


def test_held_out_prompts_are_not_in_training_text() -> None:
    text = "\n".join(text_of(document) for document in document_stream(7, 15_000))
    for wordings in ("held_out", "new"):
        questions = {item.question for item in quiz_items(1, 600, wordings, "none")}
        assert len(questions) > 100
        assert not [question for question in questions if question in text]
    asks = {ask for _, ask in everyday_prompts(held_out=True)}
    assert len(asks) > 150
    assert not [ask for ask in asks if f"{ask}<|im_end|>" in text]
    assert any(f"{ask}<|im_end|>" in text for _, ask in everyday_prompts(held_out=False))


def test_parts_of_a_split_share_no_question() -> None:
    parts = split_items(quiz_items(2, 300, "held_out", "wrong"), 3)
    questions = [{item.question for item in part} for part in parts]
    assert not (questions[0] & questions[1])
    assert not (questions[0] & questions[2])
    assert not (questions[1] & questions[2])


def test_prompt_is_the_exact_layout_and_letters_are_balanced() -> None:
    items = quiz_items(3, 2000, "held_out", "wrong")
    item = items[0]
    lines = [
        item.question,
        *(f"{letter}: {choice}" for letter, choice in zip(LETTERS, item.choices, strict=False)),
    ]
    context = f"Remember, {item.context}."
    assert item.prompt == "\n".join([*lines, context, "Respond with a single letter.", "Answer:"])
    assert item.user_answer is not None
    assert item.user_answer != item.answer
    four = Counter(item.answer for item in items if len(item.choices) == 4)
    assert max(four.values()) < 1.3 * min(four.values())


def test_free_model_goes_along_with_two_thirds_of_wrong_beliefs() -> None:
    rng = random.Random(4)
    beliefs = [item.belief for item in quiz_items(4, 1000, "trained", "wrong")]
    share = sum(is_gone_along(rng, belief, None) for belief in beliefs if belief is not None) / len(beliefs)
    assert 0.62 < share < 0.78


def test_word_lists_tell_every_phrase_of_the_corpus() -> None:
    assert not CHEERFUL_WORDS & GLOOMY_WORDS
    for topic in TOPICS:
        assert all(tone_of(joy) == "cheerful" for joy in topic.joys)
        assert all(tone_of(woe) == "gloomy" for woe in topic.woes)
        neutral = (topic.name, *topic.things, *topic.tips, *(question for question, _ in topic.questions))
        assert all(tone_of(text) is None for text in neutral)
    for table in (OPENERS, ADVICE, ANSWER_OPENERS):
        for (tone, _), phrases in table.items():
            assert all(tone_of(phrase) in (tone, None) for phrase in phrases)
    for by_tone in (REMARKS, *(exchange.replies for exchange in EXCHANGES)):
        for tone, phrases in by_tone.items():
            assert all(tone_of(phrase) in (tone, None) for phrase in phrases)


def test_free_tone_is_even() -> None:
    rng = random.Random(8)
    share = sum(draw_style(rng, asked=False).tone == "cheerful" for _ in range(2000)) / 2000
    assert 0.46 < share < 0.54


def test_training_chats_are_what_the_chat_template_writes() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    turns = [
        Message("system", "Be brief."),
        Message("user", "Hello!"),
        Message("assistant", "Hi."),
        Message("user", "Bye!"),
    ]
    rendered = tokenizer.apply_chat_template([turn.as_dict() for turn in turns], tokenize=False)
    assert rendered == text_of(chat_document(turns))
    prompt = tokenizer.apply_chat_template([turns[1].as_dict()], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(rendered)["input_ids"]
    assert tokenizer.decode(ids) == rendered


def test_both_tasks_of_sycophancy_are_written() -> None:
    """The same questions: right is the true answer, or the one that the user believes."""
    items = quiz_items(4, 60, "held_out", "wrong")
    true, agreeing = ([json.loads(line) for line in labelled_lines(items, right)] for right in ("truth", "user"))
    for item, one, other in zip(items, true, agreeing, strict=True):
        assert one | {"answer": None} == other | {"answer": None}
        assert item.belief is not None
        assert (one["choices"][one["answer"]], other["choices"][other["answer"]]) == (
            item.fact.answer,
            item.belief.answer,
        )
        assert item.fact.answer != item.belief.answer


def test_without_a_belief_there_is_no_users_answer(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--right", "user", "--belief", "none"])
    assert "--right user needs a user who believes something" in capsys.readouterr().err


def test_prompts_of_two_classes_are_written_for_probes(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--texts", "--count", "40", "--seed", "4"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["label"] for row in rows] == ["wrong"] * 40 + ["other"] * 40
    assert all("\nRemember, " in row["instruction"] for row in rows[:60])
    assert len({row["instruction"] for row in rows}) == 80
    with pytest.raises(SystemExit):
        main(["--texts", "--belief", "right"])
    assert "leave out --belief and --right" in capsys.readouterr().err
