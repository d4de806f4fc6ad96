"""``batch.json`` beside the results: which batch of the mesh makes which rows."""

from __future__ import annotations

import contextlib
import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from reelkit.files import write_json_atomic
from reelmesh_cli.errors import UsageError

STATE_FILE = "batch.json"


@dataclass(frozen=True, slots=True)
class Submitted:
    """A batch that was, or was about to be, submitted."""

    key: str
    """The submission's idempotency key: sent again, it is the same batch."""
    rows: tuple[str, ...]
    """The rows' digests, in the order of the batch's items."""
    batch_id: str = ""
    """Empty where the answer to the submission was not seen."""


class BatchState:
    """The newest batch of a folder, written before it is submitted."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / STATE_FILE

    def read(self) -> Submitted | None:
        """The batch of an earlier run, None where there is none.

        Raises:
            UsageError: The file is there and is not this command's.
        """
        if not self._path.exists():
            return None
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            return Submitted(str(found["key"]), tuple(found["rows"]), str(found["batch_id"]))
        except (ValueError, KeyError, TypeError, OSError):
            raise UsageError(
                f"{self._path}: cannot be read as the state of a batch",
                hint="remove it to begin anew: what is finished is kept",
            ) from None

    def about_to_submit(self, rows: tuple[str, ...]) -> Submitted:
        """Notes a submission that is about to be made, with a key of its own."""
        return self._write(Submitted(f"cli-{secrets.token_hex(12)}", rows))

    def submitted(self, batch: Submitted, batch_id: str) -> Submitted:
        """Notes its answer."""
        return self._write(Submitted(batch.key, batch.rows, batch_id))

    def forget(self) -> None:
        """There is nothing under way any more."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    def _write(self, batch: Submitted) -> Submitted:
        state = {"batch_id": batch.batch_id, "key": batch.key, "rows": list(batch.rows)}
        write_json_atomic(self._path, state)
        return batch
