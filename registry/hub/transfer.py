"""Owns going to and from the Hugging Face Hub and local PEFT folders; refuses whatever `artifacts` refuses.

A published full fine-tune has its exact model, ready for transformers, under `model/` and its delta under `adapter/`: transformers takes
a repository with an adapter's configuration at its root for that adapter, whatever subfolder it is asked for.

Publishing is one commit on top of the head that was looked at (412 and another look when somebody else was faster) and one tag.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tunery.registry.errors import ArtifactRefused, Conflict, NotFound, StorageFailed, TuneryError, disk_code
from tunery.registry.hub.card import model_card
from tunery.registry.hub.client import hub, parse_hub
from tunery.registry.peft.base_identity import DIGEST_KEY, check_digest
from tunery.registry.peft.base_shapes import base_shapes
from tunery.registry.peft.config import read_config
from tunery.registry.peft.layout import CONFIG, WEIGHTS
from tunery.registry.peft.renaming import normalise_keys
from tunery.registry.peft.tokenizer_files import COMPANIONS, MAX_COMPANION, differences
from tunery.registry.records import Base, FileEntry, NewVersion, Version
from tunery.registry.registry import Registry
from tunery.registry.storage.digest import file_digest
from tunery.registry.storage.leases import staged
from tunery.registry.versions.reports import LIMITS, PUBLIC, is_report, report_problem

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["Published", "import_folder", "publish_to_hub", "pull_from_hub"]

ATTEMPTS = 4
CARD, IDENTITY = "README.md", "tunery.json"
MODEL, ADAPTER = "model/", "adapter/"
MAX_IDENTITY = 16 * 2**20
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
    whole = any(name.startswith(MODEL) for name in files)
    place = ADAPTER if whole else ""
    card = model_card(version, base_model=named, repository=repository, adapter=place.rstrip("/"), **pages)
    contents: dict[str, Path | bytes] = {
        **{_published_name(name, place): path for name, path in files.items()},
        **(_beside_weights(files, base) if whole else {}),
        f"{place}{CONFIG}": _portable_config(files[CONFIG], named),
        CARD: card.encode(),
    }
    entries = [
        msgspec.structs.replace(e, path=_published_name(e.path, place)) for e in version.files if e.path in files
    ]
    listed = {entry.path for entry in entries}
    added = [
        FileEntry(name, *file_digest(p)) for name, p in contents.items() if isinstance(p, Path) and name not in listed
    ]
    shown = msgspec.structs.replace(version, files=tuple(sorted([*entries, *added])))
    return contents | {IDENTITY: msgspec.json.format(msgspec.json.encode(shown, order="sorted"), indent=2)}


def _published_name(name: str, place: str) -> str:
    """Where a file of a version lies in the repository: the adapter's own in `place`."""
    return f"{place}{name}" if "/" not in name else name


def _beside_weights(files: dict[str, Path], base: Base) -> dict[str, Path | bytes]:
    """What an exact model needs beside its weights and has not: tokenizer, chat template and the like, the version's own or the base's."""
    folder = Path(base.path)
    if not folder.is_dir():
        raise StorageFailed(
            f"the base {base.name} is no longer in {base.path}; take it in again: tunery bases add {base.source}",
            code="base_missing",
        )
    theirs = {path.name: path for path in sorted(folder.iterdir()) if not _is_weights(path.name)}
    own = {name: path for name, path in files.items() if name in theirs}
    return {f"{MODEL}{name}": path for name, path in (theirs | own).items() if f"{MODEL}{name}" not in files}


def _is_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".safetensors.index.json"))


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
    """Bring an adapter from the Hub in as a version of `adapter`, checked against `base`.

    `source` is `organisation/name`, with a subfolder `organisation/name/sub/folder`, at a revision `…@revision`.
    Only the configuration, the weights and the report are fetched, all at one commit; what is wrong with a report's file is written
    into the manifest instead. `trust_base` is as in `Registry.publish`.
    """
    from huggingface_hub import HfApi, hf_hub_download

    repository, subfolder, revision = parse_hub(source)
    within = f"{subfolder}/" if subfolder else ""
    with _staged(registry, "pull") as place:
        folder, report, beside = (place / name for name in ("adapter", "report", "beside"))
        for made in (folder, report, beside):
            made.mkdir()
        with hub(endpoint, repository, revision) as url:
            info = HfApi(endpoint=url).model_info(repository, revision=revision)
            everything = [sibling.rfilename for sibling in info.siblings or ()]
            present = {name.removeprefix(within) for name in everything if name.startswith(within)}
            inner = ADAPTER if CONFIG not in present and {IDENTITY, ADAPTER + CONFIG} <= present else ""
            _check_present(source, {name.removeprefix(inner) for name in present}, everything)
            for name in (CONFIG, WEIGHTS):
                cached = hf_hub_download(repository, f"{within}{inner}{name}", revision=info.sha, endpoint=url)
                shutil.copyfile(cached, folder / name)
            if IDENTITY in present:
                identity = hf_hub_download(repository, f"{within}{IDENTITY}", revision=info.sha, endpoint=url)
                shutil.copyfile(identity, place / IDENTITY)
            _check_recorded(folder / CONFIG, place / IDENTITY, base, trust_base=trust_base)
            lost = {
                name: problem
                for name in LIMITS
                if name in present and (problem := _fetch_report(repository, name, within, str(info.sha), url, place))
            }
            _fetch_companions(repository, present, within, str(info.sha), url, beside)
        origin: dict[str, Any] = {"hub": repository, "revision": revision or "main", "commit": info.sha}
        origin |= {"subfolder": subfolder} if subfolder else {}
        origin |= {"report_left_out": lost} if lost else {}
        return _take(
            registry, folder, adapter, base, origin, actor=actor, alias=alias, trust_base=trust_base, report=report,
            warnings=differences(beside, Path(base.path)),
        )  # fmt: skip


def _fetch_report(repository: str, name: str, within: str, commit: str, url: str, place: Path) -> str | None:
    """Fetch one file of a report into `place`, when it is not too large; why it is not there, otherwise."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    size = get_hf_file_metadata(
        hf_hub_url(repository, f"{within}{name}", revision=commit, endpoint=url), endpoint=url
    ).size
    if size is None or size > LIMITS[name]:
        return f"has {size or 'unknown'} bytes; a report's may have {LIMITS[name]}"
    cached = Path(hf_hub_download(repository, f"{within}{name}", revision=commit, endpoint=url)).resolve()
    problem = report_problem(name, cached)
    if problem is None:
        shutil.copyfile(cached, place / name)
    return problem


def _fetch_companions(repository: str, present: set[str], within: str, commit: str, url: str, beside: Path) -> None:
    """Fetch the tokenizer's files that lie beside an adapter, to be compared with the base's."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    for name in present.intersection(COMPANIONS):
        path = f"{within}{name}"
        size = get_hf_file_metadata(hf_hub_url(repository, path, revision=commit, endpoint=url), endpoint=url).size
        if size is not None and size <= MAX_COMPANION:
            shutil.copyfile(hf_hub_download(repository, path, revision=commit, endpoint=url), beside / name)


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
    with _staged(registry, "import") as place:
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(folder / name, place / name)
        _check_recorded(place / CONFIG, folder / IDENTITY, base, trust_base=trust_base)
        origin = {"folder": folder.name}
        return _take(
            registry, place, adapter, base, origin, actor=actor, alias=alias, trust_base=trust_base,
            warnings=differences(folder, Path(base.path)),
        )  # fmt: skip


def _check_present(source: str, present: set[str], everything: Iterable[str] = ()) -> None:
    """Say what is there instead of a PEFT adapter in safetensors; pickled weights get their own word, and so do subfolders."""
    if CONFIG in present and WEIGHTS in present:
        return
    deeper = sorted(name.removesuffix(f"/{WEIGHTS}") for name in everything if name.endswith(f"/{WEIGHTS}"))
    if deeper:
        repository = "/".join(source.partition("@")[0].split("/")[:2])
        raise NotFound(
            f"{source} has no {CONFIG} and {WEIGHTS}; the repository has adapters in subfolders: "
            + ", ".join(f"{repository}/{folder}" for folder in deeper[:8]),
            code="not_an_adapter",
        )
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
    try:
        with staged(registry.home.staging, what) as folder:
            yield folder
    except OSError as error:
        if isinstance(error, TuneryError):
            raise
        raise StorageFailed(
            f"{error.filename or registry.home.staging}: {error.strerror or error}; nothing was changed",
            code=disk_code(error),
        ) from error


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
        NewVersion(
            adapter=adapter,
            folder=folder,
            base=base,
            method="imported",
            manifest={"origin": origin, "base": base.name, "base_digest": base.digest, **told},
            metrics={},
            actor=actor,
            alias=alias,
            trust_base=trust_base,
            report=report,
        )
    )


def _text(path: Path | None) -> str:
    return "" if path is None else path.read_text(encoding="utf-8")


def _public_name(base: Base) -> str:
    """What others can know the base by: its Hub id, else its name here, never a path of this machine."""
    match = _HUB_ID.fullmatch(base.source)
    return match["id"] if match and not Path(base.source).exists() else base.name


def _portable_config(path: Path, base_model: str) -> bytes:
    """The configuration naming the base as others can find it; by digest it is named in the identity file, where PEFT does not look."""
    config = json.loads(path.read_bytes()) | {"base_model_name_or_path": base_model}
    config.pop(DIGEST_KEY, None)
    return json.dumps(config, indent=2, sort_keys=True).encode()


def _check_recorded(config_file: Path, identity: Path, base: Base, *, trust_base: bool) -> None:
    """Raise ArtifactRefused when another base's digest came with an adapter, unless that is trusted.

    Earlier releases wrote it into the configuration, of which PEFT then warns; there it is taken out.
    """
    config = read_config(config_file)
    recorded = config.pop(DIGEST_KEY, None)
    if recorded is not None:
        config_file.write_text(json.dumps(config, indent=2, sort_keys=True))
    if not trust_base:
        check_digest(recorded, base)
        check_digest(_recorded_base(identity), base)


def _recorded_base(identity: Path) -> str | None:
    """The base's digest that an identity file has; None for somebody else's file of that name, and for none."""
    try:
        if identity.stat().st_size > MAX_IDENTITY:
            return None
        digest = json.loads(identity.read_bytes())["base_digest"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return digest if isinstance(digest, str) else None
