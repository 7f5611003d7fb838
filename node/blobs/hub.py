"""A model's name instead of a folder: fetched from the Hugging Face hub into its cache, or found there without network.

Only configuration, safetensors and tokenizer files are fetched: nothing that could be executed.
"""

import re
from pathlib import Path
from typing import Final, NamedTuple

from ...mesh.errors import LeptonError, LinkError, Refused, UsageError
from .publishing import FILES, INDEX

# As the hub itself has them: an owner and a name, 96 characters each at most.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REVISION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
WANTED: Final = (*FILES, INDEX, "model.safetensors", "model-*-of-*.safetensors")


class Folder(NamedTuple):
    """Where a model is: its folder, and the folder that its symbolic links may lead to."""

    path: Path
    within: Path


def folder_of(model: str, *, revision: str | None = None) -> Folder:
    """Return the folder of a model given by its folder, or by its name on the hub, as in ``org/name``.

    Call it in a thread: a model is fetched if it is not in the hub's cache yet. Raises UsageError for what is neither,
    LinkError without network, Refused for one that its owner does not show to everybody.
    """
    if model and Path(model).is_dir():
        return Folder(Path(model), Path(model).resolve())
    if not _NAME.fullmatch(model) or ".." in model or "--" in model:
        raise UsageError(f"{model!r} is neither a folder that is here nor a model's name on the hub, as in 'org/name'")
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise UsageError(f"{revision!r} is not a revision: give a branch, a tag or a commit")
    path = Path(_snapshot(model, revision))
    return Folder(path, path.resolve().parents[1])  # the cache keeps files once, and links to them from each revision


def _snapshot(model: str, revision: str | None) -> str:
    """Fetch; foreign exceptions become ours here."""
    from huggingface_hub import errors, snapshot_download

    try:
        return snapshot_download(model, revision=revision, allow_patterns=list(WANTED))
    except errors.GatedRepoError as error:
        raise Refused(
            f"the hub shows {model!r} only to those whom its owner lets in: log in with `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UsageError(f"the model {model!r} has no revision {revision!r} on the hub") from error
    except errors.RepositoryNotFoundError as error:
        raise UsageError(
            f"there is no model {model!r} on the hub, or it is private: log in with `hf auth login`"
        ) from error
    except errors.HFValidationError as error:
        raise UsageError(f"{model!r} is not a model's name on the hub: {error}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise LinkError(
            f"the hub cannot be reached, and {model!r} is not in its cache here: give a folder that has the model, or "
            "fetch it once where there is a network"
        ) from error
    except errors.HfHubHTTPError as error:
        raise LinkError(
            f"the hub did not give {model!r}: {str(error)[:200]}; try again later, or give a folder"
        ) from error
    except OSError as error:
        raise LeptonError(
            f"{model!r} cannot be kept in the hub's cache: {error}; free space, or give a folder"
        ) from error
    except Exception as error:  # its HTTP client's own, of which it promises none
        raise LinkError(f"{model!r} could not be fetched from the hub: {str(error)[:200]}; give a folder") from error
