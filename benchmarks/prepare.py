"""How fast `muonlab data prepare` is, and how much memory a million rows take.

    python benchmarks/prepare.py --out benchmarks/results/prepare.json

Each preparation is a process of its own on one core (taskset), on a JSONL file of made questions and answers: bytes, with and
without --dedupe, and a BPE trained on the file's first rows. The BPE's yardstick is the library tokenizers by itself, one thread,
`encode_batch_fast` on the same texts in the same batches, measured in turns with the preparation. Memory is the largest resident
set that the kernel saw. Seconds are of the processor, since others may use the machine; those of the clock stand beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from muonlab.train.provenance import cpu_name, git_state

ROWS = 1_000_000
BPE_ROWS = 40_000
VOCABULARY = 8192
ROUNDS = 3

_LIBRARY_ALONE = """
import json, sys, time
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[2])
texts = []
for line in open(sys.argv[1]):
    row = json.loads(line)
    texts += [row["question"] + "\\n", row["answer"]]
start, tokens = time.process_time(), 0
for i in range(0, len(texts), 1024):
    tokens += sum(len(found.ids) for found in tokenizer.encode_batch_fast(texts[i : i + 1024], add_special_tokens=False))
print(json.dumps({"seconds": time.process_time() - start, "tokens": tokens}))
"""


def write_rows(path: Path, rows: int) -> None:
    """Questions of the length of GSM8K's (about 240 characters, and as many in the answer), no two alike."""
    drawn = random.Random(0)
    words = [w for w in Path(__file__).read_text().split() if w.isalpha()] + [f"word{i}" for i in range(3000)]
    with open(path, "w") as file:
        for i in range(rows):
            sentence = " ".join(drawn.choices(words, k=40))
            row = {"question": f"Question {i}: {sentence}?", "answer": f"{sentence[::-1]} = {i}\n#### {i}"}
            file.write(json.dumps(row) + "\n")


def measured(command: list[str], core: int) -> dict[str, float]:
    """Seconds of processor and clock, and the largest resident set in MB, of one process on one core."""
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    process = subprocess.Popen(["taskset", "-c", str(core), *command], stdout=subprocess.PIPE, env=environment)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {' '.join(command)}")
    cpu = used.ru_utime + used.ru_stime
    return {"cpu_seconds": cpu, "clock_seconds": time.perf_counter() - began, "peak_mb": used.ru_maxrss / 1024}


def prepared(source: Path, out: Path, core: int, *arguments: str) -> dict[str, float]:
    """A preparation's figures, with its rate: document tokens per second of the processor, imports included."""
    command = [sys.executable, "-m", "muonlab", "data", "prepare", str(source), "--columns", "question,answer", "--out", str(out)]
    figures = measured([*command, *arguments], core)
    manifest = json.loads((out / "manifest.json").read_text())
    tokens = manifest["train"]["tokens"] + manifest["validation"]["tokens"]
    return {**figures, "rows": manifest["rows"], "tokens": tokens, "tokens_per_cpu_second": tokens / figures["cpu_seconds"]}


def bpe_against_the_library(folder: Path, core: int) -> dict[str, object]:
    """In turns: the preparation with a BPE, and the library alone. Rates are tokens per second of the processor."""
    source, tokenizer = folder / "bpe.jsonl", folder / "tokenizer.json"
    write_rows(source, BPE_ROWS)
    train = ["data", "tokenizer", str(source), "--columns", "question,answer", "--limit", "5000", "--vocab-size", str(VOCABULARY)]
    subprocess.run([sys.executable, "-m", "muonlab", *train, "--out", str(tokenizer)], check=True, stdout=subprocess.DEVNULL)
    empty = folder / "empty.jsonl"
    write_rows(empty, 1)
    start = min(prepared(empty, folder / f"empty{i}", core, "--tokenizer", str(tokenizer))["cpu_seconds"] for i in range(2))
    ours, library, share = [], [], []
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    for i in range(ROUNDS):
        found = prepared(source, folder / f"bpe{i}", core, "--tokenizer", str(tokenizer))
        ours.append(found["tokens"] / (found["cpu_seconds"] - start))
        alone = [sys.executable, "-c", _LIBRARY_ALONE, str(source), str(tokenizer)]
        done = subprocess.run(["taskset", "-c", str(core), *alone], check=True, capture_output=True, text=True, env=environment)
        figures = json.loads(done.stdout)
        library.append(figures["tokens"] / figures["seconds"])
        share.append(ours[-1] / library[-1])
    return {"rows": BPE_ROWS, "vocabulary": VOCABULARY, "start_seconds": start, "prepare": ours, "library": library, "ratio": share}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--core", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "rows.jsonl", options.rows)
        results = {
            "provenance": {"cpu": cpu_name(), "python": platform.python_version(), "git": git_state(Path(__file__).parent)},
            "bytes": prepared(folder / "rows.jsonl", folder / "bytes", options.core),
            "bytes_dedupe": prepared(folder / "rows.jsonl", folder / "dedupe", options.core, "--dedupe"),
            "bpe": bpe_against_the_library(folder, options.core),
        }
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
