"""`variants`: one request whose choices are steered differently, each as a request of its own would be."""

from __future__ import annotations

from collections.abc import Sequence

from anyio.to_thread import run_sync

from server.api.generation.steering import count_vectors, plan_of, resolved, steering_of
from server.api.generation.wire import GenerationFields, SteeringVariant
from server.api.http.limiting import Caller
from server.api.http.services import Services
from server.errors import ApiError
from server.steering.plan import SteeringPlan


async def plans_of(
    request: GenerationFields, variants: Sequence[SteeringVariant] | None, services: Services, caller: Caller
) -> list[SteeringPlan]:
    """The plan of each variant, or without variants only that of the request. Errors name the variant's field."""
    if variants is None:
        return [await plan_of(request, services, caller)]
    plans = await run_sync(_resolved, request, variants, services, caller)
    for plan in plans:
        count_vectors(plan, services)
    return plans


def _resolved(
    request: GenerationFields, variants: Sequence[SteeringVariant], services: Services, caller: Caller
) -> list[SteeringPlan]:
    plans = []
    for number, variant in enumerate(variants):
        steering = request.steering if variant.steering is None else variant.steering
        try:
            asked = steering_of(request.model_copy(update={"steering": steering}), services, caller)
            plans.append(resolved(asked, services))
        except ApiError as error:
            raise _named(error, number if variant.steering is not None else None) from None
    return plans


def _named(error: ApiError, number: int | None) -> ApiError:
    """The error with the place of variant `number` before its field, if it is one of `steering`."""
    if number is None or error.param is None or not error.param.startswith("steering"):
        return error
    param = f"variants.{number}.{error.param}"
    says_where = error.message.startswith(error.param)
    message = param + error.message.removeprefix(error.param) if says_where else error.message
    return type(error)(message, code=error.code, param=param, headers=error.headers)
