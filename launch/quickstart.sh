#!/usr/bin/env bash
# From a fresh clone to a trained model and a sample of its text: `bash launch/quickstart.sh`.
# Arguments are overrides for `pretrain prepare` and `pretrain train`: `bash launch/quickstart.sh train.max_steps=20`.
# Finished parts are skipped, so the same command also continues after an interruption.
set -euo pipefail
# shellcheck source=launch/env.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"

prompt="def read_lines(path):"
run_dir="runs/quickstart"
for override in "$@"; do
    case "$override" in
    run.name=*) run_dir="runs/${override#*=}" ;;
    run.dir=*) run_dir="${override#*=}" ;;
    esac
done

times=""
timed() { # heading, command
    local heading="$1" began=$SECONDS
    shift
    printf '\n== %s\n' "$heading"
    "$@"
    times+="$(printf '%6d s  %s' $((SECONDS - began)) "$heading")"$'\n'
}

timed "environment" ensure_environment
cd -- "$root"
PATH="$venv/bin:$PATH"
timed "data: text to tokenizer and shards" pretrain prepare experiment=quickstart "$@"
timed "training" pretrain train experiment=quickstart "$@"
timed "a sample of its text" pretrain generate "run='$run_dir'" "prompt=$prompt"

cat <<END

== done
$times$(printf '%6d s' "$SECONDS")  in all

  report  $run_dir/report.html

What to try next, in $root:
  source '$venv/bin/activate'
  pretrain prepare 'data.inputs=[my.txt,more.jsonl]'  your own text, then
  pretrain train                                      a model of it, or on two processes:
  torchrun --nproc-per-node 2 -m pretrain train
  pretrain evaluate run='$run_dir' 'tasks=[$run_dir/next_line.jsonl]' checkpoint=all
                                                      each checkpoint: which of four lines of held-out code comes next?
  pretrain train --help                               what else can be set
END
