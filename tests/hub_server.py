"""A small Hub-protocol server on loopback, in memory: enough for the real huggingface_hub client to
publish and to pull.

Repositories are lists of commits; a commit is a whole tree. Large files go through LFS (files of LFS_FROM bytes and
more); there is no Xet. Identities are the Hub's: a regular file is known by its git blob id, a large one by its sha256.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LFS_FROM = 2000


@dataclass
class Commit:
    oid: str
    message: str
    tree: dict[str, bytes]


@dataclass
class Repository:
    commits: list[Commit] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    def at(self, revision: str) -> Commit | None:
        wanted = self.tags.get(revision, revision)
        if wanted in ("main", "HEAD"):
            return self.commits[-1]
        return next((commit for commit in self.commits if commit.oid == wanted), None)


class HubServer:
    """Use as a context manager; `repositories` is what is stored, `fail_commits` and `fail_tags`
    answer those with a status. `redirect` is where files are said to be.

    `before_commit` runs when a commit arrives, before it is looked at: the place for somebody else to be faster.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.fail_commits: int | None = None
        self.fail_tags: int | None = None
        self.redirect: str | None = None
        self.before_commit: Callable[[], None] = lambda: None
        self.requests: list[str] = []
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HubServer:
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, name: str, tree: dict[str, bytes], message: str = "by hand") -> str:
        """Commit a tree by hand and return its id."""
        repository = self.repositories.setdefault(name, Repository([_commit({}, "first")]))
        repository.commits.append(_commit(tree, message, len(repository.commits)))
        return repository.commits[-1].oid


def _oid(data: bytes) -> str:
    """What the Hub knows a file by."""
    if len(data) >= LFS_FROM:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _commit(tree: dict[str, bytes], message: str, count: int = 0) -> Commit:
    content = json.dumps(
        [message, count, {name: hashlib.sha256(data).hexdigest() for name, data in sorted(tree.items())}]
    )
    return Commit(hashlib.sha1(content.encode()).hexdigest(), message, dict(tree))


class _Handler(BaseHTTPRequestHandler):
    server_hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the library's name
        self.server_hub.requests.append(format % arguments)

    def do_GET(self) -> None:
        self._get(body=True)

    def do_HEAD(self) -> None:
        self._get(body=False)

    def do_PUT(self) -> None:
        self.server_hub.large[self._parts()[-1]] = self._body()
        self._json({})

    def do_POST(self) -> None:
        parts, body = self._parts(), self._body()
        if parts[:3] == ["api", "repos", "create"]:
            self._create(json.loads(body))
        elif parts[:2] == ["api", "validate-yaml"]:
            self._json({"errors": [], "warnings": []})
        elif parts[-3:] == ["lfs", "objects", "batch"]:
            self._batch(json.loads(body))
        elif parts[:2] == ["api", "models"] and len(parts) > 5:
            getattr(self, "_" + parts[4].replace("-", "_"))("/".join(parts[2:4]), parts[5], body)
        else:
            self._json({"error": "no such thing"}, 404)

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        exists = name in self.server_hub.repositories
        self.server_hub.repositories.setdefault(name, Repository([_commit({}, "first")]))
        self._json({"url": f"{self.server_hub.url}/{name}", "error": "exists"}, 409 if exists else 200)

    def _preupload(self, name: str, revision: str, body: bytes) -> None:
        tree = self.server_hub.repositories[name].commits[-1].tree
        files = [
            {
                "path": f["path"],
                "uploadMode": "lfs" if f["size"] >= LFS_FROM else "regular",
                "shouldIgnore": False,
                **({"oid": _oid(tree[f["path"]])} if f["path"] in tree else {}),
            }
            for f in json.loads(body)["files"]
        ]
        self._json({"files": files})

    def _batch(self, wanted: dict[str, Any]) -> None:
        objects = []
        for item in wanted["objects"]:
            action = {"upload": {"href": f"{self.server_hub.url}/lfs/{item['oid']}"}}
            known = item["oid"] in self.server_hub.large
            objects.append({**item} if known else {**item, "actions": action})
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, name: str, revision: str, body: bytes) -> None:
        hub = self.server_hub
        if hub.fail_commits is not None:
            self._json({"error": "told to fail"}, hub.fail_commits)
            return
        hub.before_commit()
        repository = hub.repositories[name]
        entries = [(entry["key"], entry["value"]) for entry in map(json.loads, body.decode().splitlines())]
        header = dict(entries)["header"]
        if header.get("parentCommit") not in (None, repository.commits[-1].oid):
            self._json({"error": "the head has moved"}, 412)
            return
        tree, message = dict(repository.commits[-1].tree), header["summary"]
        for key, value in entries:
            if key == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                tree[value["path"]] = hub.large[value["oid"]]
            elif key == "deletedFile":
                del tree[value["path"]]
        if tree != repository.commits[-1].tree:
            repository.commits.append(_commit(tree, message, len(repository.commits)))
        oid = repository.commits[-1].oid
        self._json({"commitUrl": f"{hub.url}/{name}/commit/{oid}", "commitOid": oid})

    def _tag(self, name: str, revision: str, body: bytes) -> None:
        repository, tag = self.server_hub.repositories[name], json.loads(body)["tag"]
        if self.server_hub.fail_tags is not None:
            self._json({"error": "told to fail"}, self.server_hub.fail_tags)
            return
        if tag in repository.tags:
            self._json({"error": "exists"}, 409)
            return
        repository.tags[tag] = revision
        self._json({})

    def _get(self, *, body: bool) -> None:
        parts = self._parts()
        api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if api else parts[:2])
        repository = self.server_hub.repositories.get(name)
        if repository is None:
            self._json({"error": "no such repository"}, 404, {"X-Error-Code": "RepoNotFound"})
            return
        if api and parts[4:] == ["refs"]:
            self._refs(repository)
            return
        if api and parts[4:5] == ["xet-write-token"]:
            self._json({"error": "no Xet here"}, 404, {"X-Error-Message": "Xet is not enabled here"})
            return
        revision = unquote(parts[5]) if api and len(parts) > 5 else unquote(parts[3]) if not api else "main"
        commit = repository.at(revision)
        if commit is None:
            self._json({"error": "no such revision"}, 404, {"X-Error-Code": "RevisionNotFound"})
        elif api and parts[4:5] == ["tree"]:
            self._json(
                [
                    {"type": "file", "path": path, "size": len(data), "oid": _oid(data)}
                    for path, data in commit.tree.items()
                ]
            )
        elif api:
            siblings = [{"rfilename": path} for path in commit.tree]
            self._json({"id": name, "sha": commit.oid, "private": False, "tags": [], "siblings": siblings})
        else:
            self._file(commit, unquote("/".join(parts[4:])), body=body)

    def _refs(self, repository: Repository) -> None:
        tags = [{"name": t, "ref": f"refs/tags/{t}", "targetCommit": oid} for t, oid in repository.tags.items()]
        main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repository.commits[-1].oid}
        self._json({"branches": [main], "converts": [], "tags": tags})

    def _file(self, commit: Commit, path: str, *, body: bool) -> None:
        headers = {"X-Repo-Commit": commit.oid}
        if path not in commit.tree:
            self._json({"error": "no such file"}, 404, {**headers, "X-Error-Code": "EntryNotFound"})
            return
        data = commit.tree[path]
        headers |= {"ETag": f'"{_oid(data)}"', "Content-Length": str(len(data))}
        if (place := self.server_hub.redirect) is not None:
            size = headers.pop("Content-Length")
            self._send(302, b"", {**headers, "Location": place, "X-Linked-Size": size})
            return
        self._send(200, data if body else b"", headers)

    def _parts(self) -> list[str]:
        return urlsplit(self.path).path.strip("/").split("/")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        common = {"Content-Type": "application/json", "Content-Length": str(len(data))}
        self._send(status, b"" if self.command == "HEAD" else data, {**common, **(headers or {})})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
