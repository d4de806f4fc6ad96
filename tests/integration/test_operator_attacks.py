"""The forged tokens at the operators' listener, whose callers can change a whole mesh."""

import asyncio

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from reelmesh.v1 import operator_service_pb2

from control_plane.operator.access import ACCESS
from control_plane.store.memory import MemoryStore
from reelkit.clock import SystemClock
from tests.support.forgeries import FORGERIES
from tests.support.operators import OPERATE, READ, operated

pytestmark = pytest.mark.timeout(90)

SERVICE = operator_service_pb2.DESCRIPTOR.services_by_name["OperatorService"]


@pytest.fixture
async def operators(tmp_path):
    async with (
        MemoryStore(clock=SystemClock()) as store,
        operated(tmp_path, store=store) as (_app, client),
        asyncio.timeout(60),
    ):
        yield client


async def refusal(client, method, token):
    """(status, reason)"""
    request = GetMessageClass(SERVICE.methods_by_name[method].input_type)()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await client.call(method, request, token=token)
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(raised.value)
    for detail in status.details if status is not None else ():
        detail.Unpack(info)
    return raised.value.code(), info.reason


async def test_no_forgery_lets_an_operator_in(operators):
    for attack in FORGERIES:
        token = attack.make(operators.issuer)
        if token:
            told = await refusal(operators, "ListTenants", token)
            assert told == (grpc.StatusCode.UNAUTHENTICATED, attack.code), attack.name


@pytest.mark.parametrize("method", sorted(ACCESS))
async def test_a_users_token_is_no_operators(operators, method):
    # Signed by the same issuer, for the same audience, with every scope that users have.
    scope = "video:generate video:read" + (f" {READ}" if ACCESS[method] == OPERATE else "")
    token = operators.issuer.issue(scope=scope)
    told = await refusal(operators, method, token)
    assert told[0] is grpc.StatusCode.PERMISSION_DENIED
    assert {each.name for each in SERVICE.methods} == ACCESS.keys()
