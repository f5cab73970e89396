"""Models on the hub: downloaded into the hub's usual cache, checked against its sha256, found again offline.

The hub's own client finds and keeps the files, so other programs share them; weights are brought by `transfer`,
which continues where an earlier run was stopped.
Each model is pinned to one commit, so a download never mixes two states of a repository.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from zturbo.errors import DownloadError, WeightsNotFound
from zturbo.pictures import write_atomic
from zturbo.weights.transfer import download

if TYPE_CHECKING:
    from huggingface_hub import HfApi

ALLOWED_FILES = ("*.json", "*.safetensors", "*.gguf", "*.txt")
"""Weights, configs and tokenizers; never a pickle, never code."""

CHUNK_BYTES = 1 << 20

NETWORKS = ("transformer", "text_encoder", "vae")
CONFIGS = ("scheduler/scheduler_config.json", "tokenizer/tokenizer.json", *(f"{name}/config.json" for name in NETWORKS))
"""The small files without which a pipeline cannot be opened."""

PINNED = {"Tongyi-MAI/Z-Image-Turbo": "f332072aa78be7aecdf3ee76d5c247082da564a6"}
"""The commit of each repository that the catalog names."""


@dataclass(frozen=True, slots=True)
class HubModel:
    """A repository at one commit, branch or tag."""

    repository: str
    revision: str

    @property
    def page(self) -> str:
        return f"https://huggingface.co/{self.repository}/tree/{self.revision}"


def model_named(name: str) -> HubModel:
    """OWNER/NAME[@REVISION] of the hub; the revision is the pinned one, or `main`.

    Raises:
        WeightsNotFound: it is not of that form.
    """
    repository, _, revision = name.partition("@")
    if re.fullmatch(r"(?![.~])[^/]+/[^/]+", repository):  # no path, no "~name"
        return HubModel(repository, revision or PINNED.get(repository, "main"))
    raise WeightsNotFound(
        f"there is no model named {name!r}",
        "`zturbo models list` has the names; or give OWNER/NAME[@REVISION] of the hub",
    )


def existing(text: str) -> Path | None:
    """The file or folder that a text names, `~` at its start being a home folder; None where there is none."""
    try:
        path = Path(text).expanduser()
        return path if text and path.exists() else None
    except (OSError, RuntimeError):  # too long for a path; "~name" of nobody
        return None


def find(name: str, *, cache: Path | None = None) -> Path | None:
    """The folder of a model that is already in the cache, or None. Uses no network.

    The client knows all files only of a commit that it listed itself. A folder into which another program brought
    single files is found as well: `is_whole_pipeline` tells it from a whole one.
    """
    model = model_named(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, IncompleteSnapshotError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                model.repository,
                revision=model.revision,
                cache_dir=cache,
                local_files_only=True,
                allow_patterns=list(ALLOWED_FILES),
            )
        )
    except (LocalEntryNotFoundError, IncompleteSnapshotError, HFValidationError):
        return None
    except RuntimeError:  # a cache in the home folder of a user who has none, as in some containers
        return None


def is_whole_pipeline(folder: Path) -> bool:
    """Whether a folder has every file that a Z-Image pipeline is opened from. Their content is not looked at."""
    return all((folder / file).is_file() for file in CONFIGS) and all(_has_weights(folder / name) for name in NETWORKS)


def _has_weights(component: Path) -> bool:
    """Whether the weights are there, all shards of them: NAME-00001-of-00003.safetensors says how many there are, and
    an index which tensor is in which."""
    names = [file.name for file in component.glob("*.safetensors") if file.is_file()]
    counts = [int(match[1]) for name in names if (match := re.search(r"-\d{5}-of-(\d{5})\.safetensors$", name))]
    has_index = not counts or any(file.is_file() for file in component.glob("*.safetensors.index.json"))
    return bool(names) and len(counts) >= max(counts, default=0) and has_index


def pull(
    name: str,
    *,
    cache: Path | None = None,
    endpoint: str | None = None,
    on_verified: Callable[[str], None] | None = None,
) -> Path:
    """Download a model, or what is missing of it, and check every weights file against the hub's sha256.

    Args:
        cache: the hub cache's folder; the client's own (`HF_HOME`, `HF_HUB_CACHE`) by default.
        endpoint: the hub's address; the client's own (`HF_ENDPOINT`) by default.
        on_verified: called with each file's name once its bytes were checked.

    Returns: the folder with the model.

    Raises:
        WeightsNotFound: the name is not OWNER/NAME.
        DownloadError: the hub cannot be reached, refuses, or sent other bytes than it announced.
    """
    from huggingface_hub import HfApi, snapshot_download

    model = model_named(name)
    with _explained(model):
        api = HfApi(endpoint=endpoint)
        commit = api.model_info(model.repository, revision=model.revision).sha or model.revision
        weights = _listed_weights(api, model.repository, commit)
        brought = [file for file in weights if _download_weights(model.repository, commit, file, cache, endpoint)]
        folder = Path(
            snapshot_download(
                model.repository,
                revision=commit,
                cache_dir=cache,
                endpoint=endpoint,
                allow_patterns=list(ALLOWED_FILES),
            )
        )
    for file in weights:
        if file not in brought:
            _verify(model.repository, folder, file)
        if on_verified:
            on_verified(file.path)
    if model.revision != commit:
        _name_commit(folder, model.revision)
    return folder


def _name_commit(snapshot: Path, revision: str) -> None:
    """Note, as the hub's client reads it, which commit a branch or tag stands for; it does so itself only where it
    was asked for the branch, and then a newer commit than the one that was checked could have come."""
    reference = snapshot.parent.parent / "refs" / revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(reference, snapshot.name.encode())


@dataclass(frozen=True, slots=True)
class _Weights:
    """A large file as the hub announces it."""

    path: str
    sha256: str
    size_bytes: int


def _listed_weights(api: "HfApi", repository: str, commit: str) -> list[_Weights]:
    """The allowed files that the hub stores by their sha256 (LFS), which are all large ones."""
    from huggingface_hub.hf_api import RepoFile
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

    files = api.list_repo_tree(repository, recursive=True, revision=commit)
    large = [file for file in files if isinstance(file, RepoFile) and file.lfs is not None]
    allowed = filter_repo_objects(large, allow_patterns=list(ALLOWED_FILES), key=lambda file: file.path)
    weights = [_Weights(file.path, file.lfs.sha256, file.lfs.size) for file in allowed if file.lfs]
    for file in weights:
        # Both become names of local files.
        if (
            not re.fullmatch(r"[0-9a-f]{64}", file.sha256)
            or ".." in Path(file.path).parts
            or Path(file.path).is_absolute()
        ):
            raise DownloadError(f"{repository}: the hub lists {file.path!r} with the sha256 {file.sha256!r}")
    return weights


def _download_weights(repository: str, commit: str, file: _Weights, cache: Path | None, endpoint: str | None) -> bool:
    """Put a file where the hub's client expects its content: blobs/<sha256> of the repository's cache.

    Returns: whether it was brought, and checked, now.
    """
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.file_download import repo_folder_name

    root = Path(cache or constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")
    url = hf_hub_url(repository, file.path, revision=commit, endpoint=endpoint)
    return download(
        url, root / "blobs" / file.sha256, file.size_bytes, file.path, partial(_check_bytes, repository, file)
    )


def _verify(repository: str, folder: Path, file: _Weights) -> None:
    """Check a file that was there before; a damaged one goes, so that the next pull fetches it again."""
    path = folder / file.path
    try:
        _check_bytes(repository, file, path)
    except DownloadError:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise


def _check_bytes(repository: str, file: _Weights, path: Path) -> None:
    """Raises: DownloadError: the bytes are others than the hub announces."""
    if (got := _sha256(path)) != file.sha256:
        raise DownloadError(
            f"{repository}: {file.path} has the sha256 {got}, the hub announces {file.sha256}; it was removed",
            f"run `zturbo models pull {repository}` again",
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(CHUNK_BYTES):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _explained(model: HubModel) -> Iterator[None]:
    """Turn the client's errors into one that says what to do without a connection."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # The HTTP library under the client differs between its versions; its base error is theirs too.
    http_error = cast(type[Exception], HfHubHTTPError.__mro__[1])
    try:
        yield
    except GatedRepoError as error:
        raise DownloadError(
            f"{model.repository} asks for an account that accepted its terms",
            f"accept them at {model.page}, then run `hf auth login`",
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise DownloadError(
            f"the hub has no {model.repository} at {model.revision}",
            "check the name; for a private one run `hf auth login`",
        ) from error
    except (LocalEntryNotFoundError, http_error, OSError) as error:
        raise DownloadError(f"cannot download {model.repository}: {_first_line(error)}", offline_help(model)) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def offline_help(model: HubModel) -> str:
    """The ways to a model without this machine's connection."""
    return (
        "on a machine with a connection run "
        f"`hf download {model.repository} --revision {model.revision} --local-dir FOLDER` "
        f"or get the files from {model.page}, copy FOLDER here and pass --model FOLDER; "
        "behind a mirror set HF_ENDPOINT to its address; "
        "a cache copied from elsewhere is found through HF_HOME"
    )
