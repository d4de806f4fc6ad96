import json

import pytest

from wan_t2v_sdk import ConfigurationError
from wan_t2v_sdk.config import Endpoint, parse_endpoint, read_mesh, resolve_access

ENVIRONMENT = {"REELMESH_ENDPOINTS": "ap=127.0.0.1:1, eu=127.0.0.1:2", "REELMESH_TOKEN": "t"}


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("127.0.0.1:50051", Endpoint("127.0.0.1:50051", None, tls=False)),
        ("localhost:50051", Endpoint("localhost:50051", None, tls=False)),
        ("[::1]:50051", Endpoint("[::1]:50051", None, tls=False)),
        ("ap=127.0.0.1:1", Endpoint("127.0.0.1:1", "ap", tls=False)),
        ("eu = gateway.example:443", Endpoint("gateway.example:443", "eu", tls=True)),
        ("grpc://gateway.example:80", Endpoint("gateway.example:80", None, tls=False)),
        ("eu=grpcs://127.0.0.1:1", Endpoint("127.0.0.1:1", "eu", tls=True)),
        ("https://gateway.example:443/", Endpoint("gateway.example:443", None, tls=True)),
    ],
)
def test_endpoints_are_read(text, endpoint):
    assert parse_endpoint(text) == endpoint


@pytest.mark.parametrize("text", ["host", "host:", ":1", "host:0", "host:70000", "ftp://host:1"])
def test_a_bad_endpoint_is_named(text):
    with pytest.raises(ConfigurationError, match="endpoint"):
        parse_endpoint(text)


def test_arguments_win_over_the_environment():
    access = resolve_access(endpoints=None, token=None, ca=None, environ=ENVIRONMENT)
    assert [each.region for each in access.endpoints] == ["ap", "eu"]
    assert access.token == "t"
    access = resolve_access(endpoints=["h:3"], token="mine", ca=None, environ=ENVIRONMENT)
    assert [each.address for each in access.endpoints] == ["h:3"]
    assert access.token == "mine"


def test_the_token_is_in_no_representation():
    access = resolve_access(endpoints="h:1", token="secret-token", ca=None, environ={})
    assert "secret" not in repr(access)


@pytest.mark.parametrize("missing", ["REELMESH_ENDPOINTS", "REELMESH_TOKEN"])
def test_what_is_missing_is_said_with_the_way_to_give_it(missing):
    environ = {**ENVIRONMENT, missing: " "}
    with pytest.raises(ConfigurationError, match=missing):
        resolve_access(endpoints=None, token=None, ca=None, environ=environ)


def test_a_ca_turns_tls_on_everywhere(tmp_path):
    ca = tmp_path / "ca.pem"
    ca.write_bytes(b"pem")
    access = resolve_access(endpoints="127.0.0.1:1", token="t", ca=ca, environ={})
    assert access.endpoints[0].tls
    assert access.ca_pem == b"pem"
    with pytest.raises(ConfigurationError, match=r"none\.pem"):
        resolve_access(endpoints="h:1", token="t", ca=tmp_path / "none.pem", environ={})


def test_a_mesh_file_names_regions_and_the_users_token(tmp_path):
    file = tmp_path / "mesh.json"
    regions = {"ap": {"grpc": "127.0.0.1:1"}, "eu": {"grpc": "127.0.0.1:2"}}
    file.write_text(json.dumps({"regions": regions, "tokens": {"user": "u"}, "ca": None}))
    access = read_mesh(file)
    assert [str(each) for each in access.endpoints] == ["ap=127.0.0.1:1", "eu=127.0.0.1:2"]
    assert access.token == "u"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"regions": {"ap": {}}}'])
def test_what_is_no_mesh_file_is_said(tmp_path, content):
    file = tmp_path / "mesh.json"
    file.write_text(content)
    with pytest.raises(ConfigurationError, match=r"no mesh\.json"):
        read_mesh(file)
    with pytest.raises(ConfigurationError, match="reelmesh up"):
        read_mesh(tmp_path / "absent.json")
