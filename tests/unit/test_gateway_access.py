"""The access table names every route and every RPC, and nothing that does not exist."""

import pytest
from prometheus_client import CollectorRegistry
from reelmesh.v1 import batch_service_pb2, fleet_service_pb2, video_service_pb2

from gateway.application import Caller
from gateway.auth import access
from gateway.edge.config import EdgeConfig
from gateway.edge.metrics import EdgeMetrics
from gateway.edge_grpc.api import add_grpc_services
from gateway.edge_http.api import build_http_app
from gateway.errors import PermissionDenied
from gateway.fake_application import FakeApplication
from reelkit.clock import ManualClock


class RecordingServer:
    """Notes the RPCs that are added to it."""

    def __init__(self):
        self.endpoints = set()

    def add_generic_rpc_handlers(self, handlers):
        for handler in handlers:
            self.endpoints.update(handler._method_handlers)

    def add_registered_method_handlers(self, service, handlers):
        self.endpoints.update(f"/{service}/{name}" for name in handlers)


def edge_arguments():
    clock = ManualClock()
    return {
        "application": FakeApplication(clock=clock),
        "batches": None,
        "door": None,
        "metrics": EdgeMetrics(CollectorRegistry()),
        "config": EdgeConfig(),
        "clock": clock,
    }


def served_endpoints():
    app = build_http_app(**edge_arguments())
    routes = {
        access.http_endpoint(route.method, route.resource.canonical)
        for route in app.router.routes()
    }
    server = RecordingServer()
    add_grpc_services(server, **edge_arguments())
    return routes | server.endpoints


def test_the_table_and_what_is_served_are_the_same_set():
    assert served_endpoints() == set(access.ACCESS)


def test_every_rpc_of_the_public_contracts_needs_a_scope():
    for module, name in (
        (video_service_pb2, "VideoService"),
        (batch_service_pb2, "BatchService"),
        (fleet_service_pb2, "FleetService"),
    ):
        service = module.DESCRIPTOR.services_by_name[name]
        for method in service.methods:
            assert access.required_scope(f"/{service.full_name}/{method.name}") is not None


def test_only_health_metrics_the_apis_description_and_grpcs_own_services_are_public():
    public = {endpoint for endpoint, scope in access.ACCESS.items() if scope is access.PUBLIC}
    assert public == {
        "GET /healthz",
        "GET /readyz",
        "GET /metrics",
        "GET /openapi.json",
        "GET /docs",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/List",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    }


def test_an_endpoint_outside_the_table_is_refused():
    with pytest.raises(access.UnlistedEndpoint):
        access.required_scope("GET /v1/new")


def test_a_route_missing_in_the_table_stops_the_build(monkeypatch):
    smaller = {e: s for e, s in access.ACCESS.items() if e != "GET /v1/regions"}
    monkeypatch.setattr(access, "ACCESS", smaller)
    with pytest.raises(access.UnlistedEndpoint, match="GET /v1/regions"):
        build_http_app(**edge_arguments())


def test_an_rpc_missing_in_the_table_stops_the_build(monkeypatch):
    endpoint = "/reelmesh.v1.VideoService/DeleteVideo"
    smaller = {e: s for e, s in access.ACCESS.items() if e != endpoint}
    monkeypatch.setattr(access, "ACCESS", smaller)
    with pytest.raises(access.UnlistedEndpoint, match="DeleteVideo"):
        add_grpc_services(RecordingServer(), **edge_arguments())


def test_a_public_rpc_of_ours_stops_the_build(monkeypatch):
    opened = {**access.ACCESS, "/reelmesh.v1.VideoService/DeleteVideo": access.PUBLIC}
    monkeypatch.setattr(access, "ACCESS", opened)
    with pytest.raises(access.UnlistedEndpoint, match="DeleteVideo"):
        add_grpc_services(RecordingServer(), **edge_arguments())


def test_a_scope_is_matched_whole():
    caller = Caller("acme", "me", frozenset({"video", "video:readonly"}))
    with pytest.raises(PermissionDenied, match="video:read"):
        access.require(caller, access.Scope.VIDEO_READ)


def test_head_is_let_in_where_get_is():
    assert access.http_endpoint("HEAD", "/healthz") == access.http_endpoint("GET", "/healthz")
