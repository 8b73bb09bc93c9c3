"""Commands about what trained models can do: `muonlab eval ...`. Heavy imports wait until a command needs them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from muonlab.cli.app import MODELS, app, positive, say, show
from muonlab.cli.flags import Batch, Json, Loading, TemplateText, Writing, listed
from muonlab.errors import InputError

if TYPE_CHECKING:
    from muonlab.evaluate.accuracy import Accuracy
    from muonlab.evaluate.gsm8k import Problem, Prompt, Result, Sampling
    from muonlab.evaluate.team import Team

evaluation = App(group=MODELS, name="eval", help="What trained models can do, and whether one can do more than another.")
app.command(evaluation)


@evaluation.command
def loss(
    run: Path,
    *,
    data: Annotated[Path | None, Parameter(help="a folder that muonlab data prepare made; default: the run's own data")] = None,
    split: Annotated[Literal["validation", "train"], Parameter(help="what is held out, or what is not")] = "validation",
    tokens: Annotated[int | None, Parameter(help="default: as in training (train.eval_tokens); of --data, all")] = None,
    loading: Loading = Loading(),
    json: Json = False,
) -> None:
    """Compute a run's loss on what it held out, or on other prepared data.

    Parameters
    ----------
    run:
        Folder of a run.
    """
    from muonlab.cli.progress import EvaluationDisplay
    from muonlab.evaluate.loss import evaluate_loss

    positive("--tokens", tokens)
    loaded = loading.load(run)
    with EvaluationDisplay(run.name) as display:
        found = evaluate_loss(
            loaded,
            data,
            split=split,
            tokens=tokens,
            on_progress=lambda share, rate: display.update(share, f"{100 * share:.0f} %  {rate:,.0f} tokens/s"),
        )
    place = {"run": str(run), "step": loaded.step, "data": None if data is None else str(data), "split": split}

    def in_words() -> str:
        known = "" if found["recorded"] is None else f" (in training: {found['recorded']:.4f})"
        return (
            f"{run}, step {loaded.step}: loss {found['loss']:.4f} nats a token{known}, perplexity {found['perplexity']:.4g}, over "
            f"{found['targets']:,} targets; {found['tokens_per_second']:,.0f} tokens/s"
        )

    for line in found["remarks"]:
        say(line)
    show({**place, **found, "precision": loaded.machine.precision}, json, in_words)


@evaluation.command
def gsm8k(
    *run: Path,
    data: Annotated[list[str], Parameter(negative=(), help="test problems: files, or a data set's name; may be repeated")],
    out: Annotated[Path | None, Parameter(help="a new JSONL file, a line for each problem, for `muonlab eval compare`")] = None,
    samples: Annotated[int, Parameter(help="answers of each model to each problem; they vote")] = 1,
    vote: Annotated[Literal["majority"], Parameter(help="how answers vote: as values, the most frequent wins")] = "majority",
    ensemble: Annotated[bool, Parameter(negative=(), help="the answers of several runs vote")] = False,
    average: Annotated[bool, Parameter(negative=(), help="the logits of several runs are averaged")] = False,
    rule: Annotated[Literal["official", "strict", "flexible"], Parameter(help="how answers are read out of texts")] = "official",
    few_shot: Annotated[int, Parameter(help="worked examples in the prompt, in lm-eval's form")] = 0,
    examples: Annotated[list[str] | None, Parameter(negative=(), help="where they come from; may be repeated")] = None,
    writing: Writing = Writing(),
    limit: Annotated[int | None, Parameter(help="only so many problems, the first ones")] = None,
    batch: Batch = 64,
    template: TemplateText = None,
    loading: Loading = Loading(),
    subset: Annotated[str | None, Parameter(help="a data set's subset, such as main")] = None,
    split: Annotated[str | None, Parameter(help="a data set's split, such as test")] = None,
    alpha: Annotated[float, Parameter(help="1 − alpha is the interval's level")] = 0.05,
    json: Json = False,
) -> None:
    """Count how many problems of GSM8K, or of a task in its form, a run answers; or several runs together.

    A problem has the columns question and answer, the answer's last line being `#### N`. A run reads the question in the
    template that it was trained on.

    Parameters
    ----------
    run:
        Folders of runs: one, or several with --ensemble or --average.
    """
    from muonlab.cli.data import template_text
    from muonlab.data.writing import refuse_existing
    from muonlab.evaluate.gsm8k import FEW_SHOT_STOPS, read_problems, summarize
    from muonlab.evaluate.results import write_results
    from muonlab.evaluate.team import gather

    where = loading.how()
    positive("--limit", limit)
    positive("--batch", batch)
    _level(alpha)
    stop = FEW_SHOT_STOPS if few_shot else ()
    how = writing.sampling(max_tokens=512, temperature=0.7 if samples > 1 else 0.0, samples=samples, stop=stop)
    if out is not None:
        refuse_existing(out)
    problems = read_problems(data, subset=subset, split=split)
    prompt = _examples(few_shot, examples, problems, subset, how.seed, template)
    team = gather(
        run, together="vote" if ensemble else "average" if average else None, both=ensemble and average, prompt=prompt,
        template=template_text(template), batch=batch, **where,
    )  # fmt: skip
    results, seen = _asked(team, problems[:limit], how, rule, batch)
    settings = {**vars(how), "stop": list(how.stop), "vote": vote, "few_shot": few_shot, "data": data, "limit": limit}
    figures = summarize(results, alpha=alpha) | team.as_json()
    figures |= {"settings": settings, "seen": seen, "out": str(out) if out else None}
    try:
        show(figures, json, lambda: "\n".join(_figures_in_words(team, figures)))
    finally:  # neither the figures nor the file is lost with the other
        if out is not None:
            write_results(out, results)


def _asked(team: Team, problems: list[Problem], how: Sampling, rule: str, batch: int) -> tuple[list[Result], int | None]:
    """What the team answers, and how many of the problems it has trained on."""
    from muonlab.cli.progress import EvaluationDisplay
    from muonlab.evaluate.gsm8k import evaluate
    from muonlab.evaluate.seen import in_words, problems_seen

    for line in team.told:
        say(line)
    seen = problems_seen((run.described for run in team.runs), problems)
    if warning := in_words(seen, len(problems), team.name):
        say(warning)
    with EvaluationDisplay(team.name) as display:
        results = evaluate(
            problems,
            team.models,
            prompt=team.prompts,
            sampling=how,
            rule=rule,
            at_a_time=batch,
            on_progress=lambda n: display.update(n / len(problems), f"{n}/{len(problems)}  {team.tokens_per_second:,.0f} tokens/s"),
        )
    for line in team.warnings():
        say(line)
    return results, seen


def _examples(
    k: int, names: list[str] | None, problems: list[Problem], subset: str | None, seed: int, template: str | None
) -> Prompt | None:
    """The prompt with k examples; None: each run's own."""
    from muonlab.evaluate.gsm8k import few_shot, read_problems

    if k < 0 or bool(k) != bool(names):
        raise InputError(f"--few-shot K needs --examples FILE, and the other way round; got {k} and {', '.join(names or ['none'])}")
    if not k or names is None:
        return None
    if template is not None:
        raise InputError("--template: a few-shot prompt has lm-eval's form: leave it out, or --few-shot")
    return few_shot(read_problems(names, subset=subset), problems, k, seed=seed)


def _figures_in_words(team: Team, figures: dict[str, Any]) -> list[str]:
    from muonlab.evaluate.accuracy import Accuracy

    def words(part: dict[str, Any]) -> str:
        found = Accuracy(part["correct"], part["problems"], part["low"], part["high"])
        return accuracy_in_words(found, figures["alpha"])

    lines = [f"{team.name}: {words(figures)}"]
    lines += [f"  level {level}: {words(part)}" for level, part in figures["levels"].items()]
    if figures["published"] is not None and figures["published"] != figures["correct"]:
        lines.append(f"  as the source of the rule {figures['rule']} counts: {figures['published']}")
    if figures["vote_share"] is not None:
        lines.append(f"  {100 * figures['vote_share']:.0f} % of the votes were for the winner; {figures['ties']} ties")
    if figures["without_answer"]:
        lines.append(f"  without an answer: {figures['without_answer']}")
    if figures["seen"]:
        lines.append(f"  of these problems trained on: {figures['seen']}")
    work = figures["work"]
    lines.append(f"  {work['tokens']:,} tokens in {work['seconds']:.1f} s: {work['tokens_per_second']:,.0f} tokens/s")
    return lines


@evaluation.command(name="lm-eval")
def lm_eval(
    run: Path,
    *,
    tasks: Annotated[str, Parameter(help="names of the harness's tasks, such as gsm8k,arc_easy")],
    out: Annotated[Path | None, Parameter(help="a new JSON file with all figures")] = None,
    few_shot: Annotated[int | None, Parameter(help="examples in the prompt; default: each task's own number")] = None,
    limit: Annotated[int | None, Parameter(help="only so many problems of each task")] = None,
    include: Annotated[Path | None, Parameter(help="a folder with tasks of one's own (YAML)")] = None,
    batch: Batch = 64,
    loading: Loading = Loading(),
    json: Json = False,
) -> None:
    """Run tasks of lm-evaluation-harness: `pip install "muonlab[lm-eval]"`. It fetches its data sets from the hub.

    Parameters
    ----------
    run:
        Folder of a run.
    """
    from json import dumps, loads

    from muonlab.data.writing import new_file, refuse_existing
    from muonlab.evaluate.harness import HarnessModel, run_tasks

    positive("--limit", limit)
    positive("--batch", batch)
    if out is not None:
        refuse_existing(out)
    loaded = loading.load(run)
    model = HarnessModel(loaded, batch_size=batch)
    found = run_tasks(model, list(listed("--tasks", tasks)), few_shot=few_shot, limit=limit, include=include)
    if model.truncated:
        say(f"{model.truncated} prompts lost their beginning: the model's context is {model.max_length} tokens")
    figures = {"run": str(run), "step": loaded.step, **found, "truncated": model.truncated}
    if out is not None:
        with new_file(out) as file:
            file.write(dumps(figures, indent=1, default=str) + "\n")
    show(loads(dumps(figures, default=str)), json, lambda: "\n".join(_tasks_in_words(found["results"])))


def _tasks_in_words(results: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each task and metric: what it is, and its standard error where the harness has one."""
    lines = []
    for task, metrics in results.items():
        for key, value in metrics.items():
            metric, _, rule = key.partition(",")
            if isinstance(value, float) and not metric.endswith("_stderr"):
                error = metrics.get(f"{metric}_stderr,{rule}")
                lines.append(f"{task}: {metric} ({rule}) {value:.4f}" + (f" ± {error:.4f}" if isinstance(error, float) else ""))
    return lines


@evaluation.command
def compare(
    a: Path,
    b: Path,
    *,
    alpha: Annotated[float, Parameter(help="level of the test, 1 − alpha of the intervals")] = 0.05,
    margin: Annotated[float | None, Parameter(help="differences below it do not matter: equivalent; 0.02 is two points")] = None,
    json: Json = False,
) -> None:
    """Say whether B answers more of the same problems than A: McNemar's exact test over those that changed.

    Parameters
    ----------
    a:
        File that `muonlab eval gsm8k --out` wrote.
    b:
        Another, of the same problems.
    """
    from muonlab.evaluate.results import compare_files

    _level(alpha)
    if margin is not None and not 0 < margin < 1:
        raise InputError(f"--margin: expected a difference between 0 and 1, such as 0.02, got {margin:g}")
    found = compare_files(a, b, alpha=alpha, margin=margin)
    for note in found.notes:
        say(f"note: {note}")
    names = {"a": str(a), "b": str(b), "alpha": alpha, "margin": margin}
    details: dict[str, Any] = asdict(found)
    details["files"] = names

    def in_words() -> str:
        lines = [f"{name}: {accuracy_in_words(part, alpha)}" for name, part in ((a, found.a), (b, found.b))]
        return "\n".join([*lines, f"{b} against {a}: {found.paired.verdict} ({found.paired.reason})"])

    show(details, json, in_words)


def accuracy_in_words(found: Accuracy, alpha: float) -> str:
    interval = f"{100 * (1 - alpha):g} % CI {100 * found.low:.1f} to {100 * found.high:.1f}"
    return f"{100 * found.value:.1f} % right ({found.correct} of {found.n}), {interval}"


def _level(alpha: float) -> None:
    if not 0 < alpha < 0.5:
        raise InputError(f"--alpha: expected a level between 0 and 0.5, such as 0.05, got {alpha:g}")
