"""Events on their way to the dashboard."""

from __future__ import annotations

import threading

import pytest
from distributed import Client, LocalCluster

from dspa.dataflow.cluster import adopt
from dspa.dataflow.events import Events
from dspa.project.machines import Machines


@pytest.fixture
def machines():
    """Machines of no workers: a scheduler in this process."""
    cluster = LocalCluster(n_workers=0, processes=False, dashboard_address=None)
    with cluster, Client(cluster) as client:
        yield Machines("local:1", adopt(client))


def test_a_report_that_comes_in_meanwhile_blocks_nothing(machines):
    loop, reporting = machines.cluster().client.loop, threading.Event()

    def report():
        reporting.set()
        events.emit("progress", done=1, total=2)  # waits for the lock that the message holds

    def meanwhile(event):
        if event["kind"] == "message":
            loop.add_callback(report)
            assert reporting.wait(5)

    events = Events(listeners=(meanwhile,))
    machines.tell(events)
    thread = threading.Thread(target=events.message, args=("x",), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


def test_events_arrive_in_their_order_before_the_cluster_closes(machines):
    events = Events()
    machines.tell(events)
    for number in range(50):
        events.emit("iteration", iteration=number)
        events.emit("progress", done=number, total=50)
    client = machines.cluster().client
    scheduler = client.cluster.scheduler
    machines.close()
    heard = [event for _, event in scheduler.get_events("dspa")]
    assert [event["iteration"] for event in heard] == list(range(50))
    events.message("nobody hears this")
