"""A local stand-in for W&B's server: takes what the client sends and answers just enough for it to go on.

GraphQL answers are made from the query itself: every field that is asked for gets a value by its name.
"""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_VALUES = {
    "edges": [],
    "features": [],
    "flags": "{}",
    "config": "{}",
    "summaryMetrics": "{}",
    "historyTail": "[]",
    "eventsTail": "[]",
    "historyLineCount": 0,
    "eventsLineCount": 0,
    "logLineCount": 0,
    "inserted": True,
    "createProject": True,
    "stopped": False,
    "admin": False,
    "state": "COMMITTED",
    "files": [],
    "uploadHeaders": [],
}
_UNKNOWN = {"RunResumeStatus": "bucket", "ArtifactType": "artifact"}  # what the server does not have yet


class StandIn:
    """What the client sent.

    Attributes:
        url: Where it listens.
        operations: Name of every GraphQL operation, with its variables.
        rows: Rows of the history, in order, by run id.
        files: Names of uploaded files.
    """

    def __init__(self) -> None:
        self.url = ""
        self.operations: list[tuple[str, dict[str, Any]]] = []
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.files: list[str] = []

    def variables(self, operation: str) -> list[dict[str, Any]]:
        """What came with each call of an operation."""
        return [variables for name, variables in self.operations if name == operation]


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """Serves until the block ends."""
    seen = StandIn()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(seen))
    seen.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(seen: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self._answer({})

        do_GET = do_HEAD

        def do_PUT(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            seen.files.append(self.path)
            self._answer({})

        def do_POST(self):
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = json.loads(content) if "json" in self.headers.get("Content-Type", "") and content else {}
            if self.path.endswith("/graphql"):
                name = re.search(r"(?:query|mutation)\s+(\w+)", body["query"])
                seen.operations.append((name[1] if name else "", body.get("variables") or {}))
                self._answer({"data": _select(body["query"], seen)})
            elif self.path.endswith("/file_stream"):
                run = self.path.split("/")[-2]
                chunk = body.get("files", {}).get("wandb-history.jsonl", {})
                seen.rows.setdefault(run, []).extend(map(json.loads, chunk.get("content", [])))
                self._answer({})
            else:
                self._answer({})

        def _answer(self, content):
            data = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def log_message(self, *arguments):
            pass

    return Handler


def _select(query: str, seen: StandIn) -> dict[str, Any]:
    """An answer of the form that a query asks for."""
    text, *fragments = re.split(r"\bfragment\s+", re.sub(r"\((?:[^()]|\([^()]*\))*\)", "", query))  # no arguments
    for fragment in fragments * 3:  # which may hold others
        text = re.sub(rf"\.\.\.\s*{fragment.split()[0]}\b", f"... on X {fragment[fragment.index('{') :]}", text)
    tokens = re.findall(r"\.\.\.\s*on\s+\w+|\.\.\.\w+|\w+\s*:|\w+|[{}]", text[text.index("{") :])
    operation, variables = seen.operations[-1]
    own: dict[str, Any] = {_UNKNOWN[operation]: None} if operation in _UNKNOWN else {}
    if operation == "UpsertBucket":
        own["name"] = variables["name"]
    found, _ = _fields(tokens, 1, seen.url, _VALUES | own)
    return found


def _fields(tokens: list[str], position: int, url: str, values: dict[str, Any]) -> tuple[dict[str, Any], int]:
    answer: dict[str, Any] = {}
    alias = None
    while position < len(tokens) and tokens[position] != "}":
        token = tokens[position]
        position += 1
        if token.endswith(":"):
            alias = token[:-1].strip()
            continue
        inner = None
        if position < len(tokens) and tokens[position] == "{":
            inner, position = _fields(tokens, position + 1, url, values)
        if token.startswith("..."):
            answer |= inner or {}
            continue
        value = values[token] if token in values else inner if inner is not None else _leaf(token, url)
        answer[alias or token] = value
        alias = None
    return answer, position + 1


def _leaf(name: str, url: str) -> Any:
    if name.lower().endswith("url"):
        return f"{url}/upload/{name}"
    return "team" if name in ("entity", "username") else name
