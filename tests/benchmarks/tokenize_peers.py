"""Documents to tokens by datatrove, as its manual does it; run by an interpreter that has it and `tokenizers`.

    PYTHON tests/benchmarks/tokenize_peers.py FOLDER TOKENIZER_JSON OUT WORKERS

One task for each .jsonl of FOLDER, in as many processes. Prints JSON: versions, seconds without imports.
"""

import contextlib
import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path


def main(folder: str, tokenizer: str, out: str, workers: str) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core for each process, as ours
    import tokenizers  # noqa: F401
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    began = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        LocalPipelineExecutor(
            pipeline=[
                JsonlReader(folder),
                DocumentTokenizer(
                    f"{out}/tokens", tokenizer, eos_token="</s>", shuffle_documents=False, batch_size=1000
                ),
            ],
            tasks=len(list(Path(folder).glob("*.jsonl"))),
            workers=int(workers),
            logging_dir=f"{out}/logs",
        ).run()
    seconds = time.perf_counter() - began
    versions = {name: importlib.metadata.version(name) for name in ("datatrove", "tokenizers")}
    print(json.dumps({"versions": versions, "seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
