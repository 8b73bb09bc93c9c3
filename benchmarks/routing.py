"""Does routing matter? Three small models trained by Muon with today's routing, with that of before, and by AdamW.

    python benchmarks/routing.py --out benchmarks/results/routing [--only moe qkv conv] [--runs runs/routing]

moe: a mixture of experts (transformers' Mixtral): banks of experts to Muon, or, as before, to AdamW.
qkv: a GPT with queries, keys and values interleaved in one weight (transformers' GPT-NeoX): orthogonalized apart, or as one matrix.
conv: a convolutional net on scikit-learn's digits: convolutions to Muon and the classifier to AdamW, or, as before, the other way.

Needs transformers and scikit-learn: the extra `clients`. Every arm has a learning rate for hidden matrices and one for the rest,
both found by the same search, on other seeds and other held-out data than those that are judged. Runs are logged by muonlab.run,
and the lab judges them; those that are there already are not done again. One thread; `seconds` are of the processor.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import muonlab
from muonlab.data.config import DataConfig
from muonlab.data.corpus import load
from muonlab.lab.judge.answers import Question, answer
from muonlab.lab.judge.arms import Columns, gather
from muonlab.lab.runs.collection import collect, run_folders
from muonlab.lab.runs.tables import read_table
from muonlab.lab.show.report import write_report
from muonlab.train.run_folder import RunFolder

BATCH, CONTEXT, WIDTH = 8, 64, 64
TUNING_SEEDS = (101, 102)
FIRST_SEED, SEEDS = 11, 20  # those that are judged; as many as a pilot on seeds 1 … 10 said that a mixture needs
CELLS = 24  # the most settings that the search of an arm tries
RATES = ("lr", "aux_lr", "bank_lr")  # of hidden matrices; of the rest; of banks, where these are not Muon's
START = {
    "old": (0.04, 0.032),
    "shared": (0.04, 0.008),
    "new": (0.04, 0.032),
    "adamw": (0.008, 0.032),
}  # where a search begins; shared: where banks'
ARMS = {
    "old": "Muon, routing of before",
    "shared": "the same, banks at the rate of embeddings and head",
    "new": "Muon, routing of today",
    "adamw": "AdamW",
}
MARGIN = {"val_loss": 0.01, "error": 0.5}  # nats, and per cent of images: smaller differences do not matter here


# -- data and models ------------------------------------------------------------------------------------------------------------


class Text:
    """The standard library's source in bytes; held-out documents in two halves: one tunes, the other judges."""

    def __init__(self) -> None:
        corpus = load(DataConfig())
        self.train, held = (torch.from_numpy(tokens[0].astype("int64")) for tokens in (corpus.train, corpus.validation))
        self.about = f"{corpus.provenance['source']}, SHA-256 {corpus.provenance['sha256'][:16]}…"
        windows = held[: held.numel() // CONTEXT * CONTEXT].view(-1, CONTEXT)
        half = len(windows) // 2
        self.held = {True: _spread(windows[:half], 256), False: _spread(windows[half:], 512)}

    def batch(self, drawn: torch.Generator) -> Tensor:
        starts = torch.randint(self.train.numel() - CONTEXT, (BATCH, 1), generator=drawn)
        return self.train[starts + torch.arange(CONTEXT)]

    def loss(self, model: nn.Module, tokens: Tensor) -> Tensor:
        return model(input_ids=tokens, labels=tokens).loss

    def evaluate(self, model: nn.Module, tuning: bool) -> dict[str, float]:
        """In nats per byte, without Mixtral's loss for balance."""
        balance = {"output_router_logits": False} if hasattr(model.config, "num_local_experts") else {}
        batches = self.held[tuning].split(64)
        return {"val_loss": sum(model(input_ids=b, labels=b, **balance).loss.item() for b in batches) / len(batches)}


def _spread(rows: Tensor, count: int) -> Tensor:
    return rows[torch.linspace(0, len(rows) - 1, count).long()]


class Digits:
    """scikit-learn's 1,797 images of 8×8: 1,000 train, 297 tune, 500 judge."""

    about = "scikit-learn's digits"

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        found = load_digits()
        order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
        images = (torch.from_numpy(found.images).float() / 8 - 1)[order, None]
        parts = zip(images.split((1000, 297, 500)), torch.from_numpy(found.target)[order].split((1000, 297, 500)), strict=True)
        self.train, tuning, judged = parts
        self.held = {True: tuning, False: judged}

    def batch(self, drawn: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(1000, (64,), generator=drawn)
        return self.train[0][chosen], self.train[1][chosen]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    def evaluate(self, model: nn.Module, tuning: bool) -> dict[str, float]:
        images, labels = self.held[tuning]
        logits = model(images)
        wrong = (logits.argmax(1) != labels).float().mean().item()
        return {"val_loss": F.cross_entropy(logits, labels).item(), "error": 100 * wrong}


def mixture() -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(
        MixtralConfig(
            **{"vocab_size": 257, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2},
            **{"num_attention_heads": 4, "num_key_value_heads": 4, "num_local_experts": 8, "num_experts_per_tok": 2},
            **{"max_position_embeddings": CONTEXT, "output_router_logits": True, "router_aux_loss_coef": 0.01, "use_cache": False},
        )
    )


def fused() -> nn.Module:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            **{"vocab_size": 257, "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 3},
            **{"num_attention_heads": 4, "max_position_embeddings": CONTEXT, "use_cache": False},
        )
    )


def convolutions() -> nn.Module:
    layers: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(1, 32, 3, padding=1)),
        ("relu1", nn.ReLU()),
        ("pool1", nn.MaxPool2d(2)),
    ]
    layers += [("conv2", nn.Conv2d(32, 64, 3, padding=1)), ("relu2", nn.ReLU())]
    layers += [("conv3", nn.Conv2d(64, 64, 3, padding=1)), ("relu3", nn.ReLU()), ("pool3", nn.MaxPool2d(2))]
    return nn.Sequential(OrderedDict([*layers, ("flat", nn.Flatten()), ("classifier", nn.Linear(256, 10))]))


@dataclass(frozen=True)
class Part:
    """old: what tells muonlab.optimizer to route as it did before."""

    question: str
    build: Callable[[], nn.Module]
    data: type
    old: dict[str, Any]
    metrics: tuple[str, ...] = ("val_loss",)
    arms: tuple[str, ...] = ("old", "new", "adamw")
    bank_lr: float | None = None  # where the search of `old` begins: in `new`, too, banks do not share the rate of embeddings
    steps: int = 100
    evaluate_every: int = 20


PARTS = {
    "moe": Part(
        "Do banks of experts train better by Muon than by AdamW?",
        *(mixture, Text, {"roles": {"*experts*": "vector"}}),
        arms=("old", "shared", "new", "adamw"),
        bank_lr=0.008,
    ),
    "qkv": Part(
        "Does it matter that interleaved queries, keys and values are orthogonalized apart?",
        *(fused, Text, {"specs": {"*query_key_value.weight": {"split": 1, "groups": 1}}}),
        arms=("old", "new"),
    ),
    "conv": Part(
        "Do convolutions train better by Muon, and their classifier by AdamW?",
        *(convolutions, Digits, {"roles": {"conv*": "vector", "classifier.weight": "matrix"}}),
        steps=150,
        metrics=("val_loss", "error"),
    ),
}


# -- training -------------------------------------------------------------------------------------------------------------------


@dataclass
class Study:
    """A part's runs: those of the search in runs/PART_lr, those that are judged in runs/PART."""

    name: str
    part: Part
    runs: Path
    data: Any
    steps: int
    tuned: dict[str, tuple[float, ...]] = field(default_factory=dict)  # arm -> its RATES

    def optimizer(self, model: nn.Module, arm: str, lr: float, aux_lr: float, *bank_lr: float) -> muonlab.optim.Optimizer:
        options = self.part.old if arm in ("old", "shared") else {}
        rest = {"embedding": aux_lr, "head": aux_lr, "vector": bank_lr[0]} if bank_lr else aux_lr
        return muonlab.optimizer(model, "adamw" if arm == "adamw" else "muon", lr=lr, aux_lr=rest, **options)

    def config(self, arm: str, rates: tuple[float, ...]) -> dict[str, Any]:
        told = ", ".join(f"{key}={value}" for key, value in self.part.old.items())
        routing = {"new": "default", "adamw": None}.get(arm, told)
        name = "adamw" if arm == "adamw" else "muon"
        return {"optimizer": name, **dict(zip(RATES, rates)), "routing": routing, "steps": self.steps}

    def train(self, arm: str, seed: int, rates: tuple[float, ...], tuning: bool = False) -> dict[str, Any]:
        """The figures of a run, which is done if it is not there. The seed decides initial weights and the order of the data."""
        project, config = f"{self.name}_lr" if tuning else self.name, self.config(arm, rates)
        name = " ".join([arm, *(f"{key}={rate:g}" for key, rate in zip(RATES, rates))]) if tuning else arm
        there = finished(self.runs / project, name, seed, config)
        if there is not None:
            return there
        torch.manual_seed(seed)
        model = self.part.build()
        drawn = torch.Generator().manual_seed(seed)
        optimizer = self.optimizer(model, arm, *rates)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule)
        seconds = 0.0
        with muonlab.run(name, seed=seed, dir=self.runs, project=project, config=config, replace=True) as run:
            for step in range(1, self.steps + 1):
                began = time.process_time()
                self.data.loss(model, self.data.batch(drawn)).backward()
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                seconds += time.process_time() - began
                if step == self.steps or (step % self.part.evaluate_every == 0 and not tuning):
                    with torch.no_grad():
                        figures = {"seconds": seconds, **self.data.evaluate(model, tuning)}
                    run.log(step=step, **figures)
        print(f"{project}: {name}, seed {seed}: {figures['val_loss']:.4f}, {seconds:.1f} s", flush=True)
        return figures

    def schedule(self, step: int) -> float:
        """Ten steps up; the last seven tenths down to zero."""
        return min(1.0, (step + 1) / 10, (self.steps - step) / (0.7 * self.steps))

    def tune(self, arm: str, cells: int) -> tuple[float, ...]:
        """From the start to the best of the neighbours, with twice or half of one rate, until none is better than where it is."""

        def mean(at: tuple[float, ...]) -> float:
            if at not in tried:
                losses = [self.train(arm, seed, at, tuning=True)["val_loss"] for seed in TUNING_SEEDS]
                whole = all(loss is not None and math.isfinite(loss) for loss in losses)
                tried[at] = sum(losses) / len(losses) if whole else math.inf
            return tried[at]

        tried: dict[tuple[float, ...], float] = {}
        best = START[arm] + ((self.part.bank_lr,) if self.part.bank_lr and arm == "old" else ())
        mean(best)
        while True:
            for i, rate in enumerate(best):
                for other in (2 * rate, rate / 2):
                    if len(tried) < cells:
                        mean((*best[:i], other, *best[i + 1 :]))
            if min(tried, key=tried.__getitem__) == best:
                return best
            best = min(tried, key=tried.__getitem__)


def finished(collection: Path, arm: str, seed: int, config: dict[str, Any]) -> dict[str, float] | None:
    """The last row of the run of this arm, seed and config, if it has ended."""
    for name, run in run_folders(collection) if collection.exists() else ():
        folder = RunFolder(collection / name)
        if (run["arm"], run["seed"], run["recipe"]) == (arm, seed, config) and folder.result() is not None:
            return folder.rows()[-1]
    return None


# -- the report -----------------------------------------------------------------------------------------------------------------


def write_finals(collection: Path, target: Path, metrics: tuple[str, ...]) -> None:
    """A row for each run: what `muonlab stats` reads."""
    found = [(run["arm"], run, RunFolder(collection / name).rows()[-1]) for name, run in run_folders(collection)]
    found.sort(key=lambda one: (list(ARMS).index(one[0].split()[0]), one[0], one[1]["seed"]))
    with open(target, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["arm", *RATES, "seed", *metrics, "seconds"])
        for arm, run, row in found:
            rates = [run["recipe"].get(key, "") for key in RATES]
            writer.writerow([arm.split()[0], *rates, run["seed"], *(row[metric] for metric in (*metrics, "seconds"))])


def judged(finals: Path, metric: str) -> dict[str, Any]:
    """Of each arm its mean and interval, and its verdicts against the others: as `muonlab stats` says them."""
    arms = gather([read_table(finals, curves=False)], Columns(metric, "arm", "seed"))
    found: dict[str, Any] = {}
    for baseline in [arm.name for arm in arms if arm.name != "new"]:
        answers = answer(arms, Question(alpha=0.05, margin=MARGIN[metric], baseline=baseline, pairs=True))
        for arm in answers.arms:
            mean, half = arm.summary.mean, arm.summary.high - arm.summary.mean
            found.setdefault(arm.name, {"runs": arm.summary.n, "mean": mean, "ci95": half, "seconds": 60 * arm.minutes.mean})
        for claim in answers.claims:
            found[claim.arm][f"against {baseline}"] = {"verdict": claim.verdict.word, "reason": claim.verdict.reason}
    return found


def write_part(study: Study, out: Path) -> dict[str, Any]:
    """The lab's report of a part, its final figures, and what they say."""
    folder = out / study.name
    sweep = collect(study.runs / study.name, baseline="old", margin=MARGIN["val_loss"], question=study.part.question)
    write_report(study.runs / study.name, folder, sweep=sweep)
    write_finals(study.runs / study.name, folder / "finals.csv", study.part.metrics)
    write_finals(study.runs / f"{study.name}_lr", folder / "tuning.csv", study.part.metrics)
    with open(folder / "finals.csv") as finals, open(folder / "tuning.csv") as tuning:
        seconds = {"judged": finals, "tuning": tuning}
        spent = {kind: sum(float(row["seconds"]) for row in csv.DictReader(file)) for kind, file in seconds.items()}
    return {
        "question": study.part.question,
        "data": study.data.about,
        "parameters": sum(p.numel() for p in study.part.build().parameters()),
        "steps": study.steps,
        "rates": {arm: dict(zip(RATES, rates)) for arm, rates in study.tuned.items()},
        "verdicts": {metric: judged(folder / "finals.csv", metric) for metric in study.part.metrics},
        "seconds": spent,
    }


NAMES = {"val_loss": "loss, nats", "error": "wrong images, %"}
HOW = """
## How

- **Arms.** `new` is what `muonlab.optimizer(model, "muon")` does. `old` is told by `roles` or `specs` to do what it did before:
  banks of experts and convolutions to AdamW, a net's classifier to Muon; interleaved queries, keys and values as one matrix. In
  `adamw` all is AdamW's.
- **Rates.** Each arm has two, for hidden matrices and for the rest. In `old`, banks of experts have a third, as if one had known
  that they need it; `shared` is without it. A search doubles and halves each rate, from a fixed start, until no neighbour is better
  (or {cells} settings are tried). It sees the mean of seeds {tuning}, and held-out data that are not those of the judged figures.
  (That of `shared` begins where the banks' does: begun at the embeddings' rate, it had ended in a worse place.)
- **Runs.** Equal steps and schedule (ten steps up, the last seven tenths down to zero), no weight decay. A seed decides the initial
  weights and the order of the data, alike in all arms.
- **A pilot** came first, on 5, 8 and 10 seeds ([moe](moe/pilot.csv), [qkv](qkv/pilot.csv), [conv](conv/pilot.csv)): `new` against
  `old` was undecided in all three. By its scatter a mixture needs {seeds} seeds (`muonlab stats --detect`); the runs above are
  those, on other seeds, at the same rates, and judged alone.
- **Verdicts.** By muonlab's lab, at 5 %, adjusted for the claims against each baseline; in pairs where shared seeds are shown to
  help. `equivalent` is shown to lie within ±0.01 nats, or ±0.5 % of images. Nats are per byte of text, and per image.
- **Cost.** {minutes:.0f} minutes of one core for training, the search included.

Small models, few steps, one thread: the figures say whether routing matters here, not how much it matters in yours. Runs have
equal steps, not equal seconds (of the processor): in matrices this small, Muon's own work weighs more than in larger ones.

## Check it

```sh
muonlab stats benchmarks/results/routing/moe/finals.csv --baseline old --margin 0.01 --pair seed --alpha 0.05
muonlab stats benchmarks/results/routing/conv/finals.csv --column error --baseline old --margin 0.5 --pair seed --alpha 0.05
python benchmarks/routing.py --out again
```
"""


def text_of(figures: dict[str, Any]) -> str:
    lines = ["# Does routing matter?", ""]
    lines += [
        "Which parameters go to Muon, in small models; lower is better. `new` is muonlab's routing today, `old` that of before.",
        "",
    ]
    for name, part in figures.items():
        lines += [f"- {name}, {_claim(metric, arms, 'new', 'old')}" for metric, arms in part["verdicts"].items()]
    for name, part in figures.items():
        lines += ["", f"## {name}: {part['question']}", ""]
        for metric, arms in part["verdicts"].items():
            lines += [*table(metric, arms, part["rates"]), ""]
        lines += [f"{part['parameters']:,} weights, {part['steps']} steps, {part['data']}.", ""]
        for metric, arms in part["verdicts"].items():
            pairs = [("new", other) for other in arms if other != "new"] + [("adamw", "old")]
            lines += [f"- {_claim(metric, arms, *pair)}" for pair in pairs if pair[0] in arms]
        links = f"[The lab's report]({name}/report.md), [final figures]({name}/finals.csv), [the search]({name}/tuning.csv)"
        lines += ["", links, "", f"![Difference from old in {name}]({name}/difference.png)"]
    minutes = sum(sum(part["seconds"].values()) for part in figures.values()) / 60
    return (
        "\n".join(lines) + "\n" + HOW.format(tuning=" and ".join(map(str, TUNING_SEEDS)), cells=CELLS, seeds=SEEDS, minutes=minutes)
    )


def _claim(metric: str, arms: dict[str, Any], arm: str, baseline: str) -> str:
    claim = arms[arm][f"against {baseline}"]
    return f"{NAMES[metric]}: `{arm}` against `{baseline}`: **{claim['verdict']}** ({claim['reason']})"


def table(metric: str, arms: dict[str, Any], rates: dict[str, Any]) -> list[str]:
    against = [arm for arm in arms if arm != "new"]
    header = ["arm", "lr", "of the rest", "runs", "seconds", f"{NAMES[metric]}, ± 95 % CI"]
    header += [f"against `{baseline}`" for baseline in against]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for arm, found in arms.items():
        verdicts = [found.get(f"against {baseline}", {}).get("verdict", "–") for baseline in against]
        digits, rate = 4 if metric == "val_loss" else 2, rates[arm]
        mean = f"{found['mean']:.{digits}f} ± {found['ci95']:.{digits}f}"
        rest = f"{rate['aux_lr']:g}" + (f", banks {rate['bank_lr']:g}" if "bank_lr" in rate else "")
        row = [f"`{arm}`: {ARMS[arm]}", f"{rate['lr']:g}", rest, str(found["runs"]), f"{found['seconds']:.1f}", mean, *verdicts]
        lines.append(f"| {' | '.join(row)} |")
    return lines


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where the report goes")
    parser.add_argument("--runs", type=Path, default=Path("runs/routing"), help="where runs are logged, and looked for")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--steps", type=int, help="of each run")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="judged in each arm")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--cells", type=int, default=CELLS, help="the most settings that a search tries")
    asked = parser.parse_args(arguments)
    asked.out.mkdir(parents=True, exist_ok=True)
    written = asked.out / "results.json"
    figures = json.loads(written.read_text()) if written.exists() else {}  # of the parts that are not asked for now
    for name in asked.only:
        part = PARTS[name]
        study = Study(name, part, asked.runs, part.data(), asked.steps or part.steps)
        study.tuned = {arm: study.tune(arm, asked.cells) for arm in part.arms}
        print(f"{name}: rates {study.tuned}", flush=True)
        for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
            for arm in part.arms:
                study.train(arm, seed, study.tuned[arm])
        figures[name] = write_part(study, asked.out)
    figures = {name: figures[name] for name in PARTS if name in figures}
    written.write_text(json.dumps(figures, indent=1) + "\n")
    (asked.out / "report.md").write_text(text_of(figures))
    print(f"Report: {asked.out / 'report.md'}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
