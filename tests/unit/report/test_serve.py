"""The served page: new when the run has something new, for this machine only."""

import http.client
import threading

import pytest

from rlhf.errors import StageError
from rlhf.report.serve import PageServer
from rlhf.tracking import rollouts
from rlhf.tracking.jsonl import JsonlSink


def log(run_dir, step):
    sink = JsonlSink(run_dir, "ppo")
    sink.log({"ppo/score": float(step)}, step)
    sink.close()


@pytest.fixture
def server(tmp_path):
    log(tmp_path, 1)
    with PageServer(tmp_path) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def get(server, path, host="127.0.0.1"):
    connection = http.client.HTTPConnection(*server.server_address)
    connection.request("GET", path, headers={"Host": host})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_the_page_follows_the_run(server, tmp_path):
    _, before = get(server, "/state")
    status, page = get(server, "/")
    assert status == 200
    assert f'data-live="{before}"' in page
    assert "connect-src &#39;self&#39;" in page
    assert 'id="block-episodes"' not in page
    log(tmp_path, 2)
    rollouts.write(tmp_path, rollouts.typed_rows([{"response": "new"}], 1), 1)
    _, after = get(server, "/state")
    assert after != before
    _, page = get(server, "/")
    assert f'data-live="{after}"' in page
    assert 'id="block-episodes"' in page
    assert not (tmp_path / "report.html").exists()


def test_an_unchanged_run_is_not_read_again(server, monkeypatch):
    _, first = get(server, "/")
    monkeypatch.setattr("rlhf.report.serve.load_run", None)
    assert get(server, "/") == (200, first)


@pytest.mark.parametrize(("path", "host", "status"), [("/etc/passwd", "127.0.0.1", 404), ("/", "evil.example", 403)])
def test_other_files_and_foreign_names_are_refused(server, path, host, status):
    assert get(server, path, host)[0] == status


def test_what_cannot_be_served_is_said_at_once(server, tmp_path):
    with pytest.raises(StageError, match="is not a run folder"):
        PageServer(tmp_path / "nothing")
    with pytest.raises(StageError, match=r"--port .* cannot be used"):
        PageServer(tmp_path, port=server.server_address[1])
