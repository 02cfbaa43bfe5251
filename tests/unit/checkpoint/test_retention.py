"""Pruning keeps whole checkpoints, counts no damaged one, and never deletes what was just saved."""

from hypothesis import given
from hypothesis import strategies as st

from pretrain.checkpoint.retention import Retention


def name_of(step: int) -> str:
    return f"step-{step:08d}"


@given(
    whole=st.dictionaries(st.integers(1, 30), st.booleans()),
    known=st.sets(st.integers(1, 30)),
    saved=st.integers(1, 30),
    keep_last=st.integers(1, 4),
    keep_every=st.sampled_from([0, 5]),
)
def test_keep_last_counts_only_whole_checkpoints(
    whole: dict[int, bool], known: set[int], saved: int, keep_last: int, keep_every: int
) -> None:
    whole = dict(sorted((whole | {saved: True}).items()))
    retention = Retention(keep_last, keep_every)
    for step in {saved, *known & whole.keys()}:
        retention.mark(name_of(step), whole=whole[step])
    asked: list[str] = []

    def look(name: str) -> bool:
        asked.append(name)
        return whole[int(name.removeprefix("step-"))]

    outdated = retention.outdated([name_of(step) for step in whole], name_of(saved), look)
    gone = {int(name.removeprefix("step-")) for name in outdated}
    earlier = [step for step in whole if step <= saved]
    newest = [step for step in earlier if whole[step]][-keep_last:]
    assert saved not in gone and gone <= set(earlier) and not gone & set(newest)
    assert not keep_every or all(step % keep_every for step in gone)
    assert len(asked) == len(set(asked)) and not {name_of(step) for step in known} & set(asked)
    if len(newest) < keep_last:
        assert not gone
    elif not keep_every:
        assert gone == {step for step in earlier if step < newest[0]}, "older ones make room, whole or damaged"


def test_the_new_save_stays_below_damaged_later_ones() -> None:
    retention = Retention(keep_last=1)
    retention.mark(name_of(8), whole=False)
    retention.mark(name_of(4), whole=True)
    retention.mark(name_of(6), whole=True)
    names = [name_of(step) for step in (4, 6, 8)]
    assert retention.outdated(names, name_of(6), lambda name: True) == [name_of(4)]


def test_named_steps_are_never_deleted() -> None:
    retention = Retention(keep_last=1, keep_steps=(4,))
    names = [name_of(step) for step in (2, 4, 6, 8)]
    for name in names:
        retention.mark(name, whole=True)
    assert retention.outdated(names, name_of(8), lambda name: True) == [name_of(2), name_of(6)]
