"""Where a sweep's figures come from, and what they cost. Imported and logged runs may lack any of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from muonlab.lab.judge.results import Results
from muonlab.lab.runs.store import RunRecord

Facts = list[tuple[str, str]]


def facts(results: Results) -> Facts:
    """Provenance: what all runs share, and where they do not, each variant."""
    runs = [run.run for run in results.runs if run.run]
    if not runs:
        return []
    found = {
        "source": _each(runs, lambda r: {"import": "imported logs", "log": "logged by another program"}.get(r.get("source", ""))),
        "code": _each(runs, _code),
        "versions": _each(runs, lambda r: ", ".join(f"{name} {v}" for name, v in _part(r, "provenance", "versions").items())),
        "hardware": _each(runs, _hardware),
        "computed on": _each(runs, _machine) | _each(runs, _products),
        "data": _each(runs, _data),
        "model": _each(runs, _model),
        "budget": _each((r.result for r in results.runs if r.status == "finished"), _budget),
        "seeds": {", ".join(map(str, results.plan["seeds"]))},
        "dates": _each(runs, lambda r: str(_part(r, "provenance").get("started") or "")[:10]),
    }
    return [(name, _listed(values)) for name, values in found.items() if values]


def cost(results: Results) -> Facts:
    """What all runs used up together: tokens, seconds, FLOPs where they are known, the longest and the shortest run."""
    ended = [run for run in results.runs if run.result]
    found: Facts = []
    for key, unit in (("tokens", "tokens"), ("steps", "steps")):
        known = [run.result[key] for run in ended if run.result.get(key) is not None]
        if known:
            found.append((unit, f"{sum(known):,}{_of(known, ended)}"))
    times = sorted((run for run in ended if run.result.get("seconds") is not None), key=lambda run: run.result["seconds"])
    if times:
        total = sum(run.result["seconds"] for run in times)
        found.append(("training time", f"{total:,.0f} s = {total / 3600:.2f} h{_of(times, ended)}, evaluation not counted"))
    flops = [f for run in ended if (f := _flops(run)) is not None]
    if flops:
        found.append(("computation", f"{sum(flops):.3g} FLOP{_of(flops, ended)}"))
    if len(times) > 1:
        found += [("longest run", _one(times[-1])), ("shortest run", _one(times[0]))]
    return found


def _of(known: list[Any], ended: list[RunRecord]) -> str:
    return f" in {len(known)} runs" if len(known) == len(ended) else f" in the {len(known)} of {len(ended)} runs that say it"


def _one(run: RunRecord) -> str:
    return f"{run.result['seconds']:,.1f} s ({run.cell}, seed {run.seed})"


def _flops(run: RunRecord) -> float | None:
    each, tokens = _part(run.run, "model").get("flops_per_token"), run.result.get("tokens")
    return each * tokens if each is not None and tokens is not None else None


def _each(things: Iterable[dict[str, Any]], tell: Callable[[dict[str, Any]], str | None]) -> set[str]:
    return {text for thing in things if (text := tell(thing))}


def _listed(values: set[str]) -> str:
    shown = sorted(values)
    return "; ".join(shown[:6]) + (f"; and {len(shown) - 6} more" if len(shown) > 6 else "")


def _part(run: dict[str, Any], *path: str) -> dict[str, Any]:
    for name in path:
        run = run.get(name) or {}
    return run


def _code(run: dict[str, Any]) -> str:
    provenance = _part(run, "provenance")
    git = provenance.get("git")
    if git:
        return f"{git['commit'][:12]}{' with uncommitted changes' if git.get('dirty') else ''}"
    return "outside a repository" if "git" in provenance else ""


def _hardware(run: dict[str, Any]) -> str:
    provenance = _part(run, "provenance")
    chip, cores = provenance.get("gpu") or provenance.get("cpu"), provenance.get("cores")
    return ", ".join([*([str(chip)] if chip else []), *([f"{cores} cores"] if cores else [])])


def _machine(run: dict[str, Any]) -> str:
    machine = _part(run, "machine")
    told = [str(machine[key]) for key in ("device", "precision") if machine.get(key)]
    return ", ".join([*told, *([f"{machine['threads']} thread(s) a run"] if machine.get("threads") else [])])


def _products(run: dict[str, Any]) -> str:
    fast = _part(run, "machine").get("bf16_fast")
    return "" if fast is None else f"orthogonalizer products in {'bfloat16' if fast else 'float32'}"


def _data(run: dict[str, Any]) -> str:
    about = _part(run, "data")
    told = [str(about["source"])] if about.get("source") else []
    told += [f"SHA-256 {about['sha256'][:16]}…"] if about.get("sha256") else []
    told += [f"split {about['split']}"] if about.get("split") else []
    return ", ".join(told)


def _model(run: dict[str, Any]) -> str:
    about = _part(run, "model")
    told = [f"{about['parameters']:,} parameters"] if about.get("parameters") else []
    told += [f"{about['flops_per_token'] / 1e6:.2f} MFLOP a token"] if about.get("flops_per_token") else []
    return ", ".join(told)


def _budget(result: dict[str, Any]) -> str:
    if result.get("tokens") is not None:
        return f"{result['tokens']:,} tokens a run"
    return f"{result['steps']:,} steps a run" if result.get("steps") is not None else ""
