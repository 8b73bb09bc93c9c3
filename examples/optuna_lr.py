"""A learning rate found by Optuna, on seeds that no comparison will use. Ask and tell; any loop that ends in a loss will do.

pip install muonlab optuna, then: python examples/optuna_lr.py
For recipes the lab does this, with the same budget for every arm: muonlab search FILE (pip install "muonlab[search]")
"""

import optuna
import torch

import muonlab


def final_loss(lr, seed):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(32, 128), torch.nn.Tanh(), torch.nn.Linear(128, 128), torch.nn.Tanh(), torch.nn.Linear(128, 32)
    )
    x, teacher = torch.randn(512, 32), torch.randn(32, 32) / 6
    optimizer = muonlab.optimizer(model, "normuon", lr=lr)
    for batch in x[:384].repeat(5, 1).split(64):
        torch.nn.functional.mse_loss(model(batch), torch.tanh(batch @ teacher)).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return torch.nn.functional.mse_loss(model(x[384:]), torch.tanh(x[384:] @ teacher)).item()


def objective(trial):
    lr = trial.suggest_float("lr", 1e-4, 1.0, log=True)
    return sum(final_loss(lr, seed) for seed in (100, 101)) / 2  # tuned on these seeds, judged on others


optuna.logging.set_verbosity(optuna.logging.WARNING)
study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
study.enqueue_trial({"lr": 1e-4})  # a first guess, for example too small
study.optimize(objective, n_trials=12)
print({name: float(f"{value:.2g}") for name, value in study.best_params.items()})
print(f"loss {study.trials[0].value:.3f} before, {study.best_value:.3f} after")
