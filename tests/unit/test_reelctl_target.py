"""Whom reelctl speaks to, and what it says where nobody is named."""

import json
from pathlib import Path

import pytest

from control_plane.reelctl.errors import UsageError
from control_plane.reelctl.target import Site, find_target, parse_endpoints

MESH = {
    "regions": {
        "ap": {
            "operator": "127.0.0.1:1",
            "control_planes": [
                {"id": "c0", "address": "127.0.0.1:9", "operator": "127.0.0.1:1"},
                {"id": "c1", "address": "127.0.0.1:8", "operator": "127.0.0.1:2"},
            ],
        },
        "eu": {"operator": "127.0.0.1:3"},
    },
    "tokens": {"user": "u", "operator": "the-operators"},
}
SITES = (Site("ap", ("127.0.0.1:1", "127.0.0.1:2")), Site("eu", ("127.0.0.1:3",)))


@pytest.fixture
def mesh(tmp_path):
    (tmp_path / "mesh.json").write_text(json.dumps(MESH))
    return tmp_path


def test_a_mesh_names_its_control_planes_and_a_token(mesh):
    for named in (mesh, mesh / "mesh.json"):
        target = find_target(mesh=named, environ={})
        assert target.sites == SITES
        assert target.token == "the-operators"


def test_a_mesh_with_certificates_names_its_authority(mesh):
    assert find_target(mesh=mesh, environ={}).ca is None
    (mesh / "mesh.json").write_text(json.dumps({**MESH, "ca": "/certs/ca.pem"}))
    assert find_target(mesh=mesh, environ={}).ca == Path("/certs/ca.pem")
    assert find_target(mesh=mesh, environ={"REELCTL_CA": "/own"}).ca == Path("/own")


def test_a_certificate_goes_with_its_key(mesh):
    named = {"REELCTL_CERT": "/c.pem", "REELCTL_CERT_KEY": "/k.pem"}
    target = find_target(mesh=mesh, environ=named)
    assert (target.cert, target.cert_key) == (Path("/c.pem"), Path("/k.pem"))
    with pytest.raises(UsageError, match="--cert and --cert-key"):
        find_target(mesh=mesh, cert=Path("/c.pem"), environ={})


def test_the_environment_names_a_mesh(mesh):
    assert find_target(environ={"REELMESH_STATE_DIR": str(mesh)}).sites == SITES


def test_the_mesh_below_this_folder_is_the_last_resort(mesh, monkeypatch):
    monkeypatch.chdir(mesh)
    with pytest.raises(UsageError, match=r"mesh-state/mesh\.json is not there"):
        find_target(environ={})
    (mesh / "mesh-state").mkdir()
    (mesh / "mesh.json").rename(mesh / "mesh-state" / "mesh.json")
    assert find_target(environ={}).sites == SITES


def test_an_endpoint_wins_over_a_mesh_of_the_environment(mesh):
    environ = {
        "REELMESH_STATE_DIR": str(mesh),
        "REELCTL_ENDPOINT": "ops.corp:7300",
        "REELCTL_TOKEN": "t",
        "REELCTL_CA": "/ca.pem",
    }
    target = find_target(environ=environ)
    assert target.sites == (Site("", ("ops.corp:7300",)),)
    assert (target.token, target.ca) == ("t", Path("/ca.pem"))
    # And what is typed wins over all of it.
    assert find_target(mesh=mesh, environ=environ).sites == SITES
    assert find_target(endpoint="h:1", token="x", environ=environ).token == "x"


def test_one_region_can_be_chosen(mesh):
    assert find_target(mesh=mesh, region="eu", environ={}).sites == SITES[1:]
    with pytest.raises(UsageError, match="no region 'us'") as raised:
        find_target(mesh=mesh, region="us", environ={})
    assert raised.value.hint == "of: ap, eu"


def test_several_endpoints_are_one_site_each_region():
    assert parse_endpoints("a:1, b:2") == (Site("", ("a:1", "b:2")),)
    assert parse_endpoints("ap=a:1,eu=b:2,ap=[::1]:3") == (
        Site("ap", ("a:1", "[::1]:3")),
        Site("eu", ("b:2",)),
    )


@pytest.mark.parametrize("text", ["host", "host:", ":1", "http://h:1", "h:0", "h:70000", ",", "x="])
def test_what_is_no_endpoint_is_refused(text):
    with pytest.raises(UsageError, match="endpoint"):
        parse_endpoints(text)


def test_two_ways_of_naming_one_thing_are_refused(mesh):
    with pytest.raises(UsageError, match="exclude one another"):
        find_target(endpoint="h:1", mesh=mesh, environ={})


def test_without_a_token_it_says_how_to_give_one():
    with pytest.raises(UsageError, match="no token") as raised:
        find_target(endpoint="h:1", environ={})
    assert "REELCTL_TOKEN" in raised.value.hint


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"regions": 3}', '{"regions": {"ap": 1}}'])
def test_what_is_no_mesh_file_is_told(tmp_path, text):
    (tmp_path / "mesh.json").write_text(text)
    with pytest.raises(UsageError, match=r"is no mesh\.json"):
        find_target(mesh=tmp_path, environ={})


def test_a_mesh_without_operators_is_told(tmp_path):
    (tmp_path / "mesh.json").write_text(json.dumps({"regions": {"ap": {"grpc": "h:1"}}}))
    with pytest.raises(UsageError, match="names no operators' address"):
        find_target(mesh=tmp_path, environ={})


def test_a_target_never_shows_its_token(mesh):
    assert "the-operators" not in repr(find_target(mesh=mesh, environ={}))
