"""Runs in lm-evaluation-harness: importing this registers the model `muonlab` there. Needs the package lm_eval (extra lm-eval)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from muonlab.errors import InputError
from muonlab.evaluate.generation import TextGenerator
from muonlab.evaluate.loading import LoadedRun, load_run
from muonlab.evaluate.scoring import score
from muonlab.extras import needed

_WHY = "lm-evaluation-harness"
_api, _registry = (needed(f"lm_eval.api.{part}", _WHY, extra="lm-eval") for part in ("model", "registry"))
_utils, _models, _tasks, _evaluator = (
    needed(f"lm_eval.{part}", _WHY, extra="lm-eval") for part in ("utils", "models.utils", "tasks", "evaluator")
)


@_registry.register_model("muonlab")
class HarnessModel(_api.TemplateLM):
    """lm_eval.simple_evaluate(model="muonlab", model_args="run=runs/x"), or model=HarnessModel(a loaded run).

    Prompts are the tasks' own: a run's template is not used. What is longer than the context loses its beginning, as with the
    harness's own models; `truncated` counts such requests. Of an answer longer than the context, its last tokens are
    scored; an empty one scores (0.0, True). A context begins as the run's documents do; an empty one is the end of a document.
    """

    def __init__(
        self,
        run: str | Path | LoadedRun,
        batch_size: int | str = 64,
        device: str | None = None,
        checkpoint: str = "last",
        tokenizer: str | None = None,
        max_gen_toks: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise InputError(f"batch_size: expected a number of at least 1, got {batch_size!r}")
        self.run = run if isinstance(run, LoadedRun) else load_run(run, device, checkpoint=str(checkpoint), tokenizer=tokenizer)
        self.max_length, self.max_gen_toks, self.seed = self.run.context, max_gen_toks, seed
        self.batch, self.truncated = int(batch_size), 0
        self.writer = TextGenerator.of(self.run, batch=self.batch)

    @property
    def eot_token_id(self) -> int:
        return self.run.tokenizer.end

    @property
    def tokenizer_name(self) -> str:
        return f"{self.run.tokenizer.name} {self.run.tokenizer.sha256[:12]}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self.run.tokenizer.encode(string).tolist()

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, each token once, with windows that do not overlap but for one token (as the harness's own models)."""
        pairs, owners = [], []
        for i, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for window in _utils.get_rolling_token_windows(tokens, self.eot_token_id, self.max_length, 1):
                pairs.append(_utils.make_disjoint_window(window))
                owners.append(i)
        totals = [0.0] * len(requests)
        for owner, one in zip(owners, score(self.run, pairs, batch=self.batch), strict=True):
            totals[owner] += one.log_likelihood
        for request, total in zip(requests, totals):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        texts: dict[int, str] = {}
        settings = [_models.normalize_gen_kwargs(request.args[1], self.max_gen_toks) for request in requests]
        for key in dict.fromkeys(map(repr, settings)):
            chosen = [i for i, one in enumerate(settings) if repr(one) == key]
            how = self._understood(settings[chosen[0]])
            prompts = [self._with_room(requests[i].args[0], how["max_tokens"]) for i in chosen]
            texts |= zip(chosen, self.writer.generate(prompts, seed=self.seed, **how), strict=True)
        for i, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args, texts[i])
        return [texts[i] for i in range(len(requests))]

    def _loglikelihood_tokens(self, requests: Sequence[Any], disable_tqdm: bool = False, **_: Any) -> list[tuple[float, bool]]:
        pairs = []
        for _texts, before, after in requests:
            before = self.writer.begun(before)  # a context of spaces alone is empty: they go to the answer
            self.truncated += len(before) + len(after) > self.max_length + 1
            pairs.append((before, after))
        found = [(one.log_likelihood, one.greedy) for one in score(self.run, pairs, batch=self.batch)]
        for (texts, _, _), one in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, one)
        return found

    def _understood(self, given: dict[str, Any]) -> dict[str, Any]:
        """The harness's settings in our words. Raises InputError for one that we do not have."""
        known = {"until", "max_gen_toks", "do_sample", "temperature", "top_p"}
        if foreign := sorted(given.keys() - known):
            raise InputError(f"generation_kwargs: expected {', '.join(sorted(known))}, got {', '.join(foreign)}: leave it out")
        return {
            "max_tokens": given["max_gen_toks"],
            "temperature": given["temperature"],
            "top_p": given.get("top_p", 1.0),
            "stop": tuple(given["until"]),
        }

    def _with_room(self, prompt: str, wanted: int) -> list[int]:
        """The prompt's tokens, but for the first ones where the answer would find no room; at least half a context stays."""
        tokens = self.writer.begun(self.tok_encode(prompt))
        room = max(self.max_length - wanted, self.max_length // 2)
        self.truncated += len(tokens) > room
        return tokens[-room:]


def run_tasks(
    model: HarnessModel, tasks: Sequence[str], *, few_shot: int | None = None, limit: int | None = None, include: Path | None = None
) -> dict[str, Any]:
    """What the harness finds for its tasks: {"results": {task: {"metric,filter": value}}, "versions": ..., "n-samples": ...}.

    few_shot: examples in the prompt; default: each task's own. include: a folder with further tasks (YAML). Raises InputError
    for a task that the harness does not know.
    """
    manager = _manager(tasks, include)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown or not tasks:
        raise InputError(f"--tasks: expected names of lm-evaluation-harness's tasks, got {', '.join(unknown) or 'none'}")
    found = _evaluator.simple_evaluate(
        model, tasks=list(tasks), num_fewshot=few_shot, limit=limit, task_manager=manager, log_samples=False
    )
    return {key: found[key] for key in ("results", "groups", "versions", "n-shot", "n-samples") if key in found}


def _manager(tasks: Sequence[str], include: Path | None) -> Any:
    """The harness's index of tasks; without its own thousands, which take long to read, where `include` has all that are wanted."""
    if include is None:
        return _tasks.TaskManager()
    alone = _tasks.TaskManager(include_path=str(include), include_defaults=False)
    return alone if set(tasks) <= set(alone.all_tasks) else _tasks.TaskManager(include_path=str(include))
