"""The OpenAPI document says what the server does, and the page shows it."""

import asyncio

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from openapi_spec_validator import validate
from schemathesis.specs.openapi.checks import positive_data_acceptance

from gateway.auth.access import ACCESS
from gateway.auth.config import StrangerConfig
from gateway.edge_http.fields import FIELDS
from tests.support.edges import serve_edges


@pytest.fixture
async def edges(tmp_path):
    # One address asks for everything here, and often without a token.
    strangers = StrangerConfig(burst=100_000)
    async with serve_edges(tmp_path, strangers=strangers) as found, asyncio.timeout(60):
        yield found


async def document_of(edges):
    async with edges.http.get("/openapi.json") as answer:
        assert (answer.status, answer.content_type) == (200, "application/json")
        return await answer.json()


def checker(document, name):
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    return jsonschema.Draft202012Validator(schema)


async def test_it_is_a_document_that_tools_take_and_names_every_route(edges):
    document = await document_of(edges)
    validate(document)
    named = {f"{m.upper()} {path}" for path, item in document["paths"].items() for m in item}
    assert named == {endpoint for endpoint in ACCESS if " " in endpoint}
    ids = [o["operationId"] for item in document["paths"].values() for o in item.values()]
    assert len(ids) == len(set(ids))


async def test_every_operation_names_its_scope_and_the_open_ones_have_none(edges):
    document = await document_of(edges)
    for path, item in document["paths"].items():
        for method, operation in item.items():
            scope = ACCESS[f"{method.upper()} {path}"]
            wanted = [] if scope is None else [{"bearer": [scope.value]}]
            assert operation["security"] == wanted, path


async def test_every_field_of_a_create_is_told(edges):
    schema = (await document_of(edges))["components"]["schemas"]["CreateVideo"]
    assert schema["properties"].keys() == FIELDS.keys()
    assert all(each["description"] for each in schema["properties"].values())


async def test_what_is_answered_is_what_is_described(edges):
    document = await document_of(edges)
    headers = edges.bearer()

    async def answer(method, path, name, status=200, **more):
        async with edges.http.request(method, path, headers=headers, **more) as got:
            assert got.status == status, await got.text()
            body = await got.json()
        checker(document, name).validate(body)
        return body

    made = await answer("POST", "/v1/videos", "Video", json={"prompt": "a ball"})
    await answer("GET", f"/v1/videos/{made['id']}", "Video")
    await answer("GET", "/v1/videos", "VideoList")
    models = await answer("GET", "/v1/models", "ModelList")
    await answer("GET", f"/v1/models/{models['data'][0]['id']}", "Model")
    await answer("GET", "/v1/regions", "RegionList")
    batch = await answer("POST", "/v1/batches", "Batch", json={"items": [{"prompt": "a ball"}]})
    path = f"/v1/batches/{batch['id']}"
    await answer("GET", "/v1/batches", "BatchList")
    while (await answer("GET", path, "Batch"))["status"] != "completed":  # noqa: ASYNC110 - of a server
        await asyncio.sleep(0.02)
    await answer("GET", f"{path}/items", "BatchItemList")
    await answer("GET", f"{path}/results", "BatchResults")
    await answer("POST", f"{path}/cancel", "Batch")
    await answer("DELETE", path, "DeletedBatch")
    await answer("POST", f"/v1/videos/{made['id']}/cancel", "Video")
    await answer("DELETE", f"/v1/videos/{made['id']}", "DeletedVideo")
    await answer("GET", "/healthz", "State")
    await answer("GET", "/v1/videos/none", "Problem", status=404)
    await answer("GET", "/nowhere", "Problem", status=404)
    await answer("POST", "/v1/videos", "Problem", status=400, json={"promt": "x", "width": -1})
    headers = {}
    await answer("GET", "/v1/videos", "Problem", status=401)


async def test_the_page_shows_everything_and_fetches_nothing(edges):
    document = await document_of(edges)
    async with edges.http.get("/docs") as answer:
        assert (answer.status, answer.content_type) == (200, "text/html")
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        text = await answer.text()
    for item in document["paths"].values():
        for operation in item.values():
            assert f'id="{operation["operationId"]}"' in text
    for name in FIELDS:
        assert f"<td>{name}" in text
    for fetched in ("src=", "url(", "@import", "<script", "<link"):
        assert fetched not in text


# What a model allows is in no schema, and what is wrong with a wrong value is ours to say.
NOT_IN_A_SCHEMA = [positive_data_acceptance]
# The streams never end by themselves, and the others are about this process.
_LEFT_OUT = r"/events$|^/metrics|^/docs|^/openapi"


@pytest.mark.timeout(120)
async def test_whatever_the_document_allows_is_answered_as_it_says(edges):
    document = await document_of(edges)
    schema = schemathesis.openapi.from_dict(document)
    token = edges.issuer.issue()
    operations = [f.ok() for f in schema.exclude(path_regex=_LEFT_OUT).get_all_operations()]
    for operation in operations:
        body = {"prompt": "a ball"}
        async with edges.http.post("/v1/videos", json=body, headers=edges.bearer()) as answer:
            known = (await answer.json())["id"]
        await asyncio.to_thread(_explore, operation.as_strategy(), edges.http_url, token, {})
        if "{video_id}" in operation.path:
            # And of a video that there is.
            names = {"video_id": known}
            await asyncio.to_thread(_explore, operation.as_strategy(), edges.http_url, token, names)


def _explore(strategy, url, token, names):
    @settings(
        max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(case=strategy)
    def one(case):
        case.path_parameters.update(names)
        response = case.call(base_url=url, headers={"Authorization": f"Bearer {token}"})
        assert response.status_code < 500 or response.status_code == 503
        case.validate_response(response, excluded_checks=NOT_IN_A_SCHEMA)

    one()
