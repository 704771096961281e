"""What schemas become: grammars that take nothing invalid, or a refusal that says why, whatever a client sends."""

from __future__ import annotations

import contextlib
import json
import random
import string
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest
from transformers import AutoTokenizer

from server.answers.compiler import GrammarCompiler, GrammarNotCompiled, GrammarRefused, GrammarTooCostly
from server.answers.grammar_source import json_answer
from server.answers.json_schema import SchemaRefused
from server.demo import MODEL_DIR
from server.engine.grammar import Grammar, GrammarFailed, allowed_tokens
from tests.server.answers.chat_templates import tokenizer_with
from tests.server.answers.schemas import Generated, judge, schemas
from tests.server.api.serving import byte_tokenizer
from vectors.confined import Limits

VOCABULARY, END = 259, 2
DEMO_VOCABULARY = 2304


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    """Over single bytes: the token of a byte of ASCII is found by encoding it."""
    return GrammarCompiler(byte_tokenizer(), VOCABULARY, {END})


@pytest.fixture(scope="module")
def over_subwords() -> GrammarCompiler:
    """Over the embedded model's vocabulary."""
    return GrammarCompiler(AutoTokenizer.from_pretrained(MODEL_DIR), DEMO_VOCABULARY, {END})


def compiled(compiler: GrammarCompiler, schema: Any) -> Grammar:
    return compiler.compile(json_answer(schema))


def takes(compiler: GrammarCompiler, schema: Any, text: str) -> bool:
    """True when the grammar of `schema` takes `text` as a whole answer."""
    state = compiled(compiler, schema).start()
    for token in byte_tokenizer().encode(text):
        if state.is_complete or not allowed_tokens(state, VOCABULARY)[token]:
            return False
        state.accept(token)
    return state.is_complete or bool(allowed_tokens(state, VOCABULARY)[END])


def walks(grammar: Grammar, seed: int, most: int) -> Iterator[int]:
    """Tokens chosen blindly among those allowed; ends with the grammar, an end token or after `most`."""
    choose = random.Random(seed)
    state = grammar.start()
    for _ in range(most):
        if state.is_complete:
            return
        token = choose.choice(allowed_tokens(state, DEMO_VOCABULARY).nonzero()[:, 0].tolist())
        if token == END:
            return
        state.accept(token)
        yield token


def test_blind_walks_through_every_grammar_end_in_valid_json(over_subwords: GrammarCompiler) -> None:
    """No model, no steering: whatever the logits are, this is what an answer may be."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    bounded: list[Generated] = [made for made in schemas() if made.most_bytes is not None]
    for number, made in enumerate(bounded):
        grammar = compiled(over_subwords, made.schema)
        for seed in range(2):
            tokens = list(walks(grammar, 1000 * seed + number, made.most_bytes or 0))
            judge(made.schema, str(tokenizer.decode(tokens)))


LITERALS = (
    "0", "-0", "1", "-1", "0.5", "-0.5", "0.01", "1.5", "0.0", "0.50", "2", "3", "7", "1e2", "1E-9", "01", "1.", "null",
    "0.000000001", "9007199254740991", "9007199254740993", "99999999999999999999", "true", "[]", "[1]", "[1, 2]", "{}",
    '""', '"a"', '"abc"', '"2024-02-29"', '"2023-02-29"', '"2000-02-29"', '"1900-02-29"', '"0000-01-01"',
    '"2023-04-31"', '"23:59:59Z"', '"23:59:60Z"', '"2024-02-29T23:59:59Z"', '"2023-02-29T00:00:00Z"',
    '"2024-01-01T23:59:60Z"', '{"a": null}', '{"a": null, "a": null}', '{"a": null, "b": null}', '{"b": 1}',
    '{"a": null, "z": 3}',
)  # fmt: skip
NARROW: tuple[tuple[Any, str], ...] = (
    ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}, "0.01"),
    ({"type": "number", "exclusiveMinimum": -0.5, "exclusiveMaximum": 0}, "-0.01"),
    ({"type": "number", "exclusiveMinimum": 1, "maximum": 1.5}, "1.5"),
    ({"type": "number"}, "0.000000001"),
    ({"type": "integer"}, "9007199254740991"),
    ({"type": "integer", "maximum": 1e30}, "-1"),
    ({"type": ["integer", "null"], "minimum": 0}, "null"),
    ({"type": "string", "format": "date"}, '"2024-02-29"'),
    ({"type": "string", "format": "date", "pattern": "-29$"}, '"2000-02-29"'),
    ({"type": "string", "format": "time"}, '"23:59:59Z"'),
    ({"type": "string", "format": "date-time"}, '"2024-02-29T23:59:59Z"'),
    ({"patternProperties": {"^[ab]$": {"type": "null"}}, "type": "object", "additionalProperties": False,
      "minProperties": 1}, '{"b": null}'),
    ({"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]}, '{"a": null}'),
    ({"allOf": [{"type": "number", "minimum": 0}, {"exclusiveMaximum": 1}]}, "0.5"),
    ({"anyOf": [{"type": "integer", "minimum": 1, "maximum": 3}, {"const": [1]}]}, "[1]"),
    ({"$ref": "#/$defs/n", "$defs": {"n": {"enum": [0.5, None, "a", {"a": None}]}}}, '{"a": null}'),
)  # fmt: skip


@pytest.mark.parametrize(("schema", "within"), NARROW, ids=range(len(NARROW)))
def test_what_a_grammar_takes_is_valid(compiler: GrammarCompiler, schema: Any, within: str) -> None:
    """Against jsonschema, on texts at the borders; `-0.01` and its like are there to see that something is taken."""
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    for text in (*LITERALS, "-0.01", within):
        if takes(compiler, schema, text):
            validator.validate(json.loads(text))
    assert takes(compiler, schema, within)


def test_integers_that_readers_would_round_are_never_written(compiler: GrammarCompiler) -> None:
    assert not takes(compiler, {"type": "integer"}, "9007199254740993")
    assert not takes(compiler, {"type": "integer", "minimum": 0, "maximum": 2**64}, "9007199254740993")
    assert takes(compiler, {"type": "integer", "minimum": 0, "maximum": 2**64}, "9007199254740991")


def nested(levels: int) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


REFUSED: tuple[tuple[Any, str], ...] = (
    ({"type": "array", "uniqueItems": True}, "the keywords uniqueItems are not supported"),
    ({"not": {"type": "string"}}, "not"),
    ({"if": {"const": 1}, "then": {"type": "integer"}}, "if"),
    ({"type": "array", "contains": {}}, "contains"),
    ({"type": "object", "propertyNames": {"minLength": 3}}, "propertyNames"),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    ({"$ref": "https://example.com/schema.json"}, "example.com"),
    ({"$ref": "file:///etc/passwd"}, "file:///etc/passwd"),
    ({"$ref": "#/$defs/nowhere"}, "nowhere"),
    ({"$ref": "#"}, "no answer can satisfy it"),
    ({"$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"]}},
      "$ref": "#/$defs/n"}, "Too many items"),
    ({"type": "string", "pattern": "(a"}, "unclosed group"),
    ({"type": "string", "pattern": r"(a)\1"}, "backreferences"),
    ({"type": "string", "pattern": "^(?!a)"}, "look-around"),
    ({"type": "string", "format": "uri-template"}, "uri-template"),
    ({"enum": []}, "empty"),
    ({"type": "string", "enum": [1, 2]}, "Unsatisfiable"),
    ({"type": "integer", "minimum": 3, "maximum": 2}, "greater than maximum"),
    ({"type": "integer", "minimum": 10**20}, "leaves integers"),
    ({"const": 2**53}, "9007199254740991"),
    ({"enum": [{"a": [2**60]}]}, "9007199254740991"),
    ({"type": "object", "minProperties": 2}, "minProperties"),
    ({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}, "oneOf"),
    ({"type": "nothing"}, "Invalid type"),
    ({"type": 7}, "type must be"),
    ({"type": "object", "properties": 3}, "properties"),
    ({"type": "object", "properties": {"a": 3}}, "expected a schema, got 3"),
    ({"type": "object", "required": 3}, "required"),
    ({"type": "object", "required": [[]]}, "required"),
    ({"type": "object", "minProperties": "x"}, "minProperties"),
    ({"type": "number", "minimum": "x"}, "minimum"),
    ({"type": "number", "multipleOf": True}, "multipleOf"),
    ({"anyOf": 3}, "anyOf"),
    ({"type": "array", "items": 3}, "expected a schema"),
    ({"type": "object", "x-guidance": {"lenient": True}, "not": {"required": ["a"]}}, "not"),
    (nested(70), "60 nested levels"),
    (nested(900), "60 nested levels"),
    ({"const": json.loads("[" * 500 + "]" * 500)}, ""),
    ({"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(600)},
      "additionalProperties": True}, "2000"),
    ({"enum": ["x" * 1000 + str(number) for number in range(1100)]}, "characters of grammar"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "reason"), REFUSED, ids=[f"{number} {reason}" for number, (_, reason) in enumerate(REFUSED)]
)
def test_refusals_say_why_in_one_line(compiler: GrammarCompiler, schema: Any, reason: str) -> None:
    with pytest.raises((GrammarRefused, SchemaRefused)) as refusal:
        compiled(compiler, schema)
    message = str(refusal.value)
    assert reason in message
    assert len(message) <= 400
    assert "\n" not in message
    assert "x-guidance" not in message
    assert "start:" not in message


def test_a_schema_that_no_json_encoder_could_write_is_refused() -> None:
    value: Any = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(SchemaRefused, match="too deeply"):
        json_answer({"const": value})


def hostile() -> dict[str, Any]:
    """Schemas made to be slow, large, or ambiguous."""
    choose = random.Random(0)

    def word(length: int) -> str:
        return "".join(choose.choices(string.ascii_letters, k=length))

    text = {"type": "string"}
    doubling = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n - 1}"}] * 2} for n in range(1, 25)} | {"d0": text}
    arrays = [{"type": "array", "items": {"$ref": "#/$defs/a"}}] * 3
    return {
        "optional properties": {"type": "object", "properties": {f"p{n}": text for n in range(9000)}},
        "required properties": {
            "type": "object",
            "properties": {f"p{n}": text for n in range(9000)},
            "required": [f"p{n}" for n in range(9000)],
        },
        "values": {"enum": [word(30) for _ in range(20_000)]},
        "objects": {"anyOf": [{"type": "object", "properties": {word(4): text}} for _ in range(5000)]},
        "lengths": {"anyOf": [{"type": "array", "items": {"type": "string", "minLength": n}} for n in range(300)]},
        "doubling": {"$defs": doubling, "$ref": "#/$defs/d24"},
        "choices of every one": {
            "allOf": [{"anyOf": [{"properties": {f"{c}{n}": text}} for c in "ab"], "type": "object"} for n in range(18)]
        },
        "arrays": {"$defs": {"a": {"anyOf": arrays}}, "$ref": "#/$defs/a"},
        "long text": {"type": "string", "minLength": 10**7, "maxLength": 10**8},
        "long list": {"type": "array", "items": text, "minItems": 10**7},
        "counts of counts": {"type": "string", "pattern": "^((a{1,100}){1,100}){1,100}$"},
        "nested repetition": {"type": "string", "pattern": "^(((((a{0,20}b?){0,20}c?){0,20}d?){0,20}e?){0,20})$"},
        "backtracking": {"type": "string", "pattern": "^(a|a)*(a|aa)*(.*.*)*b$"},
        "looking far back": {"type": "string", "pattern": "^.*a.{15}b.*$"},
        "letters": {"type": "string", "pattern": r"^(\p{L}|\p{N}){1,5000}$"},
        "alternatives": {"type": "string", "pattern": "|".join(word(50) for _ in range(2000))},
        "all patterns": {"allOf": [{"pattern": f".*{c}.{{12}}{c}"} for c in "abcdefgh"], "type": "string"},
    }  # fmt: skip


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", hostile())
def test_hostile_schemas_come_to_an_end(over_subwords: GrammarCompiler, kind: str) -> None:
    """Refused, given up on the way, or applied: never what holds a server for long."""
    try:
        grammar = compiled(over_subwords, hostile()[kind])
    except (GrammarRefused, SchemaRefused):
        return
    with contextlib.suppress(GrammarFailed):
        assert list(walks(grammar, 1, 40))


@pytest.mark.parametrize(
    ("limits", "said"),
    [(Limits(512, 0.0001), r"compiling it takes more than 0\.0001 s"), (Limits(1, 60), "than 1 MiB of memory")],
)
def test_a_grammar_that_takes_more_than_its_limits_is_refused(limits: Limits, said: str) -> None:
    """A harmless one, under limits that no grammar keeps to; it is not tried out again."""
    compiler = GrammarCompiler(byte_tokenizer(), VOCABULARY, {END}, limits=limits)
    schema = {"enum": [f"value {number}" for number in range(2000)]}
    for _ in range(2):
        with pytest.raises(GrammarTooCostly, match=said):
            compiled(compiler, schema)
    with pytest.raises(GrammarTooCostly, match=said):
        compiler.find(json_answer(schema))


def test_who_asks_for_the_same_grammar_at_once_waits_for_one_compilation(compiler: GrammarCompiler) -> None:
    source = json_answer({"enum": [f"once {number}" for number in range(500)]})
    with pytest.raises(GrammarNotCompiled):
        compiler.find(source)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(compiler.compile, [source] * 8))
    assert len({id(grammar) for grammar in found}) == 1
    assert compiler.find(source) is found[0]


def test_a_grammar_whose_masks_cost_too_much_is_given_up(compiler: GrammarCompiler) -> None:
    source = json_answer({"type": "string", "maxLength": 77})
    grammar: Any = compiler.compile(source)
    grammar.spend(0.7)
    state = grammar.start()
    for _ in range(30):
        assert allowed_tokens(state, VOCABULARY).any()
    with pytest.raises(GrammarFailed, match="too long"):
        grammar.spend(1.2)
    with pytest.raises(GrammarRefused, match="too long"):
        compiler.compile(source)


def test_answers_of_one_grammar_know_nothing_of_each_other(compiler: GrammarCompiler) -> None:
    grammar = compiled(compiler, {"enum": ["ab", "cd"]})
    one, other = grammar.start(), grammar.start()
    before = allowed_tokens(other, VOCABULARY)
    for token in byte_tokenizer().encode('"a'):
        one.accept(token)
    assert (allowed_tokens(other, VOCABULARY) == before).all()
    assert not (allowed_tokens(one, VOCABULARY) == before).all()
    assert compiled(compiler, {"enum": ["ab", "cd"]}) is grammar


def test_tokens_that_only_the_tokenizer_has_are_never_allowed() -> None:
    """Every other token is allowed as it is for a model that has them all."""
    tokenizer = tokenizer_with(None, specials=["<think>", "<call>"])
    tokenizer.add_tokens(["ab", *(f"ab{number}" for number in range(80))])
    size, think, call = len(tokenizer), VOCABULARY, VOCABULARY + 1
    beyond, whole = (GrammarCompiler(tokenizer, number, {END, size - 1}, {call}) for number in (VOCABULARY, size))
    schema = {"type": "object", "properties": {"ab1": {"enum": ["ab", "b"]}}, "required": ["ab1"]}
    rule = json_answer(schema).removeprefix("start: answer\nanswer: ")
    for source in (json_answer(schema), f'start: answer\nanswer: (<[{think}]> "x")? json\njson: {rule}'):
        known, full = beyond.compile(source).start(), whole.compile(source).start()
        seen = 0
        for token in byte_tokenizer().encode('{"ab1": "ab"}'):
            allowed = allowed_tokens(full, size)
            seen += int(allowed[VOCABULARY:].sum())
            assert (allowed_tokens(known, VOCABULARY) == allowed[:VOCABULARY]).all()
            assert allowed[token]
            known.accept(token)
            full.accept(token)
        assert seen
        assert known.is_complete or allowed_tokens(known, VOCABULARY)[END]
    with pytest.raises(GrammarRefused, match="needs a token that this model's vocabulary does not have"):
        beyond.compile(f'start: answer\nanswer: <[{call}]> "x"\n')
    late = beyond.compile(f'start: answer\nanswer: "abcdefgh" <[{call}]>\n').start()
    for token in byte_tokenizer().encode("abcdefgh"):
        late.accept(token)
    with pytest.raises(GrammarFailed, match="needs a token that this model's vocabulary does not have"):
        allowed_tokens(late, VOCABULARY)
    with pytest.raises(GrammarRefused, match="needs an end token"):
        GrammarCompiler(tokenizer, VOCABULARY, {size - 1}).compile(json_answer(schema))
