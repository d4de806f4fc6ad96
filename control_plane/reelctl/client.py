"""Calls of OperatorService, by the regions that a target names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from reelmesh.v1 import access_pb2, region_pb2, registry_pb2, tenant_pb2
from reelmesh.v1 import operator_service_pb2 as op
from reelmesh.v1.operator_service_pb2_grpc import OperatorServiceStub

from control_plane.reelctl.errors import (
    ChangedMeanwhileError,
    CtlError,
    NoAnswerError,
    NotFoundError,
    UsageError,
)
from control_plane.reelctl.target import Site, Target
from reelkit.loopback import is_loopback

OnMissing = Callable[[str], None]

_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class OperatorClient:
    """Speaks to each region's control planes; :func:`connect` makes and closes it."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._channels: dict[str, grpc.Channel] = {}

    def close(self) -> None:
        """Closes every connection."""
        for channel in self._channels.values():
            channel.close()

    def nodes(self, *, with_status: bool, on_missing: OnMissing | None = None) -> list[op.NodeView]:
        """The nodes of every region, by region and name.

        Args:
            with_status: With each node's own word.
            on_missing: Told why a region is left out that does not answer; without it,
                or where none answers, that is an error.
        """
        request = op.ListNodesRequest(with_status=with_status)
        answers = self._of_every_site(lambda stub: stub.ListNodes, request, on_missing)
        return [node for answer in answers for node in answer.nodes]

    def gateways(self, *, on_missing: OnMissing | None = None) -> list[op.GatewayView]:
        """The gateways of every region; likewise."""
        request = op.ListGatewaysRequest()
        answers = self._of_every_site(lambda stub: stub.ListGateways, request, on_missing)
        return [gateway for answer in answers for gateway in answer.gateways]

    def node_events(self, node_id: str) -> list[op.NodeEventRecord]:
        """How a node's state changed, the newest last."""
        request = op.ListNodeEventsRequest(node_id=node_id)
        return list(self._of_the_node(node_id, lambda stub: stub.ListNodeEvents, request).events)

    def set_node_policy(self, node_id: str, *, cordoned: bool, draining: bool) -> op.NodeView:
        """Says what is wanted of a node."""
        request = op.SetNodePolicyRequest(node_id=node_id, cordoned=cordoned, draining=draining)
        node: op.NodeView = self._of_the_node(
            node_id, lambda stub: stub.SetNodePolicy, request
        ).node
        return node

    def regions(self) -> list[region_pb2.RegionView]:
        """Every region, as the first site that answers has them: all read the same store."""
        request = op.OperatorServiceListRegionsRequest()
        return list(self._any_site(lambda stub: stub.ListRegions, request).regions)

    def set_region_policy(
        self, region: str, *, draining: bool, reason: str
    ) -> region_pb2.RegionView:
        """Says what is wanted of a region."""
        request = op.SetRegionPolicyRequest(region=region, draining=draining, reason=reason)
        view: region_pb2.RegionView = self._any_site(
            lambda stub: stub.SetRegionPolicy, request
        ).region
        return view

    def revoke(
        self, revocation: access_pb2.TokenRevocation, *, keep_s: int
    ) -> access_pb2.TokenRevocation:
        """Revokes tokens in the whole mesh."""
        request = op.RevokeTokensRequest(revocation=revocation, keep_s=keep_s)
        made: access_pb2.TokenRevocation = self._any_site(
            lambda stub: stub.RevokeTokens, request
        ).revocation
        return made

    def revocations(self) -> list[access_pb2.TokenRevocation]:
        """Every revocation, the newest first."""
        request = op.ListRevocationsRequest()
        return list(self._any_site(lambda stub: stub.ListRevocations, request).revocations)

    def restore(self, revocation_id: str) -> None:
        """Takes a revocation back."""
        request = op.RestoreTokensRequest(id=revocation_id)
        self._any_site(lambda stub: stub.RestoreTokens, request)

    def tenants(self) -> list[tenant_pb2.TenantPolicy]:
        """Every tenant's policy, by name."""
        return list(self._any_site(lambda stub: stub.ListTenants, op.ListTenantsRequest()).tenants)

    def tenant(self, name: str) -> tenant_pb2.TenantPolicy:
        """A tenant's own policy as it stands.

        Raises:
            NotFoundError: It has none.
        """
        request = op.GetTenantRequest(tenant=name)
        policy: tenant_pb2.TenantPolicy = self._any_site(
            lambda stub: stub.GetTenant, request
        ).tenant
        return policy

    def set_tenant(self, policy: tenant_pb2.TenantPolicy) -> tenant_pb2.TenantPolicy:
        """Writes a policy in place of the one of its revision.

        Raises:
            ChangedMeanwhileError: Somebody else wrote since.
        """
        request = op.SetTenantRequest(tenant=policy)
        made: tenant_pb2.TenantPolicy = self._any_site(lambda stub: stub.SetTenant, request).tenant
        return made

    def unset_tenant(self, name: str, *, revision: int) -> None:
        """Removes a tenant's policy; likewise."""
        request = op.UnsetTenantRequest(tenant=name, revision=revision)
        self._any_site(lambda stub: stub.UnsetTenant, request)

    def tenant_usage(
        self, name: str, *, on_missing: OnMissing | None = None
    ) -> list[op.TenantUsage]:
        """What a tenant has in each region; see :meth:`nodes` for those that do not answer."""
        request = op.GetTenantUsageRequest(tenant=name)
        answers = self._of_every_site(lambda stub: stub.GetTenantUsage, request, on_missing)
        return [answer.usage for answer in answers]

    def registered_models(self) -> list[registry_pb2.RegisteredModel]:
        """Every registered version, without their manifests."""
        request = op.ListRegisteredModelsRequest()
        return list(self._any_site(lambda stub: stub.ListRegisteredModels, request).models)

    def registered_model(self, name: str, version: str) -> registry_pb2.RegisteredModel:
        """A version as it stands.

        Raises:
            NotFoundError: It is not registered.
        """
        request = op.GetRegisteredModelRequest(name=name, version=version)
        model: registry_pb2.RegisteredModel = self._any_site(
            lambda stub: stub.GetRegisteredModel, request
        ).model
        return model

    def register_model(
        self, model: registry_pb2.RegisteredModel
    ) -> tuple[registry_pb2.RegisteredModel, bool]:
        """Adds a version; says what stands, and whether it is new."""
        request = op.RegisterModelRequest(model=model)
        answer = self._any_site(lambda stub: stub.RegisterModel, request)
        return answer.model, answer.added

    def set_model_state(
        self,
        model: registry_pb2.RegisteredModel,
        state: registry_pb2.RegistrationState.ValueType,
        *,
        reason: str,
    ) -> registry_pb2.RegisteredModel:
        """Retires a version as it was read, or takes that back.

        Raises:
            ChangedMeanwhileError: Somebody else wrote since.
        """
        request = op.SetModelStateRequest(
            name=model.name,
            version=model.version,
            state=state,
            reason=reason,
            revision=model.revision,
        )
        made: registry_pb2.RegisteredModel = self._any_site(
            lambda stub: stub.SetModelState, request
        ).model
        return made

    def prefetches(self) -> list[registry_pb2.PrefetchOrder]:
        """Every standing order, the oldest first."""
        request = op.ListPrefetchesRequest()
        return list(self._any_site(lambda stub: stub.ListPrefetches, request).orders)

    def set_prefetch(self, order: registry_pb2.PrefetchOrder) -> registry_pb2.PrefetchOrder:
        """Has nodes fetch and keep a version."""
        request = op.SetPrefetchRequest(order=order)
        made: registry_pb2.PrefetchOrder = self._any_site(
            lambda stub: stub.SetPrefetch, request
        ).order
        return made

    def unset_prefetch(self, name: str, version: str) -> None:
        """Ends that."""
        request = op.UnsetPrefetchRequest(name=name, version=version)
        self._any_site(lambda stub: stub.UnsetPrefetch, request)

    def _of_every_site(
        self, method: Callable[[Any], Any], request: Any, on_missing: OnMissing | None
    ) -> list[Any]:
        answers, missing = [], []
        for site in self._target.sites:
            try:
                answers.append(self._ask(site, method, request))
            except NoAnswerError as error:
                if on_missing is None:
                    raise
                missing.append((site, error))
        if missing and not answers:
            raise missing[0][1]
        for site, why in missing:
            if on_missing is not None:
                on_missing(f"{site.region or 'a region'} is left out: {why.message}")
        return answers

    def _of_the_node(self, node_id: str, method: Callable[[Any], Any], request: Any) -> Any:
        """The answer of the region that has the node."""
        missing: list[str] = []
        for site in self._target.sites:
            try:
                return self._ask(site, method, request)
            except NotFoundError:
                missing.append(site.region)
        where = f" in {', '.join(missing)}" if any(missing) else ""
        raise NotFoundError(f"there is no node {node_id!r}{where}", hint="see `reelctl node list`")

    def _any_site(self, method: Callable[[Any], Any], request: Any) -> Any:
        last: NoAnswerError | None = None
        for site in self._target.sites:
            try:
                return self._ask(site, method, request)
            except NoAnswerError as error:
                last = error
        raise last or UsageError("no control plane is known")

    def _ask(self, site: Site, method: Callable[[Any], Any], request: Any) -> Any:
        """The answer of the first control plane of the region that gives one."""
        last: grpc.RpcError | None = None
        for address in site.addresses:
            stub = OperatorServiceStub(self._channel(address))
            try:
                return method(stub)(
                    request,
                    timeout=self._target.timeout_s,
                    metadata=(("authorization", f"Bearer {self._target.token}"),),
                )
            except grpc.RpcError as error:
                if error.code() not in _AWAY:
                    raise _told(error, address) from None
                last = error
        raise _told(last, ", ".join(site.addresses)) from None

    def _channel(self, address: str) -> grpc.Channel:
        if address not in self._channels:
            self._channels[address] = self._open(address)
        return self._channels[address]

    def _open(self, address: str) -> grpc.Channel:
        if self._target.ca is None and is_loopback(address):
            return grpc.insecure_channel(address)
        # Never in plain text over a network: the token would be read on the way.
        target = self._target
        credentials = grpc.ssl_channel_credentials(
            _read("--ca", target.ca),
            _read("--cert-key", target.cert_key),
            _read("--cert", target.cert),
        )
        return grpc.secure_channel(address, credentials)


@contextmanager
def connect(target: Target) -> Iterator[OperatorClient]:
    """A client for as long as the block runs."""
    client = OperatorClient(target)
    try:
        yield client
    finally:
        client.close()


def _read(option: str, file: Path | None) -> bytes | None:
    if file is None:
        return None
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"{option} {file}: cannot be read: {error.strerror}") from None


def _told(error: Any, address: str) -> CtlError:
    """What went wrong, for the person, and what to do next."""
    if error is None:
        return NoAnswerError("no control plane is known")
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return CtlError(
            f"the token is not taken: {details}",
            hint="pass one that holds with --token or REELCTL_TOKEN, or --mesh DIR/mesh.json",
        )
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return CtlError(details)
    if code is grpc.StatusCode.NOT_FOUND:
        return NotFoundError(details)
    if code is grpc.StatusCode.ABORTED:
        return ChangedMeanwhileError(details)
    if code is grpc.StatusCode.FAILED_PRECONDITION and "global store" in details:
        return CtlError(details, hint="give its control plane a global_etcd, and it knows regions")
    if code in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ALREADY_EXISTS):
        return CtlError(details)
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return UsageError(details)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return CtlError(
            f"{address} does not offer this",
            hint="is it the operators' listener (operator.listen), of a control plane as new "
            "as this reelctl?",
        )
    if code is grpc.StatusCode.UNAVAILABLE and error.trailing_metadata():
        # The control plane answered: it is its store that does not.
        return NoAnswerError(f"{address}: {details}")
    if code is grpc.StatusCode.UNAVAILABLE:
        return NoAnswerError(
            f"no control plane answers at {address}",
            hint="is it up, and is this its operator.listen? over a network it has to speak TLS; "
            "with TLS, name its authority with --ca, and where it wants one your certificate with "
            "--cert and --cert-key",
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return NoAnswerError(
            f"{address} gave no answer in time", hint="give it more time with --timeout"
        )
    return CtlError(f"{address}: {code.name}: {details}")
