"""The real command: a run that branches from another's checkpoint ends as a whole run of its length does."""

import json
import shutil

from tests.support.runs import train_records, user_error, validation_records

WSD = ("lr_schedule=wsd", "lr_schedule.decay_fraction=0.25", "lr_schedule.warmup_steps=2", "checkpoint.every_steps=0")


def test_a_branch_ends_as_the_whole_run_bit_for_bit(place):
    whole = place.train("whole", *WSD, "train.max_steps=8")
    trunk = place.train("trunk", *WSD, "train.max_steps=12", "checkpoint.keep_steps=[6]", "checkpoint.keep_last=1")
    assert (whole.returncode, trunk.returncode) == (0, 0), whole.stderr + trunk.stderr
    kept = sorted(path.name for path in (place.run_dir("trunk") / "checkpoints").iterdir())
    assert kept == ["step-00000006", "step-00000012"]

    origin = "runs/trunk/checkpoints/step-00000006"
    words = [*WSD, "train.max_steps=8", f"run.branch_from={origin}"]
    branch = place.train("branch", *words)
    assert branch.returncode == 0, branch.stderr
    assert f"continues {origin} in a run of its own: step 6, sample 48" in branch.stderr
    expected, found = train_records(place.run_dir("whole")), train_records(place.run_dir("branch"))
    assert sorted(found) == [7, 8]
    for key in ("loss", "grad_norm", "lr", "tokens", "batch_hash"):
        assert [found[step][key] for step in (7, 8)] == [expected[step][key] for step in (7, 8)]
    losses = [validation_records(place.run_dir(name))[8]["loss"] for name in ("whole", "branch")]
    assert losses[0] == losses[1]
    description = json.loads((place.run_dir("branch") / "description.json").read_text())
    assert (description["branch_from"]["checkpoint"], description["branch_from"]["step"]) == (origin, 6)

    # With a checkpoint of its own it needs the trunk no more.
    shutil.rmtree(place.run_dir("trunk") / "checkpoints" / "step-00000006")
    again = place.train("branch", *words)
    assert again.returncode == 0 and "nothing to do" in again.stderr, again.stderr
    refused = user_error(place.train("other", *words))
    assert refused.startswith(f"run.branch_from={origin}: no such folder")
    other_batch = [*words[:-1], "run.branch_from=runs/trunk/checkpoints/step-00000012", "train.global_batch_size=4"]
    refused = user_error(place.train("other", *other_batch))
    assert "its run trained with other settings:" in refused and "train.global_batch_size: 8 there, 4 now" in refused
    refused = user_error(place.train("other", *other_batch[:-1], "optim=muon"))
    assert "optim.name: adamw there, muon now" in refused
    refused = user_error(place.train("other", "run.branch_from=runs/trunk"))
    assert refused.startswith("run.branch_from=runs/trunk: is not the folder of a checkpoint")
    assert not place.run_dir("other").exists()
