"""The pages: served on loopback behind a token, and they show what the events say."""

from __future__ import annotations

import asyncio
import logging
import threading
import urllib.error
import urllib.request

import pytest
from bokeh.client import pull_session
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

from dspa.app.monitor import Monitor
from dspa.app.serve import keep_from_logs
from dspa.dataflow.events import Events
from dspa.dataflow.process import this_process
from dspa.project.job import Record
from dspa.project.project import init
from dspa.project.report import write_report


@pytest.fixture
def project(tmp_path):
    project = init(tmp_path)
    job = project.new_job(Record(0, "refine", state="running", process=this_process()))
    events = Events(job.folder)
    for number in range(1, 5):
        events.emit("iteration", iteration=number, resolution=20.0 / number)
    events.message("halfway <b>there</b>")
    write_report(job.folder)
    return project


@pytest.fixture
def served(project, serve):
    """The address of a running server."""
    with serve(project) as address:
        yield address


def status_of(address):
    try:
        with urllib.request.urlopen(address, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""


def test_page_is_behind_its_token(served):
    root = served.removesuffix("secret-of-the-test/")
    assert served.startswith("http://127.0.0.1:")
    assert status_of(served)[0] == 200
    for path in ("", "autoload.js", "report/J1", "secret-of-the-tess/", "static/js/bokeh.min.js"):
        assert status_of(root + path)[0] == 404, path
    report = status_of(served + "report/J1")[1]
    assert "resolution" in report
    assert report.index("<td>4</td>") < report.index("<td>1</td>")  # the newest iteration on top
    assert status_of(served + "report/J9")[0] == 404
    assert status_of(served + "report/..%2Fjob.json")[0] == 404


def test_websocket_from_another_page_is_refused(served):
    async def connect(origin, path):
        request = HTTPRequest(served.replace("http", "ws") + path, headers={"Origin": origin})
        request.headers["Sec-WebSocket-Protocol"] = "bokeh, nonsense"
        connection = await websocket_connect(request)
        connection.close()

    for origin in ("http://elsewhere.example", "null", "https://127.0.0.1.elsewhere.example"):
        with pytest.raises(HTTPClientError, match="403"):
            asyncio.run(connect(origin, "picks/ws"))
    with pytest.raises(HTTPClientError, match="404"):
        own = served.removesuffix("/secret-of-the-test/")
        served = own + "/"
        asyncio.run(connect(own, "picks/ws"))


def test_page_shows_jobs_and_figures(served):
    with pull_session(url=served) as session:
        document = session.document
        jobs = document.get_model_by_name("jobs").data
        points = document.get_model_by_name("points").data
        log = document.get_model_by_name("log").text
        assert jobs["job"] == ["J1"] and jobs["state"] == ["running"]
        assert list(points["value"]) == [20.0, 10.0, 20.0 / 3, 5.0]
        assert "halfway &lt;b&gt;" in log


def test_newest_job_is_first_and_the_chosen_one_stays_chosen(project):
    monitor = Monitor(project, "report/")
    monitor.refresh()
    project.new_job(Record(0, "postprocess"))
    monitor.refresh()
    assert monitor.jobs.data["job"] == ["J2", "J1"]
    assert "J2 postprocess" in monitor.head.text  # none is chosen: the newest
    monitor.jobs.selected.indices = [1]
    assert "J1 refine" in monitor.head.text
    project.new_job(Record(0, "export"))
    monitor.refresh()
    assert monitor.jobs.selected.indices == [2] and "J1 refine" in monitor.head.text


def test_dashboard_has_our_tab(tmp_path):
    from dspa.dataflow.events import Events as Stream
    from dspa.project.machines import Machines

    said, logged = [], []
    machines = Machines("local:1", say=said.append)
    try:
        (tmp_path / "J1").mkdir()
        events = Stream(tmp_path / "J1", (logged.append,))
        runner = machines.make_runner(tmp_path / "J1", events)
        assert runner.map(abs, [-2]) == [2]
        events.emit("iteration", iteration=1, resolution=7.5)
        link = machines.cluster().dashboard.removesuffix("/status")
        assert link.startswith("http://127.0.0.1:")
        assert 'href="dspa"' in status_of(link + "/status")[1]
        root, secret = link.rsplit("/", 1)
        assert said == [f"dashboard: {link}/status"] and secret not in str(logged)
        for closed in ("/", "/status", "/sitemap.json", "/dspa/state.json", "/metrics", "//x"):
            status, text = status_of(root + closed)
            assert status == 404 and secret not in text
        for worker in machines.cluster().client.scheduler_info()["workers"].values():
            port = worker["services"]["dashboard"]
            assert status_of(f"http://127.0.0.1:{port}/profile")[0] == 404
        assert status_of(link + "/dspa")[0] == 200
        for _ in range(50):
            status, text = status_of(link + "/dspa/state.json")
            if "7.5" in text:
                break
            threading.Event().wait(0.1)
        assert status == 200 and "7.5" in text
        with pull_session(url=link + "/dspa") as session:
            sources = [m for m in session.document.models if type(m).__name__ == "ColumnDataSource"]
            assert list(sources[0].data["resolution"]) == [7.5]
    finally:
        machines.close()


def test_the_token_is_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)  # whatever other tests have set
    make = logging.getLogRecordFactory()
    try:
        keep_from_logs("s3cr3t")
        logging.getLogger("pages.access").warning("404 GET /%s/x (127.0.0.1)", "s3cr3t")
        try:
            raise ValueError("no page /s3cr3t/")
        except ValueError:
            logging.getLogger("pages.application").exception("Uncaught GET /s3cr3t/")
    finally:
        logging.setLogRecordFactory(make)
    assert "404 GET /.../x" in caplog.text
    assert "no page /.../" in caplog.text
    assert "s3cr3t" not in caplog.text
