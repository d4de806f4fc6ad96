"""The methods of OperatorService that are about registered models."""

from __future__ import annotations

from typing import Protocol

from reelmesh.v1 import operator_service_pb2 as op
from reelmesh.v1 import registry_pb2 as reg

from control_plane.errors import InvalidRequestError
from control_plane.operator.access import Operator
from control_plane.registry.record import check_model_name, check_reason

_STATES = (reg.REGISTRATION_STATE_ACTIVE, reg.REGISTRATION_STATE_RETIRED)


class ModelRegistry(Protocol):
    """The registered versions as the global store has them."""

    def models(self) -> list[reg.RegisteredModel]:
        """Every version."""
        ...

    def orders(self) -> list[reg.PrefetchOrder]:
        """Every standing order."""
        ...

    async def get(self, name: str, version: str) -> reg.RegisteredModel:
        """A version; raises NotFoundError where it is not registered."""
        ...

    async def register(
        self, asked: reg.RegisteredModel, *, by: str
    ) -> tuple[reg.RegisteredModel, bool]:
        """Adds one; raises AlreadyRegisteredError where its content is another."""
        ...

    async def set_state(
        self,
        name: str,
        version: str,
        *,
        state: reg.RegistrationState.ValueType,
        reason: str,
        revision: int,
        by: str,
    ) -> reg.RegisteredModel:
        """Retires one or takes that back; raises StillWantedError or ChangedMeanwhileError."""
        ...

    async def order(self, asked: reg.PrefetchOrder, *, by: str) -> reg.PrefetchOrder:
        """Has nodes fetch one; raises NotFoundError where it is not to be had."""
        ...

    async def take_back(self, name: str, version: str, *, by: str) -> None:
        """Ends an order; raises NotFoundError where there is none."""
        ...


class ModelMethods:
    """Registered models, and who should have them."""

    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry

    async def list_registered_models(
        self, _request: op.ListRegisteredModelsRequest, _operator: Operator
    ) -> op.ListRegisteredModelsResponse:
        """See operator_service.proto."""
        response = op.ListRegisteredModelsResponse(models=self._registry.models())
        for model in response.models:
            model.manifest = b""
        return response

    async def get_registered_model(
        self, request: op.GetRegisteredModelRequest, _operator: Operator
    ) -> op.GetRegisteredModelResponse:
        """See operator_service.proto."""
        _check_names(request.name, request.version)
        model = await self._registry.get(request.name, request.version)
        return op.GetRegisteredModelResponse(model=model)

    async def register_model(
        self, request: op.RegisterModelRequest, operator: Operator
    ) -> op.RegisterModelResponse:
        """See operator_service.proto."""
        model, added = await self._registry.register(request.model, by=operator.subject)
        return op.RegisterModelResponse(model=model, added=added)

    async def set_model_state(
        self, request: op.SetModelStateRequest, operator: Operator
    ) -> op.SetModelStateResponse:
        """See operator_service.proto."""
        _check_names(request.name, request.version)
        check_reason(request.reason)
        if request.state not in _STATES:
            raise InvalidRequestError("state", "must be active or retired")
        if request.revision < 1:
            raise InvalidRequestError("revision", "must be that at which the version was read")
        model = await self._registry.set_state(
            request.name,
            request.version,
            state=request.state,
            reason=request.reason,
            revision=request.revision,
            by=operator.subject,
        )
        return op.SetModelStateResponse(model=model)

    async def list_prefetches(
        self, _request: op.ListPrefetchesRequest, _operator: Operator
    ) -> op.ListPrefetchesResponse:
        """See operator_service.proto."""
        return op.ListPrefetchesResponse(orders=self._registry.orders())

    async def set_prefetch(
        self, request: op.SetPrefetchRequest, operator: Operator
    ) -> op.SetPrefetchResponse:
        """See operator_service.proto."""
        order = await self._registry.order(request.order, by=operator.subject)
        return op.SetPrefetchResponse(order=order)

    async def unset_prefetch(
        self, request: op.UnsetPrefetchRequest, operator: Operator
    ) -> op.UnsetPrefetchResponse:
        """See operator_service.proto."""
        _check_names(request.name, request.version)
        await self._registry.take_back(request.name, request.version, by=operator.subject)
        return op.UnsetPrefetchResponse()


def _check_names(name: str, version: str) -> None:
    check_model_name("name", name)
    check_model_name("version", version)
