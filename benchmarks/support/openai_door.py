"""OpenAI's video API in front of the instant node, as a proxy for that API finds a backend.

In the node's own process: what a proxy in front of it adds is compared with what a gateway
adds in front of the same one.
"""

from __future__ import annotations

import itertools

from aiohttp import web

_numbers = itertools.count()


def _video(video_id: str, status: str) -> web.Response:
    return web.json_response(
        {
            "id": video_id,
            "object": "video",
            "model": "instant",
            "status": status,
            "progress": 100 if status == "completed" else 0,
            "created_at": 1_700_000_000,
            "seconds": "4",
            "size": "1280x720",
        }
    )


async def _create(request: web.Request) -> web.Response:
    await request.read()
    return _video(f"video_{next(_numbers)}", "queued")


async def _get(request: web.Request) -> web.Response:
    return _video(request.match_info["video_id"], "completed")


async def serve() -> tuple[web.AppRunner, str]:
    """Listens on a free port; what to clean up, and the address."""
    app = web.Application()
    app.router.add_post("/v1/videos", _create)
    app.router.add_get("/v1/videos/{video_id}", _get)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"127.0.0.1:{runner.addresses[0][1]}"
