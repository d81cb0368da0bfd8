"""Talk to a Hub: choose the endpoint, use plain LFS where there is no Xet, and turn its failures into our errors."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from tunery.registry.errors import Conflict, InvalidInput, NotFound, StorageFailed, TuneryError, Unavailable
from tunery.registry.hub.redirects import guard_redirects

__all__ = ["HUB", "hub", "no_revision", "parse_hub"]

HUB = "https://huggingface.co"

# Errors of a disk, not of a network.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


def parse_hub(source: str) -> tuple[str, str, str | None]:
    """Repository, subfolder and revision of `organisation/name[/sub/folder][@revision]`; raise InvalidInput."""
    place, _, revision = source.partition("@")
    parts = place.split("/")
    if len(parts) < 2 or not all(parts) or ".." in parts:
        raise InvalidInput(
            f"{source!r} is not a Hub repository: write organisation/name, organisation/name@revision, or "
            "organisation/name/folder for a subfolder of it"
        )
    return "/".join(parts[:2]), "/".join(parts[2:]), revision or None


def no_revision(repository: str, revision: str | None, endpoint: str | None) -> NotFound:
    """The error for a repository that has no such revision; lists those it has."""
    from huggingface_hub import HfApi

    try:
        refs = HfApi(endpoint=endpoint or os.environ.get("HF_ENDPOINT")).list_repo_refs(repository)
        has = (
            f"it has {', '.join([ref.name for ref in (*refs.branches, *refs.tags)][:8])}, and its commits by their ids"
        )
    except Exception:  # only the message would be better
        has = "look at its branches and tags on the Hub"
    return NotFound(f"{repository} has no revision {revision or 'main'!r}: {has}", code="hub_revision_not_found")


@contextmanager
def hub(endpoint: str | None, repository: str, revision: str | None = None) -> Iterator[str]:
    """The endpoint to use: `endpoint`, else `HF_ENDPOINT`, else the public Hub. Errors in the block become ours.

    NotFound (hub_not_found, hub_revision_not_found), InvalidInput (hub_forbidden, or a name that the Hub does not
    accept), Conflict (hub_conflict), StorageFailed for this machine's disk, and Unavailable (hub_unreachable,
    hub_failed).
    """
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
    guard_redirects(url)
    before = constants.HF_HUB_DISABLE_XET
    # Read at each call; servers other than the Hub's own speak plain LFS.
    constants.HF_HUB_DISABLE_XET = before or urlsplit(url).hostname != urlsplit(HUB).hostname
    try:
        yield url
    except RevisionNotFoundError as error:
        raise no_revision(repository, revision, url) from error
    except RepositoryNotFoundError as error:
        raise NotFound(
            f"{repository} is not on {url}, or you may not see it (log in with `hf auth login`, or set HF_TOKEN)",
            code="hub_not_found",
        ) from error
    except HFValidationError as error:
        raise InvalidInput(f"{repository!r} is not a name the Hub accepts: {error}") from error
    except HfHubHTTPError as error:
        raise _refused(error, repository, url) from error
    except TuneryError:
        raise
    except (LocalTokenNotFoundError, OfflineModeIsEnabled, httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        if isinstance(error, OSError) and error.errno in _DISK:
            raise StorageFailed(f"{error.filename or 'this disk'}: {error.strerror}; nothing was changed") from error
        raise Unavailable(
            f"the Hub at {url} cannot be reached ({type(error).__name__}); check the network, HF_ENDPOINT and "
            "HF_HUB_OFFLINE, and try again: nothing was changed here",
            code="hub_unreachable",
        ) from error
    finally:
        constants.HF_HUB_DISABLE_XET = before


def _refused(error: Any, repository: str, url: str) -> TuneryError:
    status = getattr(error.response, "status_code", 0)
    message = getattr(error, "server_message", None) or ""
    if status in (401, 403):
        return InvalidInput(
            f"{url} does not let you use {repository} ({status} {message}): log in with `hf auth login`, or set "
            "HF_TOKEN to a token that may",
            code="hub_forbidden",
        )
    if status in (409, 412):
        return Conflict(f"somebody else keeps changing {repository}; publish again", code="hub_conflict")
    return Unavailable(
        f"{url} answered {status} {message}; try again later: nothing was changed here", code="hub_failed"
    )
