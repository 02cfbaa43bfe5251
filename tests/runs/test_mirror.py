"""A run that lost its folder resumes from the mirror of its checkpoints."""

import shutil

from tests.support.runs import Workplace, user_error


def test_a_run_resumes_from_its_mirror_and_refuses_a_bad_one(place: Workplace) -> None:
    mirror, folder = place.folder / "elsewhere", place.run_dir("mirrored") / "checkpoints"
    settings = (f"checkpoint.mirror=file://{mirror}", "checkpoint.keep_last=1", "evaluation.every_steps=0")
    done = place.on_ranks(2, "mirrored", *settings, "train.max_steps=6")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in mirror.iterdir()] == ["step-00000006"]
    shutil.rmtree(folder)
    done = place.train("mirrored", *settings, "train.max_steps=8")
    assert done.returncode == 0, done.stderr
    assert f"fetching file://{mirror}/step-00000006: newer than all whole ones in" in done.stderr
    assert "step 6, sample 48" in done.stderr
    assert [path.name for path in mirror.iterdir()] == ["step-00000008"]
    (place.folder / "a-file").write_text("")
    url = f"file://{place.folder}/a-file/mirror"
    reported = user_error(place.train("other", f"checkpoint.mirror={url}", "data.cache.retries=0"))
    message, hint = reported.splitlines()
    assert message.startswith(f"checkpoint.mirror: {url}/probe: cannot be written: ")
    assert hint.startswith("  hint: ") and "unset checkpoint.mirror" in hint
