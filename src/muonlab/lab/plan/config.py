"""What an experiment's TOML file may say: a question, a base recipe, arms (what each changes), grids, seeds, and what decides."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    WithJsonSchema,
    field_validator,
    model_validator,
)

_MOST_SEEDS = 10_000  # a number beyond is a slip, and a list of it would fill the memory


def _counted(value: Any) -> Any:
    if isinstance(value, int) and value > _MOST_SEEDS:
        raise ValueError(f"expected at most {_MOST_SEEDS} seeds, or a list of them in brackets, got {value}")
    return list(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value


_SEED_LIST = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
Seeds = Annotated[
    tuple[NonNegativeInt, ...],
    BeforeValidator(_counted),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, _SEED_LIST]}),
]


Metric = Literal["val_loss", "best_val_loss", "train_loss", "seconds"]


class Budget(BaseModel):
    """What every run of the experiment is given, declared so that the report can say which runs were given something else."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: PositiveInt | None = Field(None, description="optimizer steps")
    tokens: PositiveInt | None = Field(None, description="training tokens")
    seconds: PositiveFloat | None = Field(None, description="seconds of training")

    @model_validator(mode="after")
    def _one_kind(self) -> Budget:
        if len(self.model_fields_set) != 1:
            raise ValueError("expected one of steps, tokens and seconds, such as { steps = 1000 }")
        return self


class Refine(BaseModel):
    """A second, finer grid: from the value below each arm's winner to the value above it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    of: str = Field(description="the experiment whose winners are looked at more closely, a path relative to this file")
    points: int = Field(9, ge=3, description="values of each swept key, the winner in their middle: an odd number")
    arms: tuple[str, ...] | None = Field(None, description="of these arms; default: all that have a grid")
    beyond: bool = Field(False, description="where the winner is the last value of its grid: go on beyond it, instead of refusing")

    @field_validator("points")
    @classmethod
    def _odd(cls, points: int) -> int:
        if points % 2 == 0:
            raise ValueError(f"expected an odd number, so that the winner stands in the middle, got {points}")
        return points


class HeadToHead(BaseModel):
    """The two best of an experiment against each other, for longer and with fresh seeds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    of: str = Field(description="the experiment whose best meet, a path relative to this file")
    steps: PositiveInt = Field(description="train.steps of both, more than they had")
    cells: tuple[str, ...] | None = Field(None, min_length=2, description="these instead of the two best")


class ExperimentConfig(BaseModel):
    """The content of an experiment's TOML file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, title="muonlab experiment")

    question: str = Field(description="what the experiment answers, in a sentence")
    base: str | None = Field(None, description="the recipe that all arms start from, a path relative to this file")
    arms: dict[str, dict[str, Any]] = Field(
        {}, description="name -> what it changes in the recipe, and optionally `grid` and `zip`: key -> list of values"
    )
    grid: dict[str, Any] = Field({}, description="key -> list of values, crossed with every arm")
    zip: dict[str, Any] = Field({}, description="key -> list of values, all of one length, which advance together, in every arm")
    set: dict[str, Any] = Field({}, description="changes of the recipe for all arms")
    seeds: Seeds = Field(description="a list, or a number n for 0 … n−1; one run for each arm and seed")
    metric: Metric = Field("val_loss", description="decides the verdicts; lower is better")
    metrics: tuple[Metric, ...] = Field((), description="further metrics that the report shows")
    target: float | None = Field(None, description="validation loss whose first crossing is timed, in steps and seconds")
    targets: tuple[float, ...] = Field((), description="further targets; without `target` the first of them takes its place")
    baseline: str | None = Field(None, description="the arm that the others are compared with; default: the first, without grids")
    margin: PositiveFloat | None = Field(None, description="differences of the metric below this one do not matter (equivalence)")
    alpha: float = Field(0.05, gt=0, lt=0.5, description="level of the tests and of the confidence intervals (1 − alpha)")
    budget: Budget | None = Field(None, description="what every run is given: one of steps, tokens and seconds")
    tuned_by: str | tuple[str, ...] | None = Field(
        None,
        description="experiment files that chose these settings; their seeds, and those of what tuned them, may not be used here",
    )
    profiles: dict[str, dict[str, Any]] = Field(
        {}, description="name -> changes of this file, such as another base and longer arms for a GPU: muonlab sweep --profile NAME"
    )
    refine: Refine | None = Field(None, description="instead of base and arms: a finer grid around another experiment's winners")
    head_to_head: HeadToHead | None = Field(None, description="instead of base and arms: another experiment's two best, for longer")

    @model_validator(mode="after")
    def _one_source(self) -> ExperimentConfig:
        given = [key for key in ("refine", "head_to_head") if getattr(self, key) is not None]
        own = [key for key in ("base", "arms", "grid", "zip") if key in self.model_fields_set]
        if given and (own or len(given) > 1):
            raise ValueError(f"{', '.join([*given, *own])}: expected one of refine, head_to_head, and base with arms")
        missing = [] if given else [key for key in ("base", "arms") if key not in own]
        if missing:
            raise ValueError("\n".join(f"{key}: missing; this key is required" for key in missing))
        if not given and not self.arms:
            raise ValueError("arms: expected at least one, got none")
        return self

    @model_validator(mode="after")
    def _seeds_fit(self) -> ExperimentConfig:
        if not self.seeds:
            raise ValueError("seeds: expected at least one seed (three or more for a verdict), got none")
        if len({*self.seeds}) != len(self.seeds):
            raise ValueError(f"seeds: expected different ones, got {list(self.seeds)}")
        for name in self.arms:
            if not 0 < len(name) <= 60 or not name.isprintable():
                raise ValueError(f"arms: expected names of 1 to 60 printable characters, got {name!r}")
        return self

    @property
    def follows(self) -> Refine | HeadToHead | None:
        return self.refine or self.head_to_head

    def all_targets(self) -> list[float]:
        """The targets, each once; the one that the table of arms shows comes first."""
        return list(dict.fromkeys([*([] if self.target is None else [self.target]), *self.targets]))
