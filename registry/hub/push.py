"""Publish a version on the Hugging Face Hub: one commit and one tag.

The commit goes on top of the head that was looked at; when somebody else was faster (HTTP 412), it is made again on the
new head.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tunery.registry.errors import ArtifactRefused, Conflict, StorageFailed
from tunery.registry.hub.card import model_card
from tunery.registry.hub.client import hub
from tunery.registry.hub.repository import ADAPTER, CARD, IDENTITY, MODEL, identified_files
from tunery.registry.peft.base_identity import DIGEST_KEY
from tunery.registry.peft.layout import CONFIG
from tunery.registry.records import Base, FileEntry, Version
from tunery.registry.registry import Registry
from tunery.registry.storage.digest import file_digest
from tunery.registry.versions.reports import PUBLIC, is_report

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["Published", "publish_to_hub"]

ATTEMPTS = 4
_HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@.+)?")

Contents = dict[str, Path | bytes]
"""What a repository will hold, by path: a file to upload, or its bytes."""


class Published(msgspec.Struct, frozen=True):
    """Where a version was published."""

    repository: str
    commit: str
    tag: str
    url: str


def publish_to_hub(
    registry: Registry,
    version: Version,
    *,
    repository: str,
    private: bool = False,
    base_model: str | None = None,
    samples: bool = False,
    endpoint: str | None = None,
) -> Published:
    """Put a version on the Hub as one commit with a tag `v<number>-<digest>`; the repository is made if need be.

    Files of a version published there before are removed from the head; its tag keeps them. Publishing the same version
    again changes nothing. The exact model of a full fine-tune is uploaded too, and so is the report; texts of held-out
    rows only with `samples`. `base_model` is the base's name on the Hub, where it has another here. Raise
    ArtifactRefused (artifact_truncated) for a damaged version, and see `hub.client.hub` for what goes wrong with the
    Hub.
    """
    from huggingface_hub import HfApi

    contents = _contents(registry, version, repository=repository, base_model=base_model, samples=samples)
    tag = f"v{version.number}-{version.digest[:12]}"
    message = f"{version.name} ({version.digest[:12]})"
    with hub(endpoint, repository) as url:
        api = HfApi(endpoint=url)
        api.create_repo(repository, private=private, exist_ok=True)
        tags = {ref.name: ref.target_commit for ref in api.list_repo_refs(repository).tags}
        commit = tags.get(tag)
        if commit is None:
            commit = _commit(api, repository, contents, message)
            api.create_tag(repository, tag=tag, revision=commit, tag_message=message, exist_ok=True)
    return Published(repository, commit, tag, f"{url}/{repository}/tree/{tag}")


def _contents(
    registry: Registry, version: Version, *, repository: str, base_model: str | None, samples: bool
) -> Contents:
    problems = registry.verify(version.name)
    if problems:
        raise ArtifactRefused(
            f"{version.name}: {problems[0].path} {problems[0].problem}; publish it from where it was made",
            code="artifact_truncated",
        )
    base = registry.base(version.base_digest)
    public_base = base_model or _public_name(base)
    files = {
        name: path for name, path in registry.files(version).items() if samples or name in PUBLIC or not is_report(name)
    }
    is_full = any(name.startswith(MODEL) for name in files)
    folder = ADAPTER if is_full else ""
    contents: Contents = {_published_path(name, folder): path for name, path in files.items()}
    if is_full:
        contents |= _beside_model(files, base)
    contents[f"{folder}{CONFIG}"] = _portable_config(files[CONFIG], public_base)
    contents[CARD] = model_card(
        version,
        base_model=public_base,
        repository=repository,
        adapter=folder.rstrip("/"),
        report=_text(files.get("report/report.md")),
        samples=_text(files.get("report/samples.md")),
    ).encode()
    return contents | {IDENTITY: _identity(version, files, folder, contents)}


def _identity(version: Version, files: dict[str, Path], folder: str, contents: Contents) -> bytes:
    """The identity file: the version with the files of the repository in place of its own."""
    entries = [
        msgspec.structs.replace(entry, path=_published_path(entry.path, folder))
        for entry in version.files
        if entry.path in files
    ]
    listed = {entry.path for entry in entries}
    added = [
        FileEntry(name, *file_digest(source))
        for name, source in contents.items()
        if isinstance(source, Path) and name not in listed
    ]
    shown = msgspec.structs.replace(version, files=tuple(sorted([*entries, *added])))
    return msgspec.json.format(msgspec.json.encode(shown, order="sorted"), indent=2)


def _published_path(name: str, folder: str) -> str:
    """Where a file of a version goes in the repository: the adapter's own into `folder`."""
    return f"{folder}{name}" if "/" not in name else name


def _beside_model(files: dict[str, Path], base: Base) -> Contents:
    """What an exact model needs beside its weights, such as the tokenizer: the version's own or the base's."""
    folder = Path(base.path)
    if not folder.is_dir():
        raise StorageFailed(
            f"the base {base.name} is no longer in {base.path}; add it again: tunery bases add {base.source}",
            code="base_missing",
        )
    from_base = {path.name: path for path in sorted(folder.iterdir()) if not _is_weights(path.name)}
    from_version = {name: path for name, path in files.items() if name in from_base}
    beside = from_base | from_version
    return {f"{MODEL}{name}": path for name, path in beside.items() if f"{MODEL}{name}" not in files}


def _is_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".safetensors.index.json"))


def _commit(api: HfApi, repository: str, contents: Contents, message: str) -> str:
    """The id of one commit on top of the head, tried again while somebody else moves it."""
    for _ in range(ATTEMPTS):
        commit = _try_commit(api, repository, contents, message)
        if commit is not None:
            return commit
    raise Conflict(f"somebody else keeps changing {repository}; publish again", code="hub_conflict")


def _try_commit(api: HfApi, repository: str, contents: Contents, message: str) -> str | None:
    """The commit's id, or None when the head moved before it."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.errors import HfHubHTTPError

    info = api.model_info(repository)
    present = {sibling.rfilename for sibling in info.siblings or ()}
    stale = _published_before(api, repository, str(info.sha), present) - set(contents)
    added = [CommitOperationAdd(name, str(c) if isinstance(c, Path) else c) for name, c in contents.items()]
    deleted = [CommitOperationDelete(name) for name in sorted(stale)]
    try:
        done = api.create_commit(repository, [*added, *deleted], commit_message=message, parent_commit=info.sha)
    except HfHubHTTPError as error:
        if error.response.status_code == 412:
            return None
        raise
    return str(done.oid)


def _published_before(api: HfApi, repository: str, commit: str, present: set[str]) -> set[str]:
    """The files there that an earlier publication put there, as its identity file says; others are never deleted."""
    if IDENTITY not in present:
        return set()
    return identified_files(Path(api.hf_hub_download(repository, IDENTITY, revision=commit))) & present


def _text(path: Path | None) -> str:
    return "" if path is None else path.read_text(encoding="utf-8")


def _public_name(base: Base) -> str:
    """What others can know the base by: its Hub id, else its name here, never a path of this machine."""
    match = _HUB_ID.fullmatch(base.source)
    return match["id"] if match and not Path(base.source).exists() else base.name


def _portable_config(path: Path, base_model: str) -> bytes:
    """The adapter's configuration with the base's public name, and without its digest, of which PEFT would warn."""
    config = json.loads(path.read_bytes()) | {"base_model_name_or_path": base_model}
    config.pop(DIGEST_KEY, None)
    return json.dumps(config, indent=2, sort_keys=True).encode()
