# SPDX-License-Identifier: Apache-2.0
"""Models from and to the Hugging Face hub, in the layout that `save_pretrained` writes.

`spectralgpt.from_pretrained` is this module's: a folder is read as it is, anything else of the form ORG/NAME comes from
the hub's cache or the hub. Only weights, configuration and card are ever fetched, so nothing in a repository can run.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from spectralgpt import heads
from spectralgpt.errors import UserError
from spectralgpt.models.base import SpectralModel
from spectralgpt.models.checkpoint import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE

_FILES = [CONFIG_FILE, WEIGHTS_FILE, CARD_FILE]
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def from_pretrained(
    source: str | Path,
    *,
    revision: str | None = None,
    bands: Any = None,  # noqa: ANN401 - the forms that create_model takes
    image_size: int | tuple[int, int] | None = None,
) -> SpectralModel:
    """The model that `save_pretrained` wrote, of the kind it was.

    Args:
        source: a folder, or ORG/NAME on the Hugging Face hub. A path that exists, or whose first folder does, is local.
        revision: branch, tag or commit on the hub; pin a commit where results must not change.
        bands: move the model to these bands (`SpectralModel.adapt_bands`).
        image_size: resample the positions to this size (`SpectralModel.resize`).

    Raises:
        UserError: no such folder or repository, a missing or damaged file, or bands that the model cannot move to.
    """
    is_remote = (
        isinstance(source, str)
        and _REPOSITORY.fullmatch(source) is not None
        and not Path(source).exists()
        and not Path(source).parent.is_dir()
    )
    if not is_remote and revision is not None:
        raise UserError(f"revision: expected with ORG/NAME on the Hugging Face hub, got it with the folder {source}")
    folder = download(str(source), revision) if is_remote else Path(source)
    return heads.from_pretrained(folder, bands=bands, image_size=image_size)


def download(repository: str, revision: str | None = None) -> Path:
    """The folder of a model on the hub, from its cache where it lies there.

    Raises:
        UserError: no such repository or revision, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        at = f" at {revision}" if revision else ""
        raise UserError(
            f"{repository}{at}: expected a folder of a saved model, or a model on the Hugging Face hub, found neither "
            f"({type(error).__name__}: {' '.join(str(error).split())[:160]})"
        ) from error


def push_to_hub(
    model: SpectralModel | str | Path,
    repository: str,
    *,
    revision: str | None = None,
    private: bool = True,
    message: str = "Upload model",
) -> str:
    """Uploads a model, or the folder of one with its card as you edited it.

    Args:
        model: a model, or a folder that `save_pretrained` wrote.
        repository: ORG/NAME; made where it does not exist.
        revision: branch to commit to.
        private: of a new repository.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        UserError: no model, or the hub refuses.
    """
    from tempfile import TemporaryDirectory

    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    with TemporaryDirectory() as scratch:
        folder = Path(scratch) if isinstance(model, SpectralModel) else Path(model)
        if isinstance(model, SpectralModel):
            model.save_pretrained(folder)
        heads.from_pretrained(folder)  # refuses what nobody could load
        api = HfApi()
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                revision=revision,
                commit_message=message,
                allow_patterns=_FILES,
            )
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise UserError(
                f"{repository}: expected to upload to the Hugging Face hub, got: {' '.join(str(error).split())[:200]}"
            ) from error
    return str(done.commit_url)
