"""Live progress on stderr: a bar for one run, a grid of arms × seeds for a sweep; plain lines where there is no terminal."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from muonlab.train.run_folder import ENDED

if TYPE_CHECKING:
    from muonlab.data.prepare import Progress as Prepared
    from muonlab.lab.judge.results import Results
    from muonlab.lab.judge.standings import Standing
    from muonlab.lab.run.pool import Event
    from muonlab.lab.show.overview import Entry
    from muonlab.train.run import Progress as RunProgress

_STYLES = {"better": "bold green", "worse": "bold red", "equivalent": "bold blue", "undecided": "yellow"}
_SEEDS_SHOWN = 8  # with more there is no room for a column each
_QUICK = 1.0  # seconds: what is read within them needs no bar
_PLAIN_EVERY = 15.0  # seconds between lines about one run where there is no terminal


class Log(Console):
    """stderr. If nobody reads it any more, the work goes on in silence."""

    def __init__(self) -> None:
        super().__init__(stderr=True, highlight=False, soft_wrap=True)

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Output(Console):
    """stdout. If nobody reads it any more, that is an ordinary BrokenPipeError, as for print."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def duration(seconds: float) -> str:
    whole = max(0, round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes}:{whole % 60:02}"


def _losses(progress: RunProgress) -> str:
    train = "" if progress.train_loss is None else f"train {progress.train_loss:.3f}"
    return train + ("" if progress.val_loss is None else f"  val {progress.val_loss:.3f}")


class RunDisplay:
    """A bar for one run."""

    def __init__(self, name: str, bar: bool = True) -> None:
        """bar: False for plain lines, also on a terminal."""
        self.console = Log()
        self.last_line = time.monotonic()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} steps  {task.fields[note]}"),
        )
        self.bar = Progress(*columns, console=self.console, disable=not (bar and self.console.is_terminal))
        self.task = self.bar.add_task(name, total=1, note="starting")

    def __enter__(self) -> RunDisplay:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def update(self, progress: RunProgress) -> None:
        note = f"{_losses(progress)}  {progress.tokens_per_second:,.0f} tokens/s  {duration(progress.seconds_left)} left"
        self.bar.update(self.task, completed=progress.step, total=progress.steps, note=note)
        if not self.console.is_terminal and (time.monotonic() - self.last_line > _PLAIN_EVERY or progress.step == progress.steps):
            self.last_line = time.monotonic()
            self.say(f"step {progress.step}/{progress.steps}  {note}")

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)


class SweepDisplay:
    """Arms × seeds: what each run is doing, and how long the whole will take."""

    def __init__(self, cells: list[str], seeds: list[int], expected: int | None = None, at_most: bool = False) -> None:
        """expected: the number of cells, where not all are known from the start. at_most: a race may end before all seeds ran."""
        self.console = Log()
        self.cells, self.seeds, self.expected, self.at_most = cells, seeds, expected, at_most
        self.state: dict[tuple[str, int], Event] = {}
        self.began = time.monotonic()
        self.already = 0
        self.looks: dict[str, str] = {}
        self.over = False
        self.live = Live(console=self.console, refresh_per_second=4, get_renderable=self._render)

    def __enter__(self) -> SweepDisplay:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over = True  # the last picture shows every arm: it may scroll
        if self.console.is_terminal:
            self.live.stop()

    def hear(self, event: Event) -> None:
        key = (event.cell, event.seed)
        if key not in self.state and event.kind in ENDED:
            self.already += 1
        before = self.state.get(key)
        if before is not None and before.kind in ENDED:
            return  # every round of a search tells again what has ended
        self.state[key] = event
        if event.kind in ("failed", "retry"):
            self.console.print(event.message, markup=False)
        if self.console.is_terminal or event.kind == "progress" or (before is None and event.kind != "started"):
            return
        done = sum(e.kind in ENDED for e in self.state.values())
        text = f"{event.cell}, seed {event.seed}: {event.kind}"
        if before is not None and before.progress is not None:
            text += f"  {_losses(before.progress)}  {before.progress.tokens_per_second:,.0f} tokens/s"
        self.console.print(f"[{done}/{self._total}] {text}  {self._left()}", markup=False)

    def look(self, standings: dict[str, Standing]) -> None:
        """Where the arms of a race stand."""
        for arm, standing in standings.items():
            if standing.seeds:
                text = f"after {standing.seeds} seeds, {arm}: {standing.verdict.word} ({standing.verdict.reason})"
                if self.looks.get(arm) != text:
                    self.console.print(text, markup=False)
                self.looks[arm] = text

    @property
    def _total(self) -> int:
        return (self.expected or len(self.cells)) * len(self.seeds)

    def _left(self) -> str:
        share = [self._share(event) for event in self.state.values()]
        done = sum(share) - self.already
        remaining = self._total - self.already - done
        if done <= 0:
            return ""
        most = "at most " if self.at_most else ""
        return f"{most}{duration((time.monotonic() - self.began) * remaining / done)} left" if remaining > 1e-9 else "done"

    @staticmethod
    def _share(event: Event) -> float:
        if event.kind == "progress" and event.progress is not None:
            return event.progress.step / event.progress.steps
        return float(event.kind in ENDED)

    def _render(self) -> Group:
        shown = self._shown()
        table = self._by_seed(shown) if len(self.seeds) <= _SEEDS_SHOWN else self._by_arm(shown)
        done = sum(event.kind in ENDED for event in self.state.values())
        speed = sum(e.progress.tokens_per_second for e in self.state.values() if e.kind == "progress" and e.progress is not None)
        rate = f"{speed:,.0f} tokens/s  " if speed else ""
        rest = len(self.cells) - len(shown)
        more = f"and {rest} more arms; " if rest else ""
        return Group(table, Text(f"{more}{done}/{self._total} runs  {rate}{self._left()}", style="dim"))

    def _shown(self) -> list[str]:
        """The arms that there is room for. In a window too low for all, those at work: the last line must stay in sight."""
        room = max(1, self.console.height - 3)  # the header, the last line, and the cursor's
        if self.over or len(self.cells) <= room:
            return list(self.cells)
        busy = {cell for (cell, _), event in self.state.items() if event.kind not in ENDED}
        return [cell for cell in self.cells if cell in busy][:room]

    def _by_seed(self, cells: list[str]) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("arm")
        for seed in self.seeds:
            table.add_column(f"seed {seed}")
        for cell in cells:
            table.add_row(cell, *(self._cell(self.state.get((cell, seed))) for seed in self.seeds))
        return table

    def _by_arm(self, cells: list[str]) -> Table:
        table = Table("arm", "ended", "now", box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for cell in cells:
            events = {seed: event for seed in self.seeds if (event := self.state.get((cell, seed))) is not None}
            ended = sum(event.kind in ENDED for event in events.values())
            now = [Text(f"seed {seed} ") + self._cell(event) for seed, event in events.items() if event.kind not in ENDED]
            table.add_row(cell, f"{ended}/{len(self.seeds)}", Text("  ").join(now))
        return table

    @staticmethod
    def _cell(event: Event | None) -> Text:
        if event is None:
            return Text("waiting", style="dim")
        if event.kind == "progress" and event.progress is not None:
            p = event.progress
            loss = p.val_loss if p.val_loss is not None else p.train_loss
            return Text(f"{100 * p.step / p.steps:3.0f} %  {loss:.3f}" if loss is not None else f"{100 * p.step / p.steps:3.0f} %")
        styles = {
            "finished": "green",
            "diverged": "red",
            "failed": "bold red",
            "stopped": "yellow",
            "retry": "yellow",
            "started": "dim",
        }
        return Text(event.kind, style=styles.get(event.kind, ""))


def print_results(results: Results) -> None:
    """The table of arms and the answer, on stdout."""
    from muonlab.lab.show.report import answer, notes, table

    console = _wide()
    console.print(f"\n{results.plan['question']}\n", style="bold", markup=False)
    _print_table(console, *table(results), whole=("arm", "verdict"))
    console.print()
    for sentence in [*answer(results), *results.audit, *notes(results)]:
        console.print(sentence, markup=False, soft_wrap=True)


def print_overview(entries: list[Entry], figures: list[dict[str, Any]]) -> None:
    """The table of several sweeps and what must be known of it, on stdout."""
    from muonlab.lab.show.overview import overview, remarks

    console = _wide()
    console.print()
    _print_table(console, *overview(entries), whole=("sweep", "verdict"))
    console.print()
    for sentence in [*remarks(entries), *(note for one in figures for note in one["notes"])]:
        console.print(sentence, markup=False, soft_wrap=True)


def _wide() -> Output:
    console = Output(highlight=False)
    if not console.is_terminal:
        console.width = 132  # a file or a pipe has no width of its own
    return console


def _print_table(console: Output, header: list[str], rows: list[list[str]], whole: tuple[str, ...]) -> None:
    """whole: columns that are never wrapped."""
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, name in enumerate(header):
        shown.add_column(name, justify="left" if i == 0 else "right", no_wrap=name in whole)
    for row in rows:
        shown.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    console.print(shown)


class PrepareDisplay:
    """A bar for the preparation of a data set."""

    def __init__(self, name: str) -> None:
        self.console = Log()
        self.last_line = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task(name, total=None, note="starting")

    def __enter__(self) -> PrepareDisplay:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def update(self, progress: Prepared) -> None:
        left = f"  {duration(progress.seconds * (1 / progress.share - 1))} left" if progress.share > 0 else ""
        note = f"{progress.rows:,} rows  {progress.tokens:,} tokens  {progress.tokens_per_second:,.0f} tokens/s{left}"
        self.bar.update(self.task, completed=progress.share, total=1 if progress.share else None, note=note)
        if not self.console.is_terminal and time.monotonic() - self.last_line > _PLAIN_EVERY:
            self.last_line = time.monotonic()
            self.say(note)

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)


class ImportDisplay:
    """A bar for the reading of logs, once it has taken a second; gone when they are read."""

    def __init__(self) -> None:
        self.console = Log()
        self.began = self.last_line = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %  {task.fields[note]}"))
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal, transient=True)
        self.task = self.bar.add_task("reading", total=1, note="")

    def __enter__(self) -> ImportDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def update(self, share: float, name: str) -> None:
        now = time.monotonic()
        if now - self.began < _QUICK:
            return
        left = f"  {duration((now - self.began) * (1 / share - 1))} left" if share > 0 else ""
        self.bar.start()
        self.bar.update(self.task, completed=share, note=f"{name}{left}")
        if not self.console.is_terminal and now - self.last_line > _PLAIN_EVERY:
            self.last_line = now
            self.console.print(f"reading {name}: {100 * share:.0f} % of the logs{left}", markup=False)


class EvaluationDisplay:
    """A bar for an evaluation."""

    def __init__(self, name: str) -> None:
        self.console = Log()
        self.began = self.last_line = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task(name, total=1, note="starting")

    def __enter__(self) -> EvaluationDisplay:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def update(self, share: float, note: str) -> None:
        """share: of the work that is done, above 0."""
        left = (time.monotonic() - self.began) * (1 / share - 1)
        note = f"{note}  {duration(left)} left"
        self.bar.update(self.task, completed=share, note=note)
        if not self.console.is_terminal and time.monotonic() - self.last_line > _PLAIN_EVERY:
            self.last_line = time.monotonic()
            self.console.print(note, markup=False)
