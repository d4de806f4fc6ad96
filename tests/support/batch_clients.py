"""A client of batches over HTTP, for tests of one gateway or several."""

import asyncio
import json

import aiohttp

QUICK = {"batches": {"checkpoint_s": 0.05}}


class BatchClient:
    """Speaks HTTP to one gateway."""

    def __init__(self, region, member, *, tenant="acme"):
        self._base = f"http://{member.app.http_address}"
        self._headers = {"Authorization": f"Bearer {region.issuer.issue(tenant=tenant)}"}

    async def ask(self, method, path, *, status=200, headers=None, **more):
        headers = {**self._headers, **(headers or {})}
        async with (
            aiohttp.ClientSession() as http,
            http.request(method, self._base + path, headers=headers, **more) as answer,
        ):
            body = await answer.read()
            allowed = status if isinstance(status, tuple) else (status,)
            assert answer.status in allowed, body
        return json.loads(body) if answer.content_type.endswith("json") else body

    async def submit(self, body, *, status=200, key=None):
        headers = {"Idempotency-Key": key} if key else {}
        return await self.ask("POST", "/v1/batches", json=body, status=status, headers=headers)

    async def get(self, batch_id):
        return await self.ask("GET", f"/v1/batches/{batch_id}")

    async def items(self, batch_id, query=""):
        return (await self.ask("GET", f"/v1/batches/{batch_id}/items{query}"))["data"]

    async def until(self, batch_id, holds):
        async with asyncio.timeout(30):
            while True:
                path = f"/v1/batches/{batch_id}"
                batch = await self.ask("GET", path, status=(200, 503))
                # A problem's status is a number: the records may be away for a moment.
                if batch["status"] != 503 and holds(batch):
                    return batch
                await asyncio.sleep(0.02)

    async def until_ended(self, batch_id):
        ended = ("completed", "failed", "cancelled", "expired")
        return await self.until(batch_id, lambda batch: batch["status"] in ended)


def rows(count, **more):
    return {
        "template": "a {color} {product} spins",
        "rows": [
            {"color": "red", "product": f"cup {n}", "custom_id": f"c{n}"} for n in range(count)
        ],
        **more,
    }


def counts(batch):
    return {name: n for name, n in batch["counts"].items() if n}
