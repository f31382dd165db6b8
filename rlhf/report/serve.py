"""`rlhf inspect RUN --serve`: the page of a run that goes on, built anew when something was added. For this machine."""

import threading
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from rlhf.errors import StageError
from rlhf.report.report import render
from rlhf.results.run import load_run

__all__ = ["PageServer"]

_HOST = "127.0.0.1"  # nobody else reads what the policy says
_WATCHED = ("config.yaml", "manifest.json", "metrics.jsonl", "evaluate.json", "rollouts")


class PageServer(ThreadingHTTPServer):
    """Serves `/`, the page, and `/state`, which changes when the run folder does.

    Args:
        run_dir: The run folder.
        beside: Folders of other runs, whose curves are drawn over those of this one.
        port: 0 takes any that is free.

    Raises:
        StageError: The folder is no run, or the port is taken.
    """

    daemon_threads = True

    def __init__(self, run_dir: Path, beside: Sequence[Path] = (), port: int = 0) -> None:
        load_run(run_dir)  # says now what is wrong with the folder
        self._run_dir, self._beside = run_dir, beside
        self._lock = threading.Lock()
        self._built: tuple[str, bytes] = ("", b"")
        try:
            super().__init__((_HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise StageError(f"--port {port} cannot be used ({error}): choose another one, or 0 for any") from None

    @property
    def address(self) -> str:
        """Where to look."""
        return f"http://{_HOST}:{self.server_address[1]}/"

    def state(self) -> str:
        """Names, sizes and times of the files that the page is made of, as one short text."""
        parts = []
        for name in _WATCHED:
            path = self._run_dir / name
            if path.exists():
                seen = path.stat()
                parts.append(f"{seen.st_mtime_ns:x}.{seen.st_size:x}")
        return "-".join(parts)

    def page(self) -> bytes:
        """The page as of now; built once for each state."""
        with self._lock:
            state = self.state()
            if state != self._built[0]:
                html = render(load_run(self._run_dir), [load_run(other) for other in self._beside], state)
                self._built = (state, html.encode("utf-8", "replace"))
            return self._built[1]


class _Handler(BaseHTTPRequestHandler):
    server: PageServer

    def do_GET(self) -> None:  # the name that the library calls
        """Answers a browser."""
        host = self.headers.get("Host", "").partition(":")[0]
        if host not in (_HOST, "localhost"):  # a foreign name that points here may not read the page
            self.send_error(HTTPStatus.FORBIDDEN)
        elif self.path in ("/", "/index.html"):
            self._answer(self.server.page(), "text/html; charset=utf-8")
        elif self.path == "/state":
            self._answer(self.server.state().encode(), "text/plain")
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _answer(self, content: bytes, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # the library's name
        """Says nothing: the terminal is for the address."""
