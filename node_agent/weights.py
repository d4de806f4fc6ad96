"""Where a model's files come from: a folder, the Hugging Face Hub, or an object store."""

from __future__ import annotations

import asyncio
from pathlib import Path

from node_agent.config import ModelSettings
from node_agent.errors import WeightsError
from node_agent.model_folder import ModelFolder, ModelFolderError, open_model_folder


async def prepare_weights(settings: ModelSettings) -> ModelFolder:
    """A local folder with a manifest, fetched first where the source is elsewhere.

    Raises:
        WeightsError: Names the source and what is wrong.
    """
    try:
        return await asyncio.to_thread(open_model_folder, Path(settings.source))
    except ModelFolderError as error:
        raise WeightsError(str(error)) from None
