"""From reports to mistakes and bad nodes."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from launch.nodes.checks import PreflightResult, ReceivedReport, Requirements, check_nodes
from launch.nodes.facts import GIB, NodeReport, place_of

NODE = NodeReport(
    0, "node1", {"torch": "2.13.0", "python": "3.12.1"}, 64 * GIB, 64 * GIB, 64 * GIB, 8 * GIB, (), 1000.0
)


def nodes(count: int) -> list[ReceivedReport]:
    """Made at 1000, reports there at 1001, written in between."""
    made = [replace(NODE, index=i, name=f"node{i + 1}", time=1000.5) for i in range(count)]
    return [ReceivedReport(node, 1000.0, 1001.0) for node in made]


def changed(seen: ReceivedReport, **values: object) -> ReceivedReport:
    return replace(seen, node=replace(seen.node, **values))  # type: ignore[arg-type]


def verdict(seen: Sequence[ReceivedReport], missing: Sequence[str] = (), shared: bool = False) -> PreflightResult:
    return check_nodes(seen, Requirements(4.0, 2.0), missing=missing, seconds=60, shared=shared)


def test_good_nodes_are_good() -> None:
    assert verdict(nodes(5)) == PreflightResult([], [], {})


def test_differing_versions_are_listed_with_their_nodes() -> None:
    seen = nodes(4)
    seen[1] = changed(seen[1], versions={**NODE.versions, "torch": "2.12.0"})
    found = verdict(seen)
    (mistake,) = found.mistakes
    assert mistake.startswith("torch differs: 2.13.0 on node1, node3, node4, 2.12.0 on node2 (hint: install the same")
    assert found.bad_nodes == {}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"free_memory": GIB}, "1.00 GiB are free for memory, 4 are needed"),
        ({"free_temporary": 0}, "0.00 GiB are free for temporary files"),
        ({"free_shared_memory": 0}, "/dev/shm"),
        ({"gpu_faults": ("GPU 3: dead",)}, "GPU 3: dead"),
    ],
)
def test_a_node_that_lacks_something_is_bad_and_no_other(values: dict[str, object], words: str) -> None:
    seen = nodes(3)
    seen[2] = changed(seen[2], **values)
    found = verdict(seen)
    assert list(found.bad_nodes) == ["node3"] and words in found.bad_nodes["node3"][0]
    assert not found.mistakes


def test_a_full_disk_is_a_refusal_and_not_a_bad_node() -> None:
    found = verdict([changed(each, free_disk=GIB) for each in nodes(2)])
    assert "1.0 GiB are free, 2 are asked for" in found.refusals[0]
    assert not found.mistakes and not found.bad_nodes


def test_a_report_outside_its_time_window_shows_a_wrong_clock() -> None:
    seen = nodes(4)
    for time, good in ((995.1, True), (994.9, False), (1005.9, True), (1006.1, False)):
        seen[3] = changed(seen[3], time=time)
        assert list(verdict(seen).bad_nodes) == ([] if good else ["node4"])
    # A slow start does not mean a wrong clock.
    late = [replace(each, not_after=1050.0) for each in nodes(2)]
    assert verdict([late[0], changed(late[1], time=1049.0)]).bad_nodes == {}


def test_if_most_clocks_differ_the_first_node_is_wrong() -> None:
    seen = nodes(4)
    found = verdict([seen[0], *(changed(each, time=2000.0) for each in seen[1:])])
    assert list(found.bad_nodes) == ["node1"] and "behind" in found.bad_nodes["node1"][0]


def test_nodes_that_did_not_report_are_named() -> None:
    found = verdict(nodes(2), missing=["node3"])
    assert list(found.bad_nodes) == ["node3"] and "did not report within 60 s" in found.bad_nodes["node3"][0]


def test_a_folder_that_no_other_node_finds_is_not_shared() -> None:
    found = verdict(nodes(1), missing=["node2", "node3"])
    assert "none of the 2 other nodes found it" in found.mistakes[0] and not found.bad_nodes
    found = verdict(nodes(1), missing=["node2", "node3"], shared=True)
    assert list(found.bad_nodes) == ["node2", "node3"] and not found.mistakes


def test_the_place_of_a_node_is_what_the_launcher_says() -> None:
    srun = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURMD_NODENAME": "node4"}
    assert place_of(srun) == (3, 4, "node4")
    assert place_of({"RANK": "1", "WORLD_SIZE": "2", "NODE_NAME": "b"}) == (1, 2, "b")
    assert place_of({})[:2] == (0, 1)
