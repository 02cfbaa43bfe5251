"""A run whose folder is moved away writes nothing where it was, and what it saves once it is back."""

import signal


def test_no_checkpoint_is_written_into_another_run_folder(place):
    more = ("train.max_steps=1000000", "checkpoint.every_steps=10", "evaluation.every_steps=0")
    with place.training("moved", *more) as run:
        run.wait_for(lambda: "saved runs/moved/checkpoints/" in run.log)
        away = run.run_dir.with_name("away")
        run.run_dir.rename(away)
        run.wait_for(lambda: "NOT saved: run.dir='runs/moved': is not the folder that this run started in" in run.log)
        assert not run.run_dir.exists()
        away.rename(run.run_dir)
        run.process.send_signal(signal.SIGTERM)
        assert run.end() == 75, run.log
    assert "saved runs/moved/checkpoints/" in run.log.rpartition("SIGTERM: stopping")[2]
