"""Pull an adapter from the Hugging Face Hub: only the files that are needed, all of one commit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec

from tunery.registry.hub.client import hub, parse_hub
from tunery.registry.hub.incoming import Destination, check_present, check_recorded, publish_staged, staging
from tunery.registry.hub.repository import ADAPTER, IDENTITY
from tunery.registry.peft.layout import CONFIG, WEIGHTS
from tunery.registry.peft.tokenizer_files import COMPANIONS, MAX_COMPANION, differences
from tunery.registry.records import Version
from tunery.registry.registry import Registry
from tunery.registry.versions.reports import LIMITS, report_problem

__all__ = ["pull_from_hub"]


def pull_from_hub(registry: Registry, source: str, destination: Destination, *, endpoint: str | None = None) -> Version:
    """Import an adapter from the Hub.

    `source` is `organisation/name`, or with a subfolder `organisation/name/sub/folder`, either at a revision
    `…@revision`. Only the configuration, the weights and the report are fetched; a file of a report that is unfit is
    left out, and the reason is written into the manifest. Raise NotFound, ArtifactRefused, and what `hub.client.hub`
    does.
    """
    repository, subfolder, revision = parse_hub(source)
    with staging(registry, "pull") as place:
        folder, report, beside = (place / name for name in ("adapter", "report", "beside"))
        for made in (folder, report, beside):
            made.mkdir()
        with hub(endpoint, repository, revision) as url:
            remote = _remote(repository, subfolder, revision, url)
            remote.fetch_adapter(source, folder)
            remote.fetch_if_present(IDENTITY, place / IDENTITY)
            check_recorded(folder / CONFIG, place / IDENTITY, destination)
            left_out = remote.fetch_report(place)
            remote.fetch_tokenizer(beside)
        origin: dict[str, Any] = {"hub": repository, "revision": revision or "main", "commit": remote.commit}
        origin |= {"subfolder": subfolder} if subfolder else {}
        origin |= {"report_left_out": left_out} if left_out else {}
        warnings = differences(beside, Path(destination.base.path))
        return publish_staged(registry, folder, destination, origin=origin, warnings=warnings, report=report)


class _Remote(msgspec.Struct, frozen=True, kw_only=True):
    """A folder of a repository at one commit: `present` are the files under `prefix`, `everything` all files."""

    repository: str
    commit: str
    url: str
    prefix: str
    present: frozenset[str]
    everything: tuple[str, ...]

    def fetch_adapter(self, source: str, folder: Path) -> None:
        """Fetch the adapter's two files, from `adapter/` where the repository has the exact model as well."""
        is_full = CONFIG not in self.present and {IDENTITY, ADAPTER + CONFIG} <= self.present
        inner = ADAPTER if is_full else ""
        check_present(source, {name.removeprefix(inner) for name in self.present}, self.everything)
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(self._download(inner + name), folder / name)

    def fetch_if_present(self, name: str, target: Path) -> None:
        if name in self.present:
            shutil.copyfile(self._download(name), target)

    def fetch_report(self, place: Path) -> dict[str, str]:
        """Fetch the report into `place`; gives the files that were left out, with the reason."""
        problems = {name: self._fetch_report_file(name, place / name) for name in LIMITS if name in self.present}
        return {name: problem for name, problem in problems.items() if problem is not None}

    def fetch_tokenizer(self, folder: Path) -> None:
        """Fetch the tokenizer's files that lie beside the adapter, to be compared with the base's."""
        for name in self.present.intersection(COMPANIONS):
            size = self._size(name)
            if size is not None and size <= MAX_COMPANION:
                shutil.copyfile(self._download(name), folder / name)

    def _fetch_report_file(self, name: str, target: Path) -> str | None:
        size = self._size(name)
        if size is None or size > LIMITS[name]:
            return f"has {size or 'unknown'} bytes; a report's may have {LIMITS[name]}"
        cached = self._download(name).resolve()
        problem = report_problem(name, cached)
        if problem is None:
            shutil.copyfile(cached, target)
        return problem

    def _size(self, name: str) -> int | None:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        location = hf_hub_url(self.repository, self.prefix + name, revision=self.commit, endpoint=self.url)
        return get_hf_file_metadata(location, endpoint=self.url).size

    def _download(self, name: str) -> Path:
        """A file in the Hub's cache."""
        from huggingface_hub import hf_hub_download

        cached = hf_hub_download(self.repository, self.prefix + name, revision=self.commit, endpoint=self.url)
        return Path(cached)


def _remote(repository: str, subfolder: str, revision: str | None, url: str) -> _Remote:
    from huggingface_hub import HfApi

    info = HfApi(endpoint=url).model_info(repository, revision=revision)
    everything = tuple(sibling.rfilename for sibling in info.siblings or ())
    prefix = f"{subfolder}/" if subfolder else ""
    present = frozenset(name.removeprefix(prefix) for name in everything if name.startswith(prefix))
    return _Remote(
        repository=repository, commit=str(info.sha), url=url, prefix=prefix, present=present, everything=everything
    )
