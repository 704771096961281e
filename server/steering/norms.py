"""TypicalNorms: how long a model's activations are at each place, to tell how strong a vector is beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import Field, FiniteFloat, TypeAdapter
from typing_extensions import TypedDict

from vectors.applied import AppliedVector
from vectors.vocabulary import SITES, Place


class _Written(TypedDict):
    means: Annotated[dict[str, Annotated[FiniteFloat, Field(gt=0)]], Field(min_length=1)]
    num_tokens: Annotated[int, Field(gt=0)]


@dataclass(frozen=True, slots=True)
class TypicalNorms:
    """`means` maps each place to the mean ‖h‖ of the unsteered activations there, over `num_tokens` tokens.

    The first token of a text is left out: in many models its activation is hundreds of times longer than the others
    (massive activations, Sun et al. 2024, arXiv:2402.17762).
    """

    means: Mapping[Place, float]
    num_tokens: int

    def to_json(self) -> dict[str, Any]:
        """JSON that `from_json` reads."""
        means = {f"{site}.{layer}": mean for (site, layer), mean in self.means.items()}
        return {"num_tokens": self.num_tokens, "means": means}

    @classmethod
    def from_json(cls, given: object) -> Self:
        """The norms that `to_json` wrote. Raises `ValueError` for anything else."""
        try:
            read = TypeAdapter(_Written).validate_python(given)
            return cls({_place_of(name): mean for name, mean in read["means"].items()}, read["num_tokens"])
        except ValueError:
            raise ValueError("expected the typical norms of a model") from None


def relative_dose(applied: AppliedVector, means: Mapping[Place, float]) -> float | None:
    """‖scale·v‖ ÷ mean ‖h‖, the largest over the vector's layers; None where a norm is not known.

    Only `add` and `clamp` have a dose: other operations are measured by the activation itself, so that the length of
    the direction says nothing.
    """
    if applied.operation not in ("add", "clamp"):
        return None
    doses = []
    for place in applied.places:
        mean = means.get(place)
        if mean is None:
            return None
        doses.append(abs(applied.scale) * float(applied.directions[place[1]].double().norm()) / mean)
    return max(doses)


def _place_of(name: str) -> Place:
    site, _, layer = name.partition(".")
    for known in SITES:
        if known == site:
            return known, int(layer)
    raise ValueError(name)
