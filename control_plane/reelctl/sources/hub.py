"""A repository of the Hugging Face Hub, at one commit; files are read as from any web server."""

from __future__ import annotations

from typing import Any, Final

from control_plane.reelctl.errors import CtlError, UsageError
from control_plane.reelctl.sources.origin import MAX_FILES, SourceFile, StoreOrigin, open_store
from reelkit.extras import needs_extra

SCHEME: Final = "hf://"
_TIMEOUT_S: Final = 30.0


class HubOrigin(StoreOrigin):
    """What the Hub says of large files' sha256 is taken: it keeps them by it.

    The files that nodes fetch are checked against it byte by byte, and so does
    ``model verify``, which reads them all.
    """

    def __init__(self, source: str) -> None:
        with needs_extra("hub", program="reelctl model", parts="a reader of the Hub"):
            import huggingface_hub
            import huggingface_hub.constants
        name, _, revision = source.removeprefix(SCHEME).partition("@")
        if name.count("/") != 1:
            raise UsageError(f"{source}: write {SCHEME}org/name or {SCHEME}org/name@revision")
        api: Any = huggingface_hub.HfApi()
        try:
            self._info = api.model_info(
                name, revision=revision or None, files_metadata=True, timeout=_TIMEOUT_S
            )
        # Which errors these are depends on the library's version and its HTTP client's.
        except Exception as error:  # noqa: BLE001 - told, with what it says, and the command ends
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CtlError(
                f"{source}: {said}",
                hint="check the name, HF_TOKEN for what is private, HF_ENDPOINT for a mirror",
            ) from None
        commit = str(self._info.sha)
        endpoint: str = huggingface_hub.constants.ENDPOINT
        options: dict[str, Any] = {"allow_http": str(endpoint.startswith("http://")).lower()}
        token = huggingface_hub.get_token()
        if token:
            # Dropped by the client where it is sent on to another host.
            options["default_headers"] = {"authorization": f"Bearer {token}"}
        store = open_store(f"{endpoint}/{name}/resolve/{commit}", client_options=options)
        # A branch moves on; what is registered does not.
        super().__init__(f"{SCHEME}{name}@{commit}", store, lists=False)

    def files(self) -> list[SourceFile] | None:
        """See :class:`~control_plane.reelctl.sources.origin.Origin`."""
        found = [
            SourceFile(each.rfilename, each.size or 0, each.lfs.sha256 if each.lfs else None)
            for each in self._info.siblings or ()
        ]
        if len(found) > MAX_FILES:
            raise CtlError(f"{self.url}: holds more than {MAX_FILES} files")
        return sorted(found, key=lambda each: each.path)

    def size(self, path: str) -> int | None:
        """See :class:`~control_plane.reelctl.sources.origin.Origin`."""
        sizes = {each.path: each.size_bytes for each in self.files() or ()}
        return sizes.get(path)

    def put(self, path: str, data: bytes) -> None:
        """See :class:`~control_plane.reelctl.sources.origin.Origin`; nothing is written there."""
        raise CtlError(
            f"{self.url}/{path}: {len(data)} bytes of manifest do not fit into the registry, and "
            "are not written to the Hub",
            hint="commit that file to the repository, or register a copy of it elsewhere",
        )
