"""SteeringVector: what it refuses and how it says so, and what its revision depends on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import struct
from typing import Any

import pytest
import torch

from vectors.errors import InvalidVector
from vectors.vector import SteeringVector
from vectors.vocabulary import OPERATIONS, POSITIONS, SITES


def ramp(hidden: int = 4, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.arange(1, hidden + 1, dtype=dtype)


def with_value(value: float) -> torch.Tensor:
    direction = ramp()
    direction[2] = value
    return direction


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("direction", "says"),
    [
        (with_value(math.nan), r"residual\.7 contains NaN at index 2"),
        (with_value(math.inf), r"residual\.7 contains infinity at index 2"),
        (with_value(-math.inf), r"residual\.7 contains infinity at index 2"),
        (torch.zeros(4), r"residual\.7 is all zeros"),
        (-torch.zeros(4), r"residual\.7 is all zeros"),
        (ramp().double(), r"residual\.7: expected one of float32, float16, bfloat16, got float64"),
        (ramp().int(), r"residual\.7: .* got int32"),
        (ramp().bool(), r"residual\.7: .* got bool"),
        (ramp().to(torch.complex64), r"residual\.7: .* got complex64"),
        (ramp().to(torch.float8_e4m3fn), r"residual\.7: .* got float8_e4m3fn"),
        (ramp().reshape(2, 2), r"residual\.7: .* got \[2, 2\]"),
        (ramp().reshape(1, 4), r"residual\.7: .* got \[1, 4\]"),
        (torch.tensor(1.0), r"residual\.7: .* got \[\]"),
        (torch.empty(0), r"residual\.7: .* got \[0\]"),
        (torch.full((4,), 3e38), r"residual\.7 has norm .*outside the range of float32"),
        (ramp().to_sparse(), r"residual\.7 is not a dense tensor"),
        (torch.empty(4, device="meta"), r"residual\.7 is not a dense tensor"),
        ([1.0, 2.0], r"residual\.7 is not a dense tensor"),
    ],
)
def test_unusable_direction_is_named_with_its_fault(direction: Any, says: str) -> None:
    with pytest.raises(InvalidVector, match=says) as caught:
        SteeringVector({3: ramp(), 7: direction})
    assert caught.value.param == "residual.7"


@pytest.mark.parametrize("layer", [-1, 4096, True, "3", 1.0, None, 10**400])
def test_what_is_no_layer_is_refused(layer: Any) -> None:
    with pytest.raises(InvalidVector, match="expected layers from 0 to 4095") as caught:
        SteeringVector({layer: ramp()})
    assert caught.value.param == "directions"


def test_layer_too_large_to_be_written_is_refused() -> None:
    with pytest.raises(InvalidVector, match="expected layers from 0 to 4095"):
        SteeringVector({10**5000: ramp()})


def test_vector_needs_directions_of_one_width() -> None:
    nothings: list[Any] = [{}, [], None, [ramp()]]
    for nothing in nothings:
        with pytest.raises(InvalidVector, match="at least one direction"):
            SteeringVector(nothing)
    with pytest.raises(InvalidVector, match=r"different hidden sizes: \[3, 4\]"):
        SteeringVector({0: ramp(4), 1: ramp(3)})


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("site", "input", f"site: expected one of {', '.join(SITES)}, got 'input'"),
        ("site", ["residual"], "site: expected one of"),
        ("operation", "project", f"operation: expected one of {', '.join(OPERATIONS)}, got 'project'"),
        ("operation", None, "operation: expected one of"),
        ("positions", "first", f"positions: expected one of {', '.join(POSITIONS)}"),
        ("default_scale", math.nan, "default_scale: expected a finite number, got nan"),
        ("default_scale", -math.inf, "default_scale: expected a finite number, got -inf"),
        ("default_scale", True, "default_scale: expected a finite number"),
        ("default_scale", "2", "default_scale: expected a finite number"),
        ("default_scale", 10**400, "default_scale: expected a finite number"),
        ("description", 3, "description must be text"),
        ("description", None, "description must be text"),
        ("description", "x" * 10_001, "at most 10000"),
        ("description", "half a pair \ud800", "valid Unicode"),
        ("model", 3, "model must be text"),
        ("model", "x" * 501, "at most 500"),
        ("metadata", None, "metadata must be a JSON object"),
        ("metadata", [1], "metadata must be a JSON object"),
        ("metadata", {"a": math.nan}, "metadata must be a JSON object with finite numbers"),
        ("metadata", {"a": {1, 2}}, "metadata must be a JSON object"),
        ("metadata", {"a": ramp()}, "metadata must be a JSON object"),
        ("metadata", {("a",): 1}, "metadata must be a JSON object"),
        ("metadata", {"a": "\udfff"}, "valid Unicode"),
        ("metadata", {"\ud800": 1}, "valid Unicode"),
        ("metadata", {"a": "x" * (1 << 20)}, "metadata is larger than 1048576 bytes"),
        ("metadata", {"a": nested(64)}, "metadata is nested more than 64 deep"),
        ("metadata", {"a": nested(940)}, "metadata (is nested more than 64 deep|must be a JSON object)"),
        ("metadata", {"a": nested(5000)}, "metadata must be a JSON object"),
        ("training", [1], "training must be a JSON object"),
        ("training", {"loss": math.inf}, "training must be a JSON object with finite numbers"),
    ],
)
def test_unusable_field_is_named_with_its_fault(field: str, value: Any, says: str) -> None:
    with pytest.raises(InvalidVector, match=says) as caught:
        SteeringVector({0: ramp()}, **{field: value})
    assert caught.value.param == field


def test_message_about_half_a_surrogate_pair_can_be_sent() -> None:
    error = InvalidVector("no", "steering_vector.\ud800")
    assert error.param is not None
    assert json.dumps(error.param, ensure_ascii=False).encode()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_directions_are_kept_as_given_and_are_private(dtype: torch.dtype) -> None:
    given = {5: ramp(4, dtype), 2: ramp(8, dtype)[::2]}
    vector = SteeringVector(given)
    kept = given[5].clone()
    given[5].mul_(3)
    given[9] = ramp()
    assert vector.layers == (2, 5)
    assert vector.hidden_size == 4
    assert vector.directions[5].dtype is dtype
    assert torch.equal(vector.directions[5], kept)
    assert vector.directions[2].tolist() == [1, 3, 5, 7]
    assert vector.norms[5] == pytest.approx(math.sqrt(30), rel=1e-12)


def test_parameter_becomes_a_tensor_without_gradient() -> None:
    vector = SteeringVector({0: torch.nn.Parameter(ramp())})
    assert not vector.directions[0].requires_grad


def test_vector_cannot_be_changed() -> None:
    vector = SteeringVector({0: ramp()}, metadata={"a": 1}, training={"b": 1})
    with pytest.raises(dataclasses.FrozenInstanceError):
        vector.default_scale = 2.0  # type: ignore[misc]
    for mapping in (vector.directions, vector.metadata, vector.training):
        with pytest.raises(TypeError):
            mapping[0] = 1  # type: ignore[index]


def test_metadata_is_a_copy() -> None:
    mine = {"list": [1, 2], "at": "ü"}
    vector = SteeringVector({0: ramp()}, metadata=mine)
    mine["list"].append(3)  # type: ignore[attr-defined]
    assert vector.metadata == {"list": [1, 2], "at": "ü"}


def independent_revision(vector: SteeringVector) -> str:
    """The documented hash, from the pieces and by other means than the code's."""
    names = {torch.float32: ("float32", "f"), torch.float16: ("float16", "e")}
    text = "tiller steering vector 1\n"
    fields = {
        "default_scale": vector.default_scale,
        "description": vector.description,
        "metadata": dict(vector.metadata),
        "model": vector.model,
        "operation": vector.operation,
        "positions": vector.positions,
        "site": vector.site,
        "training": vector.training and dict(vector.training),
    }
    blob = (text + json.dumps(fields, separators=(",", ":"), sort_keys=True)).encode("ascii")
    for layer in sorted(vector.directions):
        direction = vector.directions[layer]
        name, code = names[direction.dtype]
        blob += f"\n{layer} {name} {len(direction)}\n".encode()
        blob += b"".join(struct.pack("<" + code, value) for value in direction.tolist())
    return hashlib.sha256(blob).hexdigest()


def test_revision_is_the_documented_hash() -> None:
    vectors = [
        SteeringVector({1: ramp()}),
        SteeringVector(
            {10: ramp(3), 2: ramp(3).half()},
            site="mlp",
            default_scale=-2.5,
            operation="clamp",
            positions="all",
            description="größer",
            metadata={"b": [1.5], "a": None},
        ),
        SteeringVector({0: ramp()}, training={"seed": 3}, model="base"),
    ]
    for vector in vectors:
        assert vector.revision == independent_revision(vector)


def test_revision_of_a_known_vector_never_drifts() -> None:
    """A change of this number orphans every revision that anybody noted or pinned."""
    vector = SteeringVector({12: torch.tensor([1.0, -2.0, 0.5])}, description="calm", metadata={"k": [1]})
    assert vector.revision == "8168041b5d08372f69c96870d8451531c2680f5252f8d3a7499c99c2f432f93e"


def test_every_part_of_the_content_is_in_the_revision() -> None:
    base = SteeringVector({3: ramp(), 4: ramp()})
    others = [
        SteeringVector({3: ramp(), 5: ramp()}),
        SteeringVector({3: ramp()}),
        SteeringVector({3: ramp(), 4: ramp().half()}),
        SteeringVector({3: ramp(), 4: ramp().bfloat16()}),
        SteeringVector({3: ramp(), 4: ramp() * (1 + 2**-23)}),
        SteeringVector({3: ramp(), 4: with_value(-3.0)}),
        *(base.with_defaults(site=site) for site in SITES[1:]),
        base.with_defaults(default_scale=2),
        *(base.with_defaults(operation=operation) for operation in OPERATIONS if operation != "add"),
        *(base.with_defaults(positions=positions) for positions in POSITIONS if positions != "response"),
        base.with_defaults(parts=["content"]),
        base.with_defaults(parts=["content", "tool_calls"]),
        base.with_defaults(description="x"),
        base.with_defaults(metadata={"a": 1}),
        base.with_defaults(training={}),
        base.with_defaults(training={"a": 1}),
        base.with_defaults(model="m"),
    ]
    assert len({vector.revision for vector in [base, *others]}) == len(others) + 1


def test_revision_does_not_depend_on_order_or_spelling() -> None:
    one = SteeringVector({3: ramp(), 4: ramp()}, metadata={"a": 1, "b": (2, 3)}, default_scale=2)
    two = SteeringVector({4: ramp(), 3: ramp(8)[:4]}, metadata={"b": [2, 3], "a": 1}, default_scale=2.0)
    assert one.revision == two.revision
    assert one == two
    assert len({one, two}) == 1
    assert one != one.with_defaults(default_scale=3)
    assert one != "another thing"


def test_parts_are_a_set_and_the_default_ones_leave_no_trace() -> None:
    base = SteeringVector({3: ramp()})
    assert base.parts == ("reasoning", "content", "structured")
    assert base.with_defaults(parts=["structured", "content", "reasoning"]) == base
    assert "parts" not in base.defaults
    assert base.with_defaults(parts=("tool_calls", "content")).defaults["parts"] == ["content", "tool_calls"]


@pytest.mark.parametrize("parts", [[], "content", ["answer"], ["content", "content"], [None], None, {"content": 1}])
def test_parts_that_are_none_are_refused(parts: object) -> None:
    with pytest.raises(InvalidVector) as refused:
        SteeringVector({3: ramp()}, parts=parts)  # type: ignore[arg-type]
    assert refused.value.param == "parts"


def test_refused_parts_are_shown_as_the_list_that_was_written() -> None:
    with pytest.raises(InvalidVector, match=re.escape("each once, got ['content', 'content']")):
        SteeringVector({3: ramp()}, parts=("content", "content"))


def test_neighbouring_directions_cannot_swap_bytes() -> None:
    one = SteeringVector({1: torch.tensor([1.0, 2.0]), 2: torch.tensor([3.0, 4.0])})
    two = SteeringVector({1: torch.tensor([1.0, 2.0, 3.0, 4.0])})
    assert one.revision != two.revision


def test_with_defaults_keeps_the_rest() -> None:
    vector = SteeringVector({3: ramp()}, metadata={"a": 1}, training={"seed": 1}, model="m", description="d")
    changed = vector.with_defaults(default_scale=-4)
    assert changed.defaults == vector.defaults | {"default_scale": -4.0}
    assert changed.with_defaults(default_scale=1.0) == vector
    with pytest.raises(InvalidVector, match="default_scale"):
        vector.with_defaults(default_scale=math.inf)


def test_fit_compares_with_a_models_numbers() -> None:
    vector = SteeringVector({0: ramp(), 27: ramp()}, site="mlp")
    vector.fit(28, 4, ["residual", "mlp"])
    with pytest.raises(InvalidVector, match="hidden size 4, but the model has 8"):
        vector.fit(28, 8, ["mlp"])
    with pytest.raises(InvalidVector, match=r"layers \[27\] are outside the model, which has blocks 0 to 26") as caught:
        vector.fit(27, 4, ["mlp"])
    assert caught.value.param == "mlp.27"
    with pytest.raises(InvalidVector, match="no site 'mlp'; its sites are residual, attention") as caught:
        vector.fit(28, 4, ["residual", "attention"])
    assert caught.value.param == "site"


CALIBRATION: dict[str, Any] = {
    "safe_scale": [-1, 2], "operation": "add", "positions": "response", "layers": [3], "norms": {"3": 2.5},
    "fingerprint": "", "kl": 1.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"safe_scale": [1, 2]}, "contains 0"),
        ({"safe_scale": [0, 0]}, "contains 0"),
        ({"safe_scale": [-1]}, "two numbers"),
        ({"safe_scale": [-1, True]}, "two numbers"),
        ({"operation": "destroy"}, "operation"),
        ({"positions": None}, "positions"),
        ({"layers": []}, "layers"),
        ({"layers": ["3"]}, "layers"),
        ({"norms": {"3": 0}}, "norms"),
        ({"norms": {"-3": 1}}, "norms"),
        ({"fingerprint": None}, "fingerprint"),
    ],
)
def test_a_malformed_calibration_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidVector, match=f"calibration: .*{says}"):
        SteeringVector({3: ramp()}, calibration=CALIBRATION | change)


@pytest.mark.parametrize("limit", [0, -1, math.nan, math.inf, True])
def test_a_malformed_limit_is_refused(limit: Any) -> None:
    with pytest.raises(InvalidVector, match="max_scale"):
        SteeringVector({3: ramp()}, max_scale=limit)


def test_a_vector_without_a_dose_keeps_its_revision() -> None:
    plain = SteeringVector({3: ramp()})
    assert not {"max_scale", "calibration"} & set(plain.defaults)
    assert plain.calibrated is None
    others = [plain.with_defaults(max_scale=2), plain.with_defaults(calibration=CALIBRATION)]
    assert len({plain.revision, *(other.revision for other in others)}) == 3
    assert others[1].calibrated is not None
    assert others[1].calibrated.safe_scale == (-1.0, 2.0)
    assert others[1].calibrated.norms == {3: 2.5}
