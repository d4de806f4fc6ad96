"""Nobody gets in by a method that was forgotten, nor by a listener that was half set up."""

import pytest
from reelmesh.v1 import operator_service_pb2 as op

from control_plane.config import ControlPlaneConfig
from control_plane.errors import (
    BOUNDARY,
    NoGlobalStoreError,
    PermissionDeniedError,
    UnauthenticatedError,
    to_status,
)
from control_plane.operator import access
from control_plane.operator.access import ACCESS, Operator, Scope, UnlistedMethodError, require
from control_plane.operator.gate import SERVICE, guarded_service
from control_plane.operator.regions import RegionMethods
from control_plane.operator.service import OperatorService
from reelkit.settings import ConfigError, load_settings


def test_the_table_names_every_method_and_no_other():
    assert set(ACCESS) == {method.name for method in SERVICE.methods}


def test_whatever_changes_something_asks_for_more_than_looking():
    for method, scope in ACCESS.items():
        looks = method.startswith(("List", "Get"))
        assert (scope is Scope.OPERATE) == (not looks), method


def test_a_method_that_the_table_lacks_stops_the_listener(monkeypatch):
    shortened = {name: scope for name, scope in ACCESS.items() if name != "ListRegions"}
    monkeypatch.setattr(access, "ACCESS", shortened)
    with pytest.raises(UnlistedMethodError, match="ListRegions"):
        guarded_service(OperatorService.__new__(OperatorService), authenticator=None)


def test_a_scope_is_never_another():
    looker = Operator("x", frozenset({"fleet:read"}))
    require(looker, Scope.READ)
    for scopes in ({"fleet:read"}, {"fleet"}, {"fleet:operates"}, set()):
        with pytest.raises(PermissionDeniedError, match="fleet:operate"):
            require(Operator("x", frozenset(scopes)), Scope.OPERATE)


def test_the_status_of_a_refused_token_says_why():
    status = to_status(UnauthenticatedError("it has expired", cause="token_expired"))
    assert BOUNDARY[UnauthenticatedError].status.name == "UNAUTHENTICATED"
    assert any(b"token_expired" in detail.value for detail in status.details)


async def test_without_a_global_store_regions_are_not_known():
    methods = RegionMethods(None)
    for call in (
        methods.list_regions(op.OperatorServiceListRegionsRequest(), Operator("x", frozenset())),
        methods.set_region_policy(op.SetRegionPolicyRequest(), Operator("x", frozenset())),
    ):
        with pytest.raises(NoGlobalStoreError, match="no global store"):
            await call


def load(**operator):
    file = {"region": "ap", "operator": operator}
    return ControlPlaneConfig.model_validate(file)


AUTH = {"issuers": [{"issuer": "i", "audience": "a", "jwks_file": "keys.json"}]}
TLS = {"cert_file": "cert.pem", "key_file": "key.pem"}


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:7300", "[::1]:7300", "127.9.9.9:1"])
def test_plain_text_is_taken_on_loopback(listen):
    assert load(listen=listen, auth=AUTH).operator.listen == listen


@pytest.mark.parametrize("listen", ["0.0.0.0:7300", "10.0.0.7:7300", "[::]:7300", "ops.corp:1"])
def test_plain_text_is_refused_elsewhere(listen):
    with pytest.raises(ValueError, match=r"give tls\.cert_file and tls\.key_file, or listen on"):
        load(listen=listen, auth=AUTH)
    assert load(listen=listen, auth=AUTH, tls=TLS).operator.tls is not None


def test_a_listener_without_issuers_is_refused():
    with pytest.raises(ValueError, match=r"auth\.issuers is needed"):
        load(listen="127.0.0.1:0")


def test_the_check_of_the_configuration_says_it_in_one_line(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("region: ap\noperator: {listen: '0.0.0.0:7300'}\n")
    with pytest.raises(ConfigError, match=r"operator: Value error, auth\.issuers is needed"):
        load_settings(ControlPlaneConfig, file=file, env_prefix="X__", environ={})


def test_it_is_off_by_default():
    assert load().operator.listen is None
