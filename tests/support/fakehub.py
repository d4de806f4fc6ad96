"""A small server of the Hugging Face Hub's protocol, over real repository folders.

It answers as the Hub does to an unauthenticated or authenticated download: model
information, paged trees, ``resolve`` with commit and ETag headers, large files by
redirect to a content server, range requests, and the Hub's error codes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web

# The Hub keeps these by their sha256, apart from git.
_LFS_SUFFIXES = (".safetensors", ".bin")
_TREE_PAGE = 4


@dataclass(frozen=True)
class _Blob:
    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()  # noqa: S324


@dataclass
class FakeHub:
    """Serves on a free port of the loopback while it is entered."""

    token: str | None = None
    """The only one accepted; None: no token is asked for."""
    asked: list[str] = field(default_factory=list)
    """Method, path and range of each request."""
    tokens: set[str] = field(default_factory=set)
    """What came as Authorization."""
    tamper: Callable[[str, bytes], bytes] | None = None
    """Changes what is sent of a file, as a broken cache on the way would."""
    _commits: dict[tuple[str, str], dict[str, _Blob]] = field(default_factory=dict)
    _revisions: dict[tuple[str, str], str] = field(default_factory=dict)
    _runner: web.AppRunner | None = None
    port: int = 0

    @property
    def address(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self.port}"

    def add(self, name: str, folder: Path, revision: str = "main") -> str:
        """Commits a folder to a repository's branch or tag; returns the commit."""
        files = {
            path.relative_to(folder).as_posix(): _Blob(
                path.read_bytes(), path.suffix in _LFS_SUFFIXES
            )
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        text = "".join(f"{path} {blob.sha256}\n" for path, blob in files.items())
        commit = hashlib.sha1(text.encode()).hexdigest()  # noqa: S324 - as git's ids look
        self._commits[name, commit] = files
        self._revisions[name, commit] = self._revisions[name, revision] = commit
        return commit

    def files_asked(self) -> set[str]:
        """Paths of the files whose content was asked for."""
        gets = [line.split()[1] for line in self.asked if line.startswith("GET")]
        return {path.split("/", 5)[5] for path in gets if "/resolve/" in path} | {
            path.split("/", 3)[3] for path in gets if path.startswith("/content/")
        }

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[self._gate])
        model = "/api/models/{owner}/{repo}"
        app.router.add_get(model, self._info)
        app.router.add_get(model + "/revision/{revision}", self._info)
        app.router.add_get(model + "/tree/{revision}", self._tree)
        app.router.add_get("/{owner}/{repo}/resolve/{revision}/{path:.+}", self._resolve)
        app.router.add_get("/content/{commit}/{path:.+}", self._content)
        self._runner = web.AppRunner(app, shutdown_timeout=0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    @web.middleware
    async def _gate(self, request: web.Request, handler: Any) -> web.StreamResponse:
        reach = request.headers.get("Range", "")
        self.asked.append(f"{request.method} {request.path} {reach}".strip())
        authorization = request.headers.get("Authorization", "")
        if authorization:
            self.tokens.add(authorization.removeprefix("Bearer "))
        content = request.path.startswith("/content/")
        # A token is for the Hub alone.
        assert not (content and authorization)
        if self.token is not None and not content and authorization != f"Bearer {self.token}":
            # The Hub tells strangers nothing: what is private looks like what is missing.
            if authorization:
                message = "Invalid credentials in Authorization header"
                raise _refusal(web.HTTPUnauthorized, "", message)
            raise _refusal(web.HTTPUnauthorized, "RepoNotFound", "Repository not found")
        return await handler(request)

    def _files(self, request: web.Request) -> tuple[str, dict[str, _Blob]]:
        name = f"{request.match_info['owner']}/{request.match_info['repo']}"
        if (name, "main") not in self._revisions:
            raise _refusal(web.HTTPNotFound, "RepoNotFound", "Repository not found")
        commit = self._revisions.get((name, request.match_info.get("revision", "main")))
        if commit is None:
            raise _refusal(web.HTTPNotFound, "RevisionNotFound", "Invalid rev id")
        return commit, self._commits[name, commit]

    async def _info(self, request: web.Request) -> web.Response:
        commit, files = self._files(request)
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in files]
        if "blobs" in request.query:
            for sibling, blob in zip(siblings, files.values(), strict=True):
                sibling.update(size=len(blob.data), blobId=blob.oid)
                if blob.lfs:
                    lfs = {"sha256": blob.sha256, "size": len(blob.data), "pointerSize": 134}
                    sibling["lfs"] = lfs
        name = f"{request.match_info['owner']}/{request.match_info['repo']}"
        return web.json_response({"id": name, "sha": commit, "siblings": siblings})

    async def _tree(self, request: web.Request) -> web.Response:
        _, files = self._files(request)
        entries = []
        for path, blob in files.items():
            entry: dict[str, Any] = {
                "type": "file",
                "oid": blob.oid,
                "size": len(blob.data),
                "path": path,
            }
            if blob.lfs:
                entry["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": 134}
            entries.append(entry)
        begin = int(request.query.get("cursor", 0))
        page = entries[begin : begin + _TREE_PAGE]
        headers = {}
        if begin + _TREE_PAGE < len(entries):
            following = request.url.update_query(cursor=str(begin + _TREE_PAGE))
            headers["Link"] = f'<{following}>; rel="next"'
        return web.json_response(page, headers=headers)

    async def _resolve(self, request: web.Request) -> web.StreamResponse:
        commit, files = self._files(request)
        path = request.match_info["path"]
        if path not in files:
            raise _refusal(web.HTTPNotFound, "EntryNotFound", "Entry not found")
        blob = files[path]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob.oid}"'}
        if not blob.lfs:
            return self._send(request, path, blob, headers)
        headers["X-Linked-Etag"] = f'"{blob.sha256}"'
        headers["X-Linked-Size"] = str(len(blob.data))
        # Another host, as the Hub's content server is; the same port, so that a proxy sees it.
        location = request.url.with_host("localhost").with_path(f"/content/{commit}/{path}")
        headers["Location"] = str(location)
        return web.Response(status=302, headers=headers)

    async def _content(self, request: web.Request) -> web.StreamResponse:
        commit, path = request.match_info["commit"], request.match_info["path"]
        blob = next(files[path] for (_, id_), files in self._commits.items() if id_ == commit)
        return self._send(request, path, blob, {"ETag": f'"{blob.sha256}"'})

    def _send(
        self, request: web.Request, path: str, blob: _Blob, headers: dict[str, str]
    ) -> web.Response:
        data = self.tamper(path, blob.data) if self.tamper is not None else blob.data
        headers["Accept-Ranges"] = "bytes"
        if "Range" not in request.headers:
            return web.Response(body=data, headers=headers)
        begin = request.http_range.start or 0
        end = min(request.http_range.stop or len(data), len(data))
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
        return web.Response(status=206, body=data[begin:end], headers=headers)


def _refusal(kind: type[web.HTTPException], code: str, message: str) -> web.HTTPException:
    headers = {"X-Error-Message": message}
    if code:
        headers["X-Error-Code"] = code
    return kind(headers=headers, text=f'{{"error": "{message}"}}', content_type="application/json")
