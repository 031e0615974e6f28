"""A small Hugging Face Hub on localhost that serves the unmodified ``huggingface_hub`` client over real HTTP.

It has repositories with branches, tags and commits; large files through the LFS batch protocol (in one piece or in
parts) or through Xet with a local store; tokens, private and gated repositories; and the error codes that the client
distinguishes. It follows the client's source (huggingface_hub 2.4). :attr:`Hub.fail` makes requests fail.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


@dataclass(frozen=True)
class Blob:
    """A file at a commit: the content of a small file, or the SHA-256 of a large one."""

    content: bytes | None = None
    sha256: str | None = None
    size: int = 0

    @property
    def oid(self) -> str:
        text = self.content if self.content is not None else self.pointer
        return hashlib.sha1(b"blob %d\0" % len(text) + text).hexdigest()

    @property
    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()


@dataclass
class Repo:
    """A repository; a commit is a whole tree from path to blob."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, tree: dict[str, Blob]) -> str:
        oid = hashlib.sha1(f"{branch}{len(self.commits)}{sorted(tree)}{time.time_ns()}".encode()).hexdigest()
        self.commits[oid] = tree
        self.branches[branch] = oid
        return oid

    def resolve(self, revision: str) -> str | None:
        refs = {**self.tags, **self.branches, **{oid: oid for oid in self.commits}}
        return refs.get(revision)


class HubError(Exception):
    """An error response."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Hub:
    """The server and its state; use it as ``with Hub() as hub: hub.url``.

    Attributes:
        tokens: The names (user, organisations) that each token may write to. Every token may read.
        readers: Tokens that may read gated repositories.
        requests: Method and path of every request, in order.
        fail: Called with method and path before a request is served. It returns a status to fail with, ``"drop"``
            to close the connection, or None.
        multipart: Objects above this size are uploaded in parts of this size.
        faults: Bugs in this server; the first one is raised when it stops.
        xet: Folder of a Xet store. Clients with Xet write large files there and read them from there.
    """

    def __init__(self, multipart: int = 5 << 20, xet: Path | None = None) -> None:
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.tokens: dict[str, set[str]] = {}
        self.readers: set[str] = set()
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Exception] = []
        self.fail: Callable[[str, str], int | str | None] = lambda method, path: None
        self.multipart = multipart
        self.xet = xet
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        if self.faults:
            raise self.faults[0]

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """Return the content of every file at a revision, except ``.gitattributes``."""
        state = self.repos[repo]
        tree = state.commits[state.resolve(revision)]
        return {
            path: self.large[blob.sha256] if blob.content is None else blob.content
            for path, blob in tree.items()
            if path != ".gitattributes"
        }


def point_client_at(hub: Hub, monkeypatch: Any, home: Path) -> None:
    """Configure the client in this process for a Hub, as HF_ENDPOINT and HF_HUB_CACHE would when it starts."""
    import huggingface_hub.constants

    settings = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(home / "cache"),
        "HF_HUB_DISABLE_XET": True,
        "HF_TOKEN_PATH": str(home / "no-token"),
    }
    for name, value in settings.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)
    monkeypatch.setenv("HF_TOKEN", next(iter(hub.tokens), ""))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")


class Handler(BaseHTTPRequestHandler):
    """Handles one request; ROUTES maps paths to methods."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.query = parse_qs(urlsplit(self.path).query)
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length) if length else self._chunked()
        self.hub.requests.append((self.command, path))
        failure = self.hub.fail(self.command, path)
        if failure == "drop":
            self.close_connection = True
            return
        try:
            if failure is not None:
                raise HubError(int(failure), "the server was told to fail")
            for method, pattern, name in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method.split("|"):
                    with self.hub.lock:
                        getattr(self, name)(**match.groupdict())
                    return
            raise HubError(404, f"no route {self.command} {path}")
        except HubError as error:
            headers = {"X-Error-Message": str(error), **({"X-Error-Code": error.code} if error.code else {})}
            self._json({"error": str(error)}, error.status, headers)
        except BrokenPipeError:
            self.close_connection = True
        except Exception as error:
            self.hub.faults.append(error)
            self._json({"error": repr(error)}, 400)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _serve  # noqa: N815

    def _chunked(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return b""
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    # -- answers ------------------------------------------------------------------------------------------------------

    def _send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    # -- permissions --------------------------------------------------------------------------------------------------

    def _token(self) -> str | None:
        header = self.headers.get("Authorization", "")
        token = header.removeprefix("Bearer ") or None
        if token is not None and token not in self.hub.tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        return token

    def _writer(self, repo_id: str) -> None:
        token = self._token()
        if token is None:
            raise HubError(401, "Invalid username or password.")
        if repo_id.split("/")[0] not in self.hub.tokens[token]:
            raise HubError(403, f'You don\'t have the rights to create a model under the namespace "{repo_id}"')

    def _repo(self, repo_id: str, content: bool = False) -> Repo:
        token = self._token()
        repo = self.hub.repos.get(repo_id)
        may_write = token is not None and repo_id.split("/")[0] in self.hub.tokens[token]
        if repo is None or (repo.private and not may_write):
            raise HubError(401 if token is None else 404, "Repository not found", "RepoNotFound")
        if content and repo.gated and not may_write and token not in self.hub.readers:
            status = 401 if token is None else 403
            raise HubError(status, f"Access to model {repo_id} is restricted.", "GatedRepo")
        return repo

    def _commit_of(self, repo: Repo, revision: str) -> str:
        oid = repo.resolve(revision)
        if oid is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid

    # -- repositories -------------------------------------------------------------------------------------------------

    def whoami(self) -> None:
        token = self._token()
        if token is None:
            raise HubError(401, "Invalid username or password.")
        names = sorted(self.hub.tokens[token])
        self._json({"type": "user", "name": names[0], "orgs": [{"name": name} for name in names]})

    def create(self) -> None:
        asked = json.loads(self.body)
        token = self._token()
        owner = asked.get("organization") or (sorted(self.hub.tokens[token])[0] if token else "nobody")
        repo_id = f"{owner}/{asked['name']}"
        self._writer(repo_id)
        url = f"{self.hub.url}/{repo_id}"
        if repo_id in self.hub.repos:
            self._json({"error": "You already created this model repo", "url": url}, 409)
            return
        repo = Repo(private=asked.get("visibility") == "private" or bool(asked.get("private")))
        repo.commit("main", {".gitattributes": Blob(ATTRIBUTES, size=len(ATTRIBUTES))})
        self.hub.repos[repo_id] = repo
        self._json({"url": url, "name": repo_id})

    def delete(self) -> None:
        asked = json.loads(self.body)
        repo_id = f"{asked['organization']}/{asked['name']}"
        self._writer(repo_id)
        self._repo(repo_id)
        del self.hub.repos[repo_id]
        self._json({})

    def info(self, repo: str, revision: str | None = None) -> None:
        state = self._repo(repo)
        oid = self._commit_of(state, revision or "main")
        self._json(
            {
                "id": repo,
                "modelId": repo,
                "sha": oid,
                "private": state.private,
                "gated": "manual" if state.gated else False,
                "tags": [],
                "siblings": [{"rfilename": path} for path in state.commits[oid]],
            }
        )

    def refs(self, repo: str) -> None:
        state = self._repo(repo)
        self._json(
            {
                kind: [
                    {"name": name, "ref": f"refs/{where}/{name}", "targetCommit": oid} for name, oid in refs.items()
                ]
                for kind, where, refs in (("branches", "heads", state.branches), ("tags", "tags", state.tags))
            }
            | {"converts": []}
        )

    def branch(self, repo: str, name: str) -> None:
        self._writer(repo)
        state = self._repo(repo)
        if self.command == "DELETE":
            if name == "main" or state.branches.pop(name, None) is None:
                raise HubError(404, "no such branch", "RevisionNotFound")
        else:
            if name in state.branches:
                raise HubError(409, f"Reference already exists: {name}")
            state.branches[name] = self._commit_of(
                state, json.loads(self.body or b"{}").get("startingPoint") or "main"
            )
        self._json({})

    def tag(self, repo: str, revision: str) -> None:
        self._writer(repo)
        state = self._repo(repo)
        if self.command == "DELETE":
            if state.tags.pop(revision, None) is None:
                raise HubError(404, "no such tag", "RevisionNotFound")
        else:
            name = json.loads(self.body)["tag"]
            if name in state.tags:
                raise HubError(409, "Tag reference exists already")
            state.tags[name] = self._commit_of(state, revision)
        self._json({})

    # -- reading ------------------------------------------------------------------------------------------------------

    def _entry(self, path: str, blob: Blob) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": blob.size, "oid": blob.oid}
        if blob.sha256:
            entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": len(blob.pointer)}
        return entry

    def tree(self, repo: str, revision: str, folder: str | None = None) -> None:
        state = self._repo(repo)
        files = state.commits[self._commit_of(state, revision)]
        inside = {path: blob for path, blob in files.items() if folder is None or path.startswith(folder + "/")}
        if folder is not None and not inside:
            raise HubError(404, f"{folder} does not exist", "EntryNotFound")
        depth = 0 if folder is None else folder.count("/") + 1
        if self.query.get("recursive", ["false"])[0].lower() == "true":
            self._json([self._entry(path, blob) for path, blob in inside.items()])
            return
        folders = sorted({path.rsplit("/", 1)[0] for path in inside if path.count("/") > depth})
        entries = [self._entry(path, blob) for path, blob in inside.items() if path.count("/") == depth]
        self._json([{"type": "directory", "path": name, "size": 0, "oid": "0" * 40} for name in folders] + entries)

    def paths_info(self, repo: str, revision: str) -> None:
        state = self._repo(repo)
        files = state.commits[self._commit_of(state, revision)]
        asked = json.loads(self.body)["paths"]
        self._json([self._entry(path, files[path]) for path in asked if path in files])

    def resolve(self, repo: str, revision: str, path: str) -> None:
        state = self._repo(repo, content=True)
        oid = self._commit_of(state, revision)
        blob = state.commits[oid].get(path)
        if blob is None:
            raise HubError(404, f"{path} does not exist", "EntryNotFound")
        headers = {"X-Repo-Commit": oid, "Accept-Ranges": "bytes"}
        if blob.content is not None:
            self._ranged(blob.content, {**headers, "ETag": f'"{blob.oid}"'})
            return
        headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
        if blob.sha256 not in self.hub.large:
            headers["X-Xet-Hash"] = xet_files(self.hub.xet)[blob.sha256]
            headers["X-Xet-Refresh-Route"] = f"{self.hub.url}/api/models/{repo}/xet-read-token/{oid}"
        cdn = self.hub.url.replace("127.0.0.1", "localhost")  # another host name, as on the real Hub
        self._send(b"", 302, {**headers, "Location": f"{cdn}/cdn/{blob.sha256}"})

    def cdn(self, sha256: str) -> None:
        self._ranged(self.hub.large[sha256], {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})

    def _ranged(self, content: bytes, headers: dict[str, str]) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not match:
            self._send(content, 200, headers)
            return
        first, last = int(match[1]), int(match[2] or len(content) - 1)
        part = content[first : last + 1]
        self._send(part, 206, {**headers, "Content-Range": f"bytes {first}-{last}/{len(content)}"})

    # -- writing ------------------------------------------------------------------------------------------------------

    def validate_yaml(self) -> None:
        errors = [{"message": wrong} for wrong in card_errors(json.loads(self.body)["content"])]
        self._json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def preupload(self, repo: str, revision: str) -> None:
        self._writer(repo)
        state = self._repo(repo)
        tree = state.commits[self._commit_of(state, revision)]
        answer = []
        for file in json.loads(self.body)["files"]:
            blob = tree.get(file["path"])
            mode = "lfs" if file["path"].endswith((".safetensors", ".onnx")) or file["size"] > 10 << 20 else "regular"
            oid = {"oid": blob.sha256 or blob.oid} if blob else {}
            answer.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **oid})
        self._json({"files": answer})

    def batch(self, repo: str) -> None:
        self._writer(repo)
        self._repo(repo)
        objects = []
        for item in json.loads(self.body)["objects"]:
            sha256, size = item["oid"], item["size"]
            if sha256 not in self.hub.large:
                verify = {"href": f"{self.hub.url}/lfs/{sha256}/verify"}
                upload: dict[str, Any] = {"href": f"{self.hub.url}/lfs/{sha256}"}
                if size > self.hub.multipart:
                    count = -(-size // self.hub.multipart)
                    parts = {f"{part:05d}": f"{self.hub.url}/lfs/{sha256}/{part}" for part in range(1, count + 1)}
                    upload = {
                        "href": f"{self.hub.url}/lfs/{sha256}/complete",
                        "header": {"chunk_size": str(self.hub.multipart), **parts},
                    }
                item = {**item, "actions": {"upload": upload, "verify": verify}}
            objects.append(item)
        self._json({"transfer": "basic", "objects": objects})

    def put(self, sha256: str, part: str | None = None) -> None:
        if part is not None:
            self.hub.parts.setdefault(sha256, {})[int(part)] = self.body
            self._send(b"", 200, {"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'})
            return
        self._keep(sha256, self.body)
        self._send(b"")

    def complete(self, sha256: str) -> None:
        numbers = [part["partNumber"] for part in json.loads(self.body)["parts"]]
        parts = self.hub.parts.pop(sha256)
        self._keep(sha256, b"".join(parts[number] for number in numbers))
        self._json({})

    def _keep(self, sha256: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != sha256:
            raise HubError(400, "the content is not what was announced")
        self.hub.large[sha256] = content

    def verify(self, sha256: str) -> None:
        asked = json.loads(self.body)
        if len(self.hub.large.get(sha256, b"")) != asked["size"]:
            raise HubError(404, "no such object")
        self._json({})

    def commit(self, repo: str, revision: str) -> None:
        self._writer(repo)
        state = self._repo(repo)
        if revision not in state.branches:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        lines = [json.loads(line) for line in self.body.splitlines()]
        head = next(line["value"] for line in lines if line["key"] == "header")
        if head.get("parentCommit") not in (None, state.branches[revision]):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        tree = dict(state.commits[state.branches[revision]])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                content = base64.b64decode(value["content"])
                tree[value["path"]] = Blob(content, size=len(content))
            elif line["key"] == "lfsFile":
                if value["oid"] not in {*self.hub.large, *xet_files(self.hub.xet)}:
                    raise HubError(400, f"LFS object {value['oid']} was not uploaded")
                tree[value["path"]] = Blob(sha256=value["oid"], size=value["size"])
            elif line["key"] == "deletedFile":
                if tree.pop(value["path"], None) is None:
                    raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
        oid = state.commit(revision, tree)
        self._json({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{repo}/commit/{oid}"})

    def xet_token(self, repo: str, kind: str, revision: str) -> None:
        if self.hub.xet is None:
            raise HubError(404, "no Xet here")
        if kind == "write":
            self._writer(repo)
        self._repo(repo, content=True)
        answer = {"casUrl": f"local://{self.hub.xet}", "exp": int(time.time()) + 3600, "accessToken": "xet"}
        names = {"casUrl": "X-Xet-Cas-Url", "exp": "X-Xet-Token-Expiration", "accessToken": "X-Xet-Access-Token"}
        self._json(answer, 200, {names[name]: str(value) for name, value in answer.items()})


LICENSES = {"apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "cc0-1.0", "odc-by", "llama3.1", "gemma", "other"}
RELATIONS = {"adapter", "finetune", "merge", "quantized"}
PIPELINES = {"sentence-similarity", "feature-extraction", "image-feature-extraction"}


def card_errors(content: str) -> list[str]:
    """Return the violations of the Hub's documented rules for the metadata of a model card."""
    parts = content.split("---\n")
    try:
        data = yaml.safe_load(parts[1]) if len(parts) > 2 else None
    except yaml.YAMLError as error:
        return [f"the metadata is no YAML: {error}"]
    if not isinstance(data, dict):
        return ["the metadata is no mapping"]
    wrong = []
    for name, known in (("license", LICENSES), ("base_model_relation", RELATIONS), ("pipeline_tag", PIPELINES)):
        if name in data and data[name] not in known:
            wrong.append(f"{name}: {data[name]!r} is not one of {sorted(known)}")
    ids = [data.get("base_model"), *(data.get("datasets") or [])]
    wrong += [f"{name!r} is no repository id" for name in ids if name and not re.fullmatch(r"[\w.-]+/[\w.-]+", name)]
    for model in data.get("model-index") or []:
        for result in model["results"]:
            if not (
                {"type"} <= set(result["task"]) and {"type", "name"} <= set(result["dataset"]) and result["metrics"]
            ):
                wrong.append("model-index: a result lacks its task, dataset or metrics")
    return wrong


def xet_files(store: Path | None) -> dict[str, str]:
    """Map SHA-256 to Xet hash for every file in a store, read from its shards (see the Xet protocol specification)."""
    found: dict[str, str] = {}
    for path in [] if store is None else store.rglob("shards/*.mdb"):
        shard, place = path.read_bytes(), 48
        while shard[place : place + 32] != b"\xff" * 32:
            file, flags, count = shard[place : place + 32], *struct.unpack_from("<II", shard, place + 32)
            has_checks, has_sha256 = flags >> 31 & 1, flags >> 30 & 1
            place += 48 * (1 + count * (1 + has_checks))
            if has_sha256:
                found[_hex(shard[place : place + 32])] = _hex(file)
                place += 48
    return found


def _hex(hash_: bytes) -> str:
    """Format a hash as Xet does: four little-endian numbers of eight bytes."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", hash_))


_ID = r"(?P<repo>[\w.-]+/[\w.-]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("DELETE", r"/api/repos/delete", "delete"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("POST", rf"/api/models/{_ID}/preupload/(?P<revision>.+)", "preupload"),
    ("POST", rf"/api/models/{_ID}/commit/(?P<revision>.+)", "commit"),
    ("POST|DELETE", rf"/api/models/{_ID}/branch/(?P<name>.+)", "branch"),
    ("POST|DELETE", rf"/api/models/{_ID}/tag/(?P<revision>.+)", "tag"),
    ("GET", rf"/api/models/{_ID}/refs", "refs"),
    ("GET", rf"/api/models/{_ID}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", "tree"),
    ("POST", rf"/api/models/{_ID}/paths-info/(?P<revision>.+)", "paths_info"),
    ("GET", rf"/api/models/{_ID}/revision/(?P<revision>.+)", "info"),
    ("GET", rf"/api/models/{_ID}/xet-(?P<kind>read|write)-token/(?P<revision>.+)", "xet_token"),
    ("GET", rf"/api/models/{_ID}", "info"),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/lfs/(?P<sha256>\w+)(/(?P<part>\d+))?", "put"),
    ("POST", r"/lfs/(?P<sha256>\w+)/complete", "complete"),
    ("POST", r"/lfs/(?P<sha256>\w+)/verify", "verify"),
    ("GET|HEAD", r"/cdn/(?P<sha256>\w+)", "cdn"),
    ("GET|HEAD", rf"/{_ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]
