"""Between hosts the parts' configurations want certificates, or a word that they do without."""

import pytest
from pydantic import ValidationError

from control_plane.config import ControlPlaneConfig
from gateway.config import GatewayConfig
from node_agent.config import NodeConfig

MTLS = {"ca_file": "ca.pem", "cert_file": "cert.pem", "key_file": "key.pem"}
AUTH = {"issuers": [{"issuer": "i", "audience": "a", "jwks_file": "k.json"}]}


def gateway(**changes):
    fields = {"region": "ap", "auth": AUTH, "control_plane": {"endpoints": ["127.0.0.1:1"]}}
    return GatewayConfig.model_validate({**fields, **changes})


def node(**changes):
    fields = {"node_id": "n1", "region": "ap", "model": {"source": "x"}}
    return NodeConfig.model_validate({**fields, **changes})


def control(**changes):
    return ControlPlaneConfig.model_validate({"region": "ap", **changes})


CASES = [
    (gateway, {"peer": {"listen": "0.0.0.0:7001"}}, "peer.listen"),
    (gateway, {"control_plane": {"endpoints": ["control:7200"]}}, "control_plane.endpoints"),
    (node, {"listen": "10.0.0.7:7100"}, "listen"),
    (node, {"control_planes": ["control:7200"]}, "control_planes"),
    (control, {"listen": "[::]:7200"}, "listen"),
    (control, {"etcd": {"endpoints": ["http://etcd:2379"]}}, "etcd.endpoints"),
    (control, {"global_etcd": {"endpoints": ["http://etcd:2379"]}}, "global_etcd.endpoints"),
]


@pytest.mark.parametrize(("make", "changes", "field"), CASES)
def test_plain_text_between_hosts_is_refused(make, changes, field):
    make()
    with pytest.raises(ValidationError, match=rf"{field} .*allow_plaintext: true"):
        make(**changes)
    make(**changes, allow_plaintext=True)
    if "etcd" not in field:
        make(**changes, mtls=MTLS)
    else:
        with pytest.raises(ValidationError, match="by https"):
            make(**changes, mtls=MTLS)


def test_etcd_between_hosts_is_spoken_to_by_tls():
    control(etcd={"endpoints": ["https://etcd:2379"]})


def test_the_public_edge_may_be_plain_for_a_proxy_in_front():
    gateway(grpc={"listen": "0.0.0.0:7000"}, http={"listen": "0.0.0.0:8000"})
