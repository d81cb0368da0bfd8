"""Owns going to and from the Hugging Face Hub and local PEFT folders; refuses whatever `artifacts` refuses.

Publishing is one commit on top of the head that was looked at (412 and another look when somebody else was faster) and one tag.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tunery.registry.adapter_keys import normalise_keys
from tunery.registry.artifacts import WEIGHTS, base_shapes
from tunery.registry.card import model_card
from tunery.registry.companions import COMPANIONS, MAX_COMPANION, differences
from tunery.registry.errors import ArtifactRefused, Conflict, InvalidInput, NotFound, StorageFailed, TuneryError
from tunery.registry.hub_client import hub
from tunery.registry.peft_config import CONFIG, DIGEST_KEY
from tunery.registry.records import Base, Version
from tunery.registry.registry import Registry
from tunery.registry.reports import LIMITS, PUBLIC, check_report, is_report

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["Published", "import_folder", "publish_to_hub", "pull_from_hub"]

ATTEMPTS = 4
CARD, IDENTITY = "README.md", "tunery.json"
_HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@.+)?")


class Published(msgspec.Struct, frozen=True):
    """Where a version went."""

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

    Files of a version published there before go; its tag keeps them. Publishing the same version again changes nothing. An
    exact copy of a full fine-tune's weights goes along, and so does the report; texts of held-out rows only with `samples`.
    `base_model` is the base's name on the Hub, where it has another here.
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
) -> dict[str, Path | bytes]:
    """What the repository will hold, by path."""
    base = registry.base(version.base_digest)
    named = base_model or _public_name(base)
    files = {
        name: path for name, path in registry.files(version).items() if samples or name in PUBLIC or not is_report(name)
    }
    problems = registry.verify(version.name)
    if problems:
        raise ArtifactRefused(
            f"{version.name}: {problems[0].path} {problems[0].problem}; publish it from where it was made",
            code="artifact_truncated",
        )
    pages = {name: _text(files.get(f"report/{name}.md")) for name in ("report", "samples")}
    card = model_card(version, base_model=named, repository=repository, **pages)
    shown = msgspec.structs.replace(version, files=tuple(entry for entry in version.files if entry.path in files))
    return {
        **files,
        CONFIG: _portable_config(files[CONFIG], base, named),
        CARD: card.encode(),
        IDENTITY: msgspec.json.format(msgspec.json.encode(shown, order="sorted"), indent=2),
    }


def _commit(api: HfApi, repository: str, contents: dict[str, Path | bytes], message: str) -> str:
    """The id of one commit on top of the head; when somebody else commits meanwhile, look again and try again."""
    for _ in range(ATTEMPTS):
        commit = _try_commit(api, repository, contents, message)
        if commit is not None:
            return commit
    raise Conflict(f"somebody else keeps changing {repository}; publish again", code="hub_conflict")


def _try_commit(api: HfApi, repository: str, contents: dict[str, Path | bytes], message: str) -> str | None:
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
    """The files there that an earlier publication put there, as its identity file says."""
    if IDENTITY not in present:
        return set()
    path = api.hf_hub_download(repository, IDENTITY, revision=commit)
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))["files"]
        return {str(entry["path"]) for entry in entries} & present
    except (ValueError, LookupError, TypeError, RecursionError):
        # Somebody else's file of that name: nothing of theirs is deleted.
        return set()


def pull_from_hub(
    registry: Registry,
    source: str,
    adapter: str,
    *,
    base: Base,
    actor: str,
    alias: str | None = None,
    trust_base: bool = False,
    endpoint: str | None = None,
) -> Version:
    """Bring `organisation/name` or `organisation/name@revision` in as a version of `adapter`, checked against `base`.

    Only the configuration, the weights and the report are fetched, all at one commit; what is wrong with a report's file is written
    into the manifest instead. `trust_base` is as in `Registry.publish`.
    """
    from huggingface_hub import HfApi, hf_hub_download

    repository, _, revision = source.partition("@")
    if repository.count("/") != 1:
        raise InvalidInput(f"{source!r} is not a Hub repository: write organisation/name or organisation/name@revision")
    with _staged(registry, "pull") as staged:
        folder, report, beside = (staged / name for name in ("adapter", "report", "beside"))
        for made in (folder, report, beside):
            made.mkdir()
        with hub(endpoint, repository) as url:
            info = HfApi(endpoint=url).model_info(repository, revision=revision or None)
            present = {sibling.rfilename for sibling in info.siblings or ()}
            _check_present(source, present)
            for name in (CONFIG, WEIGHTS):
                cached = hf_hub_download(repository, name, revision=info.sha, endpoint=url)
                shutil.copyfile(cached, folder / name)
            lost = {
                name: problem
                for name in LIMITS
                if name in present and (problem := _fetch_report(repository, name, str(info.sha), url, staged))
            }
            _fetch_companions(repository, present, str(info.sha), url, beside)
        origin: dict[str, Any] = {"hub": repository, "revision": revision or "main", "commit": info.sha}
        origin |= {"report_left_out": lost} if lost else {}
        return _take(
            registry, folder, adapter, base, origin, actor=actor, alias=alias, trust_base=trust_base, report=report,
            warnings=differences(beside, Path(base.path)),
        )  # fmt: skip


def _fetch_report(repository: str, name: str, commit: str, url: str, staged: Path) -> str | None:
    """Fetch one file of a report into `staged`, when it is not too large; why it is not there, otherwise."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    size = get_hf_file_metadata(hf_hub_url(repository, name, revision=commit, endpoint=url), endpoint=url).size
    if size is None or size > LIMITS[name]:
        return f"has {size or 'unknown'} bytes; a report's may have {LIMITS[name]}"
    cached = Path(hf_hub_download(repository, name, revision=commit, endpoint=url)).resolve()
    problem = check_report(name, cached)
    if problem is None:
        shutil.copyfile(cached, staged / name)
    return problem


def _fetch_companions(repository: str, present: set[str], commit: str, url: str, beside: Path) -> None:
    """Fetch the tokenizer's files that lie beside an adapter, to be compared with the base's."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    for name in present.intersection(COMPANIONS):
        size = get_hf_file_metadata(hf_hub_url(repository, name, revision=commit, endpoint=url), endpoint=url).size
        if size is not None and size <= MAX_COMPANION:
            shutil.copyfile(hf_hub_download(repository, name, revision=commit, endpoint=url), beside / name)


def import_folder(
    registry: Registry,
    folder: Path,
    adapter: str,
    *,
    base: Base,
    actor: str,
    alias: str | None = None,
    trust_base: bool = False,
) -> Version:
    """Bring a local PEFT folder in as a version of `adapter`, checked against `base`; its other files stay behind."""
    if not folder.is_dir():
        raise NotFound(f"there is no folder {folder}")
    _check_present(folder.name, {path.name for path in folder.iterdir()})
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).resolve().is_relative_to(folder.resolve()) or not (folder / name).is_file():
            raise ArtifactRefused(
                f"{name} is no file of {folder.name}, or a link out of it; copy the file itself", code="artifact_unsafe"
            )
    with _staged(registry, "import") as staged:
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(folder / name, staged / name)
        return _take(
            registry, staged, adapter, base, {"folder": folder.name}, actor=actor, alias=alias, trust_base=trust_base,
            warnings=differences(folder, Path(base.path)),
        )  # fmt: skip


def _check_present(source: str, present: set[str]) -> None:
    """Say what is there instead of a PEFT adapter in safetensors; pickled weights get their own word."""
    if CONFIG in present and WEIGHTS in present:
        return
    pickled = sorted(name for name in present if re.fullmatch(r"adapter_model\.(bin|pt|pth|ckpt|pkl)", name))
    if pickled:
        raise ArtifactRefused(
            f"{source} has its weights as {pickled[0]}, a pickle, which is never read: save it as safetensors "
            "(PEFT: save_pretrained(..., safe_serialization=True))",
            code="artifact_pickled",
        )
    raise NotFound(
        f"{source} has no {CONFIG} and {WEIGHTS}: it is not a PEFT adapter in safetensors; "
        f"it has: {', '.join(sorted(present)[:8]) or 'nothing'}",
        code="not_an_adapter",
    )


@contextmanager
def _staged(registry: Registry, what: str) -> Iterator[Path]:
    """A folder for files on their way in; gone afterwards."""
    staged = registry.home.staging / f"{what}-{uuid.uuid4().hex}"
    try:
        staged.mkdir(parents=True)
        yield staged
    except OSError as error:
        if isinstance(error, TuneryError):
            raise
        raise StorageFailed(f"{staged.parent}: {error.strerror or error}; nothing was changed") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _take(
    registry: Registry,
    folder: Path,
    adapter: str,
    base: Base,
    origin: dict[str, Any],
    *,
    actor: str,
    alias: str | None,
    trust_base: bool,
    warnings: list[str],
    report: Path | None = None,
) -> Version:
    """Publish what was staged, its tensors named as PEFT names them; `warnings` are kept in the manifest."""
    renamed = normalise_keys(folder / WEIGHTS, base_shapes(Path(base.path)))
    origin |= {"renamed_tensors": renamed} if renamed else {}
    told = {"warnings": warnings} if warnings else {}
    return registry.publish(
        adapter,
        folder,
        base=base,
        method="imported",
        manifest={"origin": origin, "base": base.name, "base_digest": base.digest, **told},
        metrics={},
        actor=actor,
        alias=alias,
        trust_base=trust_base,
        report=report,
    )


def _text(path: Path | None) -> str:
    return "" if path is None else path.read_text(encoding="utf-8")


def _public_name(base: Base) -> str:
    """What others can know the base by: its Hub id, else its name here, never a path of this machine."""
    match = _HUB_ID.fullmatch(base.source)
    return match["id"] if match and not Path(base.source).exists() else base.name


def _portable_config(path: Path, base: Base, base_model: str) -> bytes:
    """The configuration naming the base as others can find it, and by digest for whoever has Tunery."""
    config = json.loads(path.read_text()) | {"base_model_name_or_path": base_model, DIGEST_KEY: base.digest}
    return json.dumps(config, indent=2, sort_keys=True).encode()
