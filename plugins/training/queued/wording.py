"""An error of a training job in words for those who submitted it, who may have no shell on this machine."""

from __future__ import annotations

import re

from tunery.plugins.training.folder import JobFolder

__all__ = ["queued_wording"]

FORCE = re.compile(r"tunery train --resume \S+ --force")
RESUME = re.compile(r"tunery train --resume (\S+)")
ALLOW = re.compile(r"--allow [\w.-]+(?: --allow [\w.-]+)*")


def queued_wording(error: str, folder: JobFolder) -> str:
    """The error with uploaded files by their names, and with what a queued job takes instead of `tunery train`'s
    options."""
    place = re.escape(str(folder.path))
    error = re.sub(place + r"/data/\d+/", "", error)
    error = re.sub(place, folder.path.name, error)
    error = FORCE.sub("submit the job again with force", error)
    error = RESUME.sub(r"tunery jobs resume \1", error)
    return ALLOW.sub(lambda options: "submit with allow: " + ", ".join(options[0].split()[1::2]), error)
