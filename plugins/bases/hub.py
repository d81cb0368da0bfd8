"""Import a base from the Hugging Face Hub at a revision."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from tunery.plugins.bases.folder import copy_base
from tunery.plugins.bases.validation import INDEX, SETTINGS, check_config
from tunery.registry.errors import ArtifactRefused, NotFound, TuneryError, Unavailable
from tunery.registry.hub.client import HUB, no_revision, parse_hub
from tunery.registry.hub.redirects import guard_redirects

__all__ = ["fetch", "fill", "reachable"]


def fill(reference: str, folder: Path) -> str:
    """Copy `organisation/name`, with a subfolder as `organisation/name/sub/folder`, at a revision as `…@revision`, into
    `folder`."""
    repository, subfolder, revision = parse_hub(reference)
    snapshot = fetch(repository, revision, subfolder)
    copy_base(snapshot / subfolder, folder)
    return f"from the Hub, {reference.partition('@')[0]} at commit {snapshot.name[:12]}"


def fetch(repository: str, revision: str | None, subfolder: str = "") -> Path:
    """Download the model in `subfolder` of a repository, unless it is cached; return the repository's folder.

    Raises NotFound, ArtifactRefused, or Unavailable where the Hub cannot be reached and the cache does not have it.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    within = f"{subfolder}/" if subfolder else ""
    with _hub_errors(repository, revision, subfolder):
        offline = not reachable()
        endpoint = os.environ.get("HF_ENDPOINT")
        guard_redirects(endpoint or HUB)
        # The configuration first: it says whether the rest can be served.
        config = hf_hub_download(
            repository, f"{within}config.json", revision=revision, local_files_only=offline, endpoint=endpoint
        )
        check_config(Path(config).parent, repository)
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=[f"{within}{name}" for name in (*SETTINGS, "*.safetensors", INDEX)],
                ignore_patterns=[f"{within}{name}" for name in ("consolidated*", "adapter_model*")],
                local_files_only=offline,
                endpoint=endpoint,
            )
        )


@contextmanager
def _hub_errors(repository: str, revision: str | None, subfolder: str) -> Iterator[None]:
    """Turn the Hub client's errors into ours, with what to do next."""
    import httpx2
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except RevisionNotFoundError as error:
        raise no_revision(repository, revision, os.environ.get("HF_ENDPOINT")) from error
    except RepositoryNotFoundError as error:
        raise NotFound(
            f"the Hub has no model {repository} that you may read; check the name, or log in with `hf auth login`",
            code="base_not_found",
        ) from error
    except RemoteEntryNotFoundError as error:
        raise _without_config(repository, revision, subfolder) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, httpx2.InvalidURL, OSError) as error:
        raise Unavailable(
            f"{repository} is not in the local cache and the Hub cannot be reached; try again with a network, or add "
            "a local folder or GGUF file instead",
            code="hub_unreachable",
        ) from error


def _without_config(repository: str, revision: str | None, subfolder: str) -> TuneryError:
    """The error for a repository, or a folder of one, without config.json."""
    if subfolder:
        return NotFound(
            f"{repository} at {revision or 'main'} has no model in a folder {subfolder}; look at its files on the Hub",
            code="base_not_found",
        )
    return ArtifactRefused(
        f"{repository} has no config.json: it is not a model as transformers saves it", code="not_a_base"
    )


def reachable(timeout: float = 2.0) -> bool:
    """Whether a connection to the Hub's endpoint can be made within `timeout` seconds."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return False
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    proxy = getproxies().get(endpoint.scheme)
    if proxy and not proxy_bypass(endpoint.hostname or ""):
        # Behind a proxy the Hub's own address may lead nowhere; the proxy is what must answer.
        endpoint = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    try:
        port = endpoint.port or (443 if endpoint.scheme == "https" else 80)
        with socket.create_connection((endpoint.hostname or "", port), timeout=timeout):
            return True
    except (OSError, ValueError):
        return False
