"""A Hub on this machine: the HTTP API that huggingface_hub speaks, repositories in memory.

    with HubServer() as hub:                 its address is hub.url
        hub.fail("PUT /lfs", "reset")        every such request from now on goes wrong
        hub.files("user/name")               {path: bytes} of a branch

Files as in a git repository (base64 in a commit) and files of the large file storage (a PUT each),
cards checked as the Hub checks them, tokens looked at, commits kept. Data sets are read like
models, by their own addresses. What is not there: Xet, discussions, spaces.
"""

import base64
import fnmatch
import hashlib
import json
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote

import yaml

TOKEN = "hf_" + "t0kenOfTheLocalTestHub"
USER = "user"
# As .gitattributes says.
LARGE = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.parquet", "tokenizer.json")
NAME = r"(?P<repo>[\w.-]+/[\w.-]+)"
MODELS = f"/api/models/{NAME}"


@dataclass
class Repo:
    """One model: `commits` by their hash, `branches` by name, the newest commit of each."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)  # title of every commit, oldest first

    def commit(self, branch: str, files: dict[str, bytes], title: str) -> str:
        name = hashlib.sha1(f"{title}{len(self.commits)}".encode()).hexdigest()
        self.commits[name] = files
        self.branches[branch] = name
        self.log.append(title)
        return name

    def find(self, revision: str) -> str | None:
        known = self.branches.get(revision, revision)
        return known if known in self.commits else None


class HubServer:
    """The server in a thread; use it with `with`."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.stored: dict[str, bytes] = {}  # the large file storage, by SHA-256
        self.requests: list[str] = []  # "METHOD /path" of every request
        self.bodies: list[bytes] = []
        self.released = threading.Event()  # lets those go who wait for an answer
        self._faults: list[tuple[str, int | str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Hub,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def fail(self, request: str, how: int | str) -> None:
        """Answer requests that match the regular expression with a status, "timeout" (no answer at
        all) or "reset" (the connection breaks in the middle of the body)."""
        self._faults.append((request, how))

    def fault(self, request: str) -> int | str | None:
        return next((how for pattern, how in self._faults if re.search(pattern, request)), None)

    def heal(self) -> None:
        self._faults.clear()

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        found = self.repos[repo]
        return found.commits[found.find(revision)]

    def add(self, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """A repository as somebody else has filled it; the hash of its commit."""
        return self.repos.setdefault(repo, Repo()).commit(branch, files, "by somebody else")


class _Hub(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_HEAD = do_GET

    def log_message(self, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        path = unquote(self.path.partition("?")[0])
        path = re.sub("^/api/datasets/", "/api/models/", path)
        path = re.sub("^/datasets/", "/", path)
        request = f"{self.command} {path}"
        self.hub.requests.append(request)
        fault = self.hub.fault(request)
        if fault == "timeout":
            self.hub.released.wait()
            return self._hang_up()
        length = int(self.headers.get("Content-Length", 0))
        if fault == "reset":
            self.rfile.read(length // 2)
            return self._hang_up()
        body = self._body(length)
        self.hub.bodies.append(body)
        if isinstance(fault, int):
            return self._error(fault, f"made to fail with {fault}")
        for route, answer in ROUTES:
            found = re.fullmatch(route, request)
            if found:
                return answer(self, body, **found.groupdict())
        return self._error(404, f"no such page: {request}")

    def _body(self, length: int) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(length)
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    # ---- answers ----

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(json.dumps(content).encode(), {"Content-Type": "application/json"}, status)

    def _error(self, status: int, message: str, code: str | None = None) -> None:
        headers = {"X-Error-Code": code} if code else {}
        headers["X-Error-Message"] = message
        self._send(json.dumps({"error": message}).encode(), headers, status)

    def _send(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _hang_up(self) -> None:
        # With this option a close is a reset.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _may_write(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self._error(401, "Invalid username or password.")
        return False

    def _readable(self, name: str) -> Repo | None:
        """The repository, unless it is missing or private: then the answer is given."""
        repo = self.hub.repos.get(name)
        signed_in = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repo is not None and (signed_in or not repo.private):
            return repo
        self._error(404 if signed_in else 401, "Repository not found", "RepoNotFound")
        return None

    def _at(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repo = self._readable(name)
        if repo is None:
            return None
        commit = repo.find(revision)
        if commit is None:
            self._error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return None
        return commit, repo.commits[commit]

    # ---- pages ----

    def who(self, body: bytes) -> None:
        if self._may_write():
            self._json({"name": USER, "type": "user", "orgs": []})

    def create(self, body: bytes) -> None:
        if not self._may_write():
            return
        asked = json.loads(body)
        name = f"{asked.get('organization') or USER}/{asked['name']}"
        if name in self.hub.repos:
            return self._json({"url": f"{self.hub.url}/{name}", "error": "exists"}, 409)
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.repos[name] = Repo(private=bool(private))
        self.hub.repos[name].commit("main", {".gitattributes": b""}, "initial commit")
        self._json({"url": f"{self.hub.url}/{name}"})

    def branch(self, body: bytes, repo: str, revision: str) -> None:
        if not self._may_write() or (found := self._readable(repo)) is None:
            return
        if revision in found.branches:
            return self._json({"error": "Reference already exists"}, 409)
        found.branches[revision] = found.branches["main"]
        self._json({})

    def check_card(self, body: bytes) -> None:
        mistakes = card_mistakes(json.loads(body)["content"])
        answer = {"errors": [{"message": m} for m in mistakes], "warnings": []}
        self._json(answer, 400 if mistakes else 200)

    def preupload(self, body: bytes, repo: str, revision: str) -> None:
        if not self._may_write() or (found := self._at(repo, revision)) is None:
            return
        there = {path: _oid(path, content) for path, content in found[1].items()}
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if _is_large(file["path"]) else "regular",
                "shouldIgnore": False,
                "oid": there.get(file["path"]),
            }
            for file in json.loads(body)["files"]
        ]
        self._json({"files": files})

    def batch(self, body: bytes, repo: str) -> None:
        if not self._may_write():
            return
        objects = [
            {"oid": o["oid"], "size": o["size"]}
            | (
                {}
                if o["oid"] in self.hub.stored
                else {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{o['oid']}"}}}
            )
            for o in json.loads(body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def store(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._error(400, "the content is not what its name says")
        self.hub.stored[oid] = body
        self._send(b"", {})

    def commit(self, body: bytes, repo: str, revision: str) -> None:
        if not self._may_write() or (found := self._at(repo, revision)) is None:
            return
        files, title = dict(found[1]), ""
        for line in body.splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header":
                title = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
            elif key == "deletedFile":
                files.pop(value["path"])
        oid = self.hub.repos[repo].commit(revision, files, title)
        url = f"{self.hub.url}/{repo}/commit/{oid}"
        self._json({"success": True, "commitOid": oid, "commitUrl": url})

    def info(self, body: bytes, repo: str, revision: str | None = None) -> None:
        if (found := self._at(repo, revision or "main")) is None:
            return
        commit, files = found
        now = "2026-01-01T00:00:00.000Z"
        siblings = [{"rfilename": path} for path in files]
        private = self.hub.repos[repo].private
        about = {"id": repo, "modelId": repo, "sha": commit, "private": private, "tags": []}
        about |= {"lastModified": now, "gated": False, "disabled": False, "downloads": 0}
        self._json(about | {"siblings": siblings})

    def tree(self, body: bytes, repo: str, revision: str, folder: str | None = None) -> None:
        if (found := self._at(repo, revision)) is None:
            return
        inside = f"{folder}/" if folder else ""
        files = {path: content for path, content in found[1].items() if path.startswith(inside)}
        if folder and not files:
            return self._error(404, f"{folder} does not exist", "EntryNotFound")
        if "recursive=true" in self.path.lower():
            return self._json([_entry(path, content) for path, content in files.items()])
        names = dict.fromkeys(path.removeprefix(inside).partition("/")[0] for path in files)
        paths = [inside + name for name in names]
        self._json([_entry(p, files[p]) if p in files else _folder(p) for p in paths])

    def paths_info(self, body: bytes, repo: str, revision: str) -> None:
        if (found := self._at(repo, revision)) is None:
            return
        fields = parse_qs(body.decode())
        asked = fields["paths"] if "paths" in fields else json.loads(body)["paths"]
        files = found[1]
        folders = {str(p) for path in files for p in PurePosixPath(path).parents} - {"."}
        entries = [_entry(path, files[path]) for path in asked if path in files]
        self._json(entries + [_folder(path) for path in asked if path in folders])

    def resolve(self, body: bytes, repo: str, revision: str, path: str) -> None:
        if (found := self._at(repo, revision)) is None:
            return
        commit, files = found
        headers = {"X-Repo-Commit": commit}
        if path not in files:
            headers["X-Error-Code"] = "EntryNotFound"
            return self._send(b"", headers, 404)
        content = files[path]
        self._send(content, headers | {"ETag": f'"{_oid(path, content)}"'})


ROUTES = [
    (r"GET /api/whoami-v2", _Hub.who),
    (r"POST /api/repos/create", _Hub.create),
    (r"POST /api/validate-yaml", _Hub.check_card),
    (rf"POST {MODELS}/branch/(?P<revision>.+)", _Hub.branch),
    (rf"POST {MODELS}/preupload/(?P<revision>.+)", _Hub.preupload),
    (rf"POST {MODELS}/commit/(?P<revision>.+)", _Hub.commit),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", _Hub.batch),
    (r"PUT /lfs/(?P<oid>[0-9a-f]{64})", _Hub.store),
    (rf"GET {MODELS}", _Hub.info),
    (rf"GET {MODELS}/revision/(?P<revision>.+)", _Hub.info),
    (rf"GET {MODELS}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", _Hub.tree),
    (rf"POST {MODELS}/paths-info/(?P<revision>.+)", _Hub.paths_info),
    (rf"(?:GET|HEAD) /{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Hub.resolve),
]


def card_mistakes(card: str) -> list[str]:
    """What the Hub refuses in the metadata of a model card, as its documents describe it."""
    found = re.match(r"---\s*\n(.*?)\n---\s*\n", card, re.DOTALL)
    if found is None:
        return ["the card has no metadata"]
    about = yaml.safe_load(found.group(1))
    mistakes = [
        f'"{name}" must be a list of text'
        for name in ("tags", "datasets")
        if not all(isinstance(item, str) for item in about.get(name, []))
    ]
    for model in about.get("model-index", []):
        if not isinstance(model.get("name"), str) or not model.get("results"):
            mistakes.append('"model-index" needs a name and results')
        for result in model.get("results", []):
            needed = {"task": ["type"], "dataset": ["type", "name"]}
            mistakes += [
                f'"model-index" misses {part}.{name}'
                for part, names in needed.items()
                for name in names
                if not isinstance(result.get(part, {}).get(name), str)
            ]
            for metric in result.get("metrics") or [{}]:
                if not isinstance(metric.get("type"), str) or "value" not in metric:
                    mistakes.append('"model-index" has a metric without type or value')
    return mistakes


def _entry(path: str, content: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(content)}
    entry["oid"] = hashlib.sha1(content).hexdigest()
    if _is_large(path):
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
    return entry


def _folder(path: str) -> dict[str, object]:
    return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest()}


def _is_large(path: str) -> bool:
    return any(fnmatch.fnmatch(path, pattern) for pattern in LARGE)


def _oid(path: str, content: bytes) -> str:
    if _is_large(path):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
