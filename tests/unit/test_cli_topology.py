import itertools

import pytest

from reelmesh_cli.errors import UsageError
from reelmesh_cli.mesh.keys import Tokens
from reelmesh_cli.mesh.mesh_file import WorkerEntry, mesh_document
from reelmesh_cli.mesh.node_health import NodeHealth
from reelmesh_cli.mesh.parts import plan_mesh
from reelmesh_cli.mesh.topology import MeshOptions, Programs, check_etcd, check_options


@pytest.fixture
def plan(tmp_path):
    options = MeshOptions(
        regions=("ap", "eu"),
        nodes_per_region=2,
        state_dir=tmp_path,
        model_source="/models/m",
        model_manifest="/models/m.manifest.json",
        threads=3,
    )
    programs = Programs(python="/bin/python", etcd="/bin/etcd")
    return plan_mesh(options, ports=itertools.count(20_000), programs=programs)


def test_each_region_has_its_parts(plan):
    assert [(each.role, each.id) for each in plan.processes] == [
        ("etcd", "etcd"),
        ("fork-server", "fork-server"),
        ("control-plane", "ap-control-0"),
        ("gateway", "ap-gateway-0"),
        ("node-agent", "ap-node-0"),
        ("node-agent", "ap-node-1"),
        ("control-plane", "eu-control-0"),
        ("gateway", "eu-gateway-0"),
        ("node-agent", "eu-node-0"),
        ("node-agent", "eu-node-1"),
    ]


def test_no_address_is_used_twice_and_each_finds_the_other(plan):
    addresses = [each.address for each in plan.processes]
    assert len(set(addresses)) == len(addresses)
    by_id = {each.id: each for each in plan.processes}
    for region in ("ap", "eu"):
        control = by_id[f"{region}-control-0"]
        gateway = by_id[f"{region}-gateway-0"]
        assert control.config["etcd"]["endpoints"] == list(plan.etcd_urls)
        assert gateway.config["control_plane"]["endpoints"] == [control.address]
        for number in (0, 1):
            node = by_id[f"{region}-node-{number}"]
            assert node.config["control_planes"] == [control.address]
            assert node.config["model"]["source"] == "/models/m"
            assert node.config["model"]["manifest"] == "/models/m.manifest.json"
            assert node.config["workers"]["threads"] == 3
        assert plan.regions[region].grpc == gateway.address
        assert plan.regions[region].http == f"http://{gateway.config['http']['listen']}"


def test_the_plan_is_what_the_parts_accept(plan):
    """Each part's own configuration model reads its file: no field drifts apart."""
    from control_plane.config import ControlPlaneConfig
    from gateway.config import GatewayConfig
    from node_agent.config import NodeConfig

    models = {
        "control-plane": ControlPlaneConfig,
        "gateway": GatewayConfig,
        "node-agent": NodeConfig,
    }
    for each in plan.processes:
        if each.config is not None:
            read = models[each.role].model_validate(each.config)
            assert read.ready_file == each.ready_file
            assert each.argv[-2:] == ("--config", str(each.config_file))


def test_a_regions_gateways_share_their_artifacts(plan, tmp_path):
    gateways = plan.of_role("gateway")
    assert [each.config["artifacts"]["url"] for each in gateways] == [
        str(tmp_path / "artifacts" / "ap"),
        str(tmp_path / "artifacts" / "eu"),
    ]


@pytest.mark.parametrize(
    ("regions", "nodes", "named"),
    [
        ("", 1, "names no region"),
        (" , ", 1, "names no region"),
        ("ap,AP", 1, "'AP'"),
        ("ap,a_p", 1, "'a_p'"),
        ("-ap", 1, "'-ap'"),
        ("ap,ap", 1, "twice"),
        ("ap", 0, "1 to 64"),
        ("ap", 65, "1 to 64"),
    ],
)
def test_options_that_cannot_be_are_refused(regions, nodes, named):
    with pytest.raises(UsageError, match=named):
        check_options(regions, nodes)


def test_replicas_and_separate_etcds_find_one_another(tmp_path):
    options = MeshOptions(
        regions=("ap", "eu"),
        nodes_per_region=1,
        gateways_per_region=2,
        control_planes_per_region=2,
        etcd="separate",
        etcd_members={"global": 3},
        state_dir=tmp_path,
        model_source="/models/m",
        threads=1,
    )
    programs = Programs(python="/bin/python", etcd="/bin/etcd")
    plan = plan_mesh(options, ports=itertools.count(20_000), programs=programs)
    etcds = [(each.id, each.region) for each in plan.of_role("etcd")]
    assert etcds == [
        ("global-etcd-0", None),
        ("global-etcd-1", None),
        ("global-etcd-2", None),
        ("ap-etcd-0", "ap"),
        ("eu-etcd-0", "eu"),
    ]
    initial = {each.argv[7] for each in plan.of_role("etcd")[:3]}
    assert len(initial) == 1, "the members of a cluster agree on who they are"
    assert initial.pop().count("http://") == 3
    by_id = {each.id: each for each in plan.processes}
    for region in ("ap", "eu"):
        controls = [by_id[f"{region}-control-{number}"] for number in (0, 1)]
        own = f"http://{by_id[f'{region}-etcd-0'].address}"
        assert plan.regions[region].etcd == (own,)
        assert all(each.config["etcd"]["endpoints"] == [own] for each in controls)
        addresses = [each.address for each in controls]
        for number in (0, 1):
            gateway = by_id[f"{region}-gateway-{number}"]
            assert gateway.config["control_plane"]["endpoints"] == addresses
            assert plan.regions[region].gateways[number]["grpc"] == gateway.address
        assert by_id[f"{region}-node-0"].config["control_planes"] == addresses
    addresses = [each.address for each in plan.processes]
    assert len(set(addresses)) == len(addresses)


@pytest.mark.parametrize(
    ("layout", "members", "found"),
    [
        ("shared", "", {}),
        ("shared", "3", {"global": 3}),
        ("separate", "3", {"global": 3, "ap": 3}),
        ("separate", "1, global=3", {"global": 3, "ap": 1}),
    ],
)
def test_etcd_members_are_read(layout, members, found):
    assert check_etcd(layout, members, regions=("ap",)) == found


@pytest.mark.parametrize(
    ("layout", "members", "named"),
    [
        ("both", "", "'both'"),
        ("shared", "ap=3", "no etcd 'ap'"),
        ("separate", "ap=2", "1, 3 or 5"),
        ("separate", "many", "'many'"),
    ],
)
def test_etcds_that_cannot_be_are_refused(layout, members, named):
    with pytest.raises(UsageError, match=named):
        check_etcd(layout, members, regions=("ap",))


def test_regions_are_read():
    assert check_options("ap, eu-west-1 ,", 1) == ("ap", "eu-west-1")


def test_the_mesh_file_has_the_promised_shape(plan):
    pids = {"etcd": 1, "ap-node-0": 2, "ap-gateway-0": 3}
    workers = {"ap-node-0": [WorkerEntry("ap-node-0/worker-0", 9)], "ap-node-1": []}
    document = mesh_document(plan, pids=pids, workers=workers, tokens=Tokens("u", "o"))
    assert list(document) == ["regions", "processes", "etcd", "tokens", "ca"]
    assert document["tokens"] == {"user": "u", "operator": "o"}
    assert document["etcd"] == list(plan.etcd_urls)
    assert document["ca"] is None
    region = document["regions"]["ap"]
    assert {"http", "grpc", "control_plane"} <= set(region)
    assert region["gateways"][0]["grpc"] == region["grpc"]
    assert region["gateways"][0]["http"] == region["http"]
    assert region["control_planes"][0]["address"] == region["control_plane"]
    rows = [(p["role"], p["region"], p["id"], p["pid"]) for p in document["processes"]]
    # Only what lives is listed, and a worker after its agent.
    assert rows == [
        ("etcd", None, "etcd", 1),
        ("gateway", "ap", "ap-gateway-0", 3),
        ("node-agent", "ap", "ap-node-0", 2),
        ("worker", "ap", "ap-node-0/worker-0", 9),
    ]
    agent, worker = document["processes"][2:]
    assert worker["address"] == agent["address"]
    assert worker["log"] == agent["log"] == "logs/ap-node-0.log"


def test_tokens_are_in_no_representation():
    assert "secret" not in repr(Tokens("secret-user", "secret-operator"))


def test_a_node_is_given_up_when_it_was_unhealthy_too_often_or_too_long():
    health = NodeHealth()
    for times in range(1, 4):
        health = health.seen(ready=False, unhealthy=True, now_s=1.0)
        # The same status again is not another failure.
        health = health.seen(ready=False, unhealthy=True, now_s=1.0)
        assert health.hopeless(now_s=1.0) == (times == 3)
        assert health.hopeless(now_s=11.5)
        health = health.seen(ready=False, unhealthy=False, now_s=1.0)
        assert not health.hopeless(now_s=99.0), "it is loading again: wait for what becomes of it"
    health = health.seen(ready=True, unhealthy=False, now_s=2.0)
    assert health.ready
    health = health.seen(ready=False, unhealthy=True, now_s=50.0)
    assert not health.hopeless(now_s=59.0)


@pytest.fixture
def tls_plan(tmp_path):
    options = MeshOptions(
        regions=("ap", "eu"),
        nodes_per_region=1,
        etcd="separate",
        state_dir=tmp_path,
        model_source="/models/m",
        threads=3,
        tls=True,
    )
    programs = Programs(python="/bin/python", etcd="/bin/etcd")
    return plan_mesh(options, ports=itertools.count(20_000), programs=programs)


def test_without_tls_nothing_is_issued(plan):
    assert plan.certificates == ()
    assert plan.ca is None
    assert all(each.called_with is None for each in plan.processes)
    assert not any("mtls" in (each.config or {}) for each in plan.processes)


def test_with_tls_each_part_has_a_certificate_of_its_own(tls_plan):
    files = [each.files for each in tls_plan.certificates]
    assert len({each.cert for each in files}) == len(files)
    assert len({each.key for each in files}) == len(files)
    issued = {str(each.files.cert): each for each in tls_plan.certificates}
    named = {}
    for process in tls_plan.processes:
        if process.config is None:
            continue
        shown = issued[process.config["mtls"]["cert_file"]]
        assert shown.authority == "mesh"
        named[process.id] = shown.wanted.identity.uri
    assert named == {
        f"{region}-{part}-0": f"spiffe://reelmesh/{region}/{role}/{region}-{part}-0"
        for region in ("ap", "eu")
        for part, role in (("control", "control-plane"), ("gateway", "gateway"), ("node", "node"))
    }


def test_with_tls_each_etcd_lets_in_its_own_control_planes_alone(tls_plan):
    issued = {str(each.files.cert): each for each in tls_plan.certificates}
    for process in tls_plan.of_role("etcd"):
        assert "--client-cert-auth" in process.argv
        assert "--peer-client-cert-auth" in process.argv
        assert not any("http://" in flag for flag in process.argv)
    for region in ("ap", "eu"):
        config = next(
            each for each in tls_plan.processes if each.id == f"{region}-control-0"
        ).config
        for section, cluster in (("etcd", region), ("global_etcd", "global")):
            shown = issued[config[section]["cert"]]
            assert shown.authority == f"etcd-{cluster}"
            assert not shown.wanted.server
            assert all(url.startswith("https://") for url in config[section]["endpoints"])


def test_with_tls_what_the_public_calls_is_of_another_authority(tls_plan):
    issued = {str(each.files.cert): each for each in tls_plan.certificates}
    for process in tls_plan.of_role("gateway", "control-plane"):
        section = process.config if process.role == "gateway" else process.config["operator"]
        shown = issued[section["tls"]["cert_file"]]
        assert shown.authority == "public"
        assert shown.wanted.identity is None
        assert not shown.wanted.client
    tokens = Tokens(user="u", operator="o")
    document = mesh_document(tls_plan, pids={}, workers={}, tokens=tokens)
    assert document["ca"] == str(tls_plan.ca)
    assert document["regions"]["ap"]["http"].startswith("https://")
