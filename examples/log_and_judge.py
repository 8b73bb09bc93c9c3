"""Two arms with four seeds each in a training loop of one's own, logged, and judged: better, worse, equivalent or undecided?

pip install "muonlab[lab]", then: python examples/log_and_judge.py
"""

import tempfile

import torch

import muonlab
from muonlab.lab import answer, collect, compute


def train(arm, seed, folder):
    torch.manual_seed(seed)  # arms share their seeds: the same first weights, the same data
    model = torch.nn.Sequential(torch.nn.Embedding(64, 32), torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64))
    following = torch.randint(64, (64,))
    lr = {"adamw": 3e-3, "muon": 0.02}[arm]  # each arm with a rate of its own, found on other seeds
    optimizer = muonlab.optimizer(model, arm, lr=lr)
    with muonlab.run(arm, seed=seed, config={"lr": lr}, dir=folder) as run:  # without dir: in runs
        for step in range(1, 41):
            tokens = torch.randint(64, (64,))
            torch.nn.functional.cross_entropy(model(tokens), following[tokens]).backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % 10 == 0:
                with run.paused(), torch.no_grad():  # evaluation is no training time
                    run.log(step=step, val_loss=torch.nn.functional.cross_entropy(model(torch.arange(64)), following))


with tempfile.TemporaryDirectory() as folder:
    for seed in range(4):
        for arm in ("adamw", "muon"):
            train(arm, seed, folder)
    results = compute(collect(f"{folder}/log", baseline="adamw"))  # as a page with charts: muonlab report runs/log
    for sentence in answer(results):
        print(sentence)
