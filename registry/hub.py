"""Owns going to and from the Hugging Face Hub and local PEFT folders; refuses whatever `artifacts` refuses.

Publishing is one commit and one tag. Large files go over plain LFS on endpoints other than the Hub itself, which need not offer
Xet storage.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from tunery.registry.artifacts import CONFIG, WEIGHTS
from tunery.registry.card import model_card
from tunery.registry.errors import Conflict, InvalidInput, NotFound, Unavailable
from tunery.registry.records import Base, Version
from tunery.registry.registry import Registry

__all__ = ["Published", "import_folder", "publish_to_hub", "pull_from_hub"]

HUB = "https://huggingface.co"


class Published(msgspec.Struct, frozen=True):
    """Where a version went."""

    repository: str
    commit: str
    tag: str
    url: str


def publish_to_hub(
    registry: Registry, version: Version, *, repository: str, private: bool = False, endpoint: str | None = None
) -> Published:
    """Put a version on the Hub as one commit with a tag `v<number>-<digest>`; the repository is made if need be.

    Publishing the same version again changes nothing. An exact copy of a full fine-tune's weights goes along.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    files = registry.files(version)
    base = registry.base(version.base_digest)
    card = model_card(version, base_source=base.source, repository=repository)
    operations = [CommitOperationAdd(name, str(path)) for name, path in files.items() if name != CONFIG]
    operations.append(CommitOperationAdd(CONFIG, _portable_config(files[CONFIG], base)))
    operations.append(CommitOperationAdd("README.md", card.encode()))
    operations.append(CommitOperationAdd("tunery.json", _identity(version)))
    tag = f"v{version.number}-{version.digest[:12]}"
    with _hub(endpoint, repository) as url:
        api = HfApi(endpoint=url)
        api.create_repo(repository, private=private, exist_ok=True)
        message = f"{version.name} ({version.digest[:12]})"
        commit = api.create_commit(repository, operations, commit_message=message)
        oid = str(commit.oid)
        api.create_tag(repository, tag=tag, revision=oid, tag_message=message, exist_ok=True)
    return Published(repository, oid, tag, f"{url}/{repository}/tree/{tag}")


def pull_from_hub(
    registry: Registry,
    source: str,
    adapter: str,
    *,
    base: Base,
    actor: str,
    alias: str | None = None,
    endpoint: str | None = None,
) -> Version:
    """Bring `organisation/name` or `organisation/name@revision` in as a version of `adapter`, checked against `base`."""
    from huggingface_hub import HfApi, hf_hub_download

    repository, _, revision = source.partition("@")
    if repository.count("/") != 1:
        raise InvalidInput(f"{source!r} is not a Hub repository: write organisation/name or organisation/name@revision")
    staged = registry.home.staging / f"pull-{uuid.uuid4().hex}"
    staged.mkdir(parents=True)
    try:
        with _hub(endpoint, repository) as url:
            info = HfApi(endpoint=url).model_info(repository, revision=revision or None)
            present = {sibling.rfilename for sibling in info.siblings or ()}
            if WEIGHTS not in present or CONFIG not in present:
                raise NotFound(
                    f"{source} has no {CONFIG} and {WEIGHTS}: it is not a PEFT adapter in safetensors; "
                    f"it has: {', '.join(sorted(present)[:8]) or 'nothing'}",
                    code="not_an_adapter",
                )
            for name in (CONFIG, WEIGHTS):
                cached = hf_hub_download(repository, name, revision=info.sha, endpoint=url)
                shutil.copyfile(cached, staged / name)
        origin = {"hub": repository, "revision": revision or "main", "commit": info.sha}
        return _take(registry, staged, adapter, base=base, origin=origin, actor=actor, alias=alias)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def import_folder(
    registry: Registry, folder: Path, adapter: str, *, base: Base, actor: str, alias: str | None = None
) -> Version:
    """Bring a local PEFT folder in as a version of `adapter`, checked against `base`; its other files stay behind."""
    if not folder.is_dir():
        raise NotFound(f"there is no folder {folder}")
    for name in (CONFIG, WEIGHTS):
        if (folder / name).is_symlink() and not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise InvalidInput(f"{name} is a link out of {folder.name}; copy the file itself")
    pickled = sorted(path.name for path in folder.glob("adapter_model.*") if path.suffix in (".bin", ".pt", ".pth"))
    staged = registry.home.staging / f"import-{uuid.uuid4().hex}"
    staged.mkdir(parents=True)
    try:
        for name in (CONFIG, WEIGHTS, *pickled):
            if (folder / name).is_file() and not (name in pickled and (folder / WEIGHTS).is_file()):
                shutil.copyfile(folder / name, staged / name)
        return _take(registry, staged, adapter, base=base, origin={"folder": folder.name}, actor=actor, alias=alias)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _take(
    registry: Registry,
    folder: Path,
    adapter: str,
    *,
    base: Base,
    origin: dict[str, Any],
    actor: str,
    alias: str | None,
) -> Version:
    return registry.publish(
        adapter,
        folder,
        base=base,
        method="imported",
        manifest={"origin": origin, "base": base.name, "base_digest": base.digest},
        metrics={},
        actor=actor,
        alias=alias,
    )


def _portable_config(path: Path, base: Base) -> bytes:
    """The configuration naming the base as others can find it, not where it lies here."""
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = base.source
    return json.dumps(config, indent=2, sort_keys=True).encode()


def _identity(version: Version) -> bytes:
    return msgspec.json.format(msgspec.json.encode(version, order="sorted"), indent=2)


@contextmanager
def _hub(endpoint: str | None, repository: str) -> Iterator[str]:
    """The endpoint to use; what goes wrong with it becomes one of our errors."""
    import httpx2
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    url = (endpoint or os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    before = constants.HF_HUB_DISABLE_XET
    # Read at each call; servers other than the Hub's own speak plain LFS.
    constants.HF_HUB_DISABLE_XET = before or urlsplit(url).hostname != urlsplit(HUB).hostname
    try:
        yield url
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise NotFound(
            f"{repository} is not on {url}, or you may not see it (log in with `hf auth login`, or set HF_TOKEN)",
            code="hub_not_found",
        ) from error
    except HFValidationError as error:
        raise InvalidInput(f"{repository!r} is not a name the Hub accepts: {error}") from error
    except HfHubHTTPError as error:
        raise _http_error(error, repository, url) from error
    except (LocalTokenNotFoundError, OfflineModeIsEnabled, httpx2.HTTPError, OSError) as error:
        raise Unavailable(
            f"the Hub at {url} cannot be reached ({type(error).__name__}); check the network, HF_ENDPOINT and "
            "HF_HUB_OFFLINE, and try again: nothing was changed here",
            code="hub_unreachable",
        ) from error
    finally:
        constants.HF_HUB_DISABLE_XET = before


def _http_error(error: Any, repository: str, url: str) -> Exception:
    status = getattr(error.response, "status_code", 0)
    said = getattr(error, "server_message", None) or ""
    if status in (401, 403):
        return InvalidInput(
            f"{url} does not let you write to {repository} ({status} {said}): log in with `hf auth login`, or set HF_TOKEN "
            "to a token that may write",
            code="hub_forbidden",
        )
    if status in (409, 412):
        return Conflict(f"somebody else changed {repository} meanwhile; publish again", code="hub_conflict")
    return Unavailable(f"{url} answered {status} {said}; try again later: nothing was changed here", code="hub_failed")
