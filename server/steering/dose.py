"""DosePolicy: how strong a vector may be in a request, and what is said about how strong it is.

A vector's limit is its `max_scale`, which its owner sets, or else the safe range that a calibration measured for this
model and operation. A vector with neither has no limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from server.config import DoseLimit
from server.steering.norms import relative_dose
from vectors.applied import AppliedVector
from vectors.calibration_record import Calibration
from vectors.errors import CannotSteer
from vectors.positions import positions_json
from vectors.vector import SteeringVector
from vectors.vocabulary import Place


@dataclass(frozen=True, slots=True)
class SafeShare:
    """A scale given as a share of the safe range: 1 is its upper end, -1 its lower end."""

    share: float


@dataclass(frozen=True, slots=True)
class Dose:
    """How strong an entry is. `relative`: see `relative_dose`; `capped_from`: the scale asked for, if it was lowered.

    `warning` says that the scale asked for is above the vector's limit.
    """

    relative: float | None = None
    warning: str | None = None
    capped_from: float | None = None


UNKNOWN = Dose()
"""Nothing is known, and nothing to say."""


@dataclass(frozen=True, slots=True)
class DosePolicy:
    """What to do with scales above limits, the model's typical norms, and the model's fingerprint ("": unknown)."""

    limit: DoseLimit = "off"
    norms: Mapping[Place, float] = field(default_factory=dict)
    fingerprint: str = ""

    def scale_of(self, share: SafeShare, vector: SteeringVector, applied: AppliedVector, called: str) -> float:
        """The scale at `share` of the safe range of `vector`, used as `applied`.

        Raises `CannotSteer` if no range was measured for this use.
        """
        reason = self._reason_without_range(vector, applied)
        if reason is not None:
            raise CannotSteer(
                f"{called} has no safe range to take a share of: {reason}; give a number, or run tiller calibrate",
                "scale",
                "no_safe_range",
            )
        assert vector.calibrated is not None
        low, high = vector.calibrated.safe_scale
        return share.share * (high if share.share >= 0 else -low)

    def hold(self, vector: SteeringVector, applied: AppliedVector, called: str) -> tuple[AppliedVector, Dose]:
        """`applied` as the policy allows it, and its dose. Raises `CannotSteer` for a scale that it refuses."""
        asked = applied.scale
        limits = None if self.limit == "off" else self._limits(vector, applied)
        if limits is None or limits[0] <= asked <= limits[1]:
            return applied, Dose(self._relative(vector, applied))
        low, high = limits
        told = f"scale {asked:g} of {called} is outside its limits, {low:g} to {high:g}"
        told += " (its max_scale)" if vector.max_scale is not None else " (its calibrated safe range)"
        if self.limit == "refuse":
            raise CannotSteer(told, "scale", "scale_above_limit")
        if self.limit == "warn":
            return applied, Dose(self._relative(vector, applied), told)
        capped = replace(applied, scale=min(max(asked, low), high))
        return capped, Dose(self._relative(vector, capped), f"{told}; {capped.scale:g} was used", asked)

    def _relative(self, vector: SteeringVector, applied: AppliedVector) -> float | None:
        """The dose by the norms that the vector's calibration measured on this model, else by the typical ones."""
        found = vector.calibrated
        own: dict[Place, float] = {}
        if found is not None and self._is_of_this_model(found):
            own = {(applied.site, layer): norm for layer, norm in found.norms.items()}
        return relative_dose(applied, {**self.norms, **own})

    def _limits(self, vector: SteeringVector, applied: AppliedVector) -> tuple[float, float] | None:
        """The lowest and the highest scale; None without any limit.

        A range that was measured at other layers or positions is the best that is known, and holds.
        """
        if vector.max_scale is not None:
            return -vector.max_scale, vector.max_scale
        found = vector.calibrated
        if found is None or found.operation != applied.operation or not self._is_of_this_model(found):
            return None
        return found.safe_scale

    def _reason_without_range(self, vector: SteeringVector, applied: AppliedVector) -> str | None:
        found = vector.calibrated
        if found is None:
            return "it was not calibrated"
        if not self._is_of_this_model(found):
            return "it was calibrated on another model"
        measured = (found.operation, found.positions, found.layers)
        if measured != (applied.operation, applied.positions, applied.layers):
            layers = ", ".join(map(str, found.layers))
            positions = positions_json(found.positions)
            return f"it was calibrated for {found.operation} at layers {layers} of positions {positions}"
        return None

    def _is_of_this_model(self, found: Calibration) -> bool:
        return not self.fingerprint or not found.fingerprint or found.fingerprint == self.fingerprint


NO_POLICY = DosePolicy()
"""Nothing is limited, and no dose is known."""
