"""A recipe: everything that decides what a run computes, but for the seed. Unknown keys are refused."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import tomli_w
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
    Tag,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from torch import nn

from muonlab.data.config import DataConfig
from muonlab.models.family import ModelConfig, extra, families
from muonlab.models.gpt import GPTConfig
from muonlab.names import choose, did_you_mean
from muonlab.optim import Optimizer, optimizer
from muonlab.optim.checks import check_scalars
from muonlab.optim.elementwise import AdamW
from muonlab.optim.factory import aux_rule
from muonlab.optim.options import elsewhere
from muonlab.optim.scaling import scaling_rule
from muonlab.optim.variants import variant, variants
from muonlab.presets import presets
from muonlab.train.layers import is_factor, laid, scaled
from muonlab.train.schedule import ScheduleConfig
from muonlab.train.settings import read_toml, validated, with_overrides
from muonlab.train.unset import WORD, unset

Rate = Annotated[float, Field(gt=0, le=1e6)]  # learning rates; beyond that float32 overflows in the first step
Role = Literal["matrix", "embedding", "head", "vector"]
Constraint = Literal["none", "unit_norm", "geodesic", "geodesic_by_norm", "sphere"]
Nonfinite = Literal["skip", "raise", "ignore"]


def _aux_rates(value: Any) -> Any:
    """One rate, or {role: rate}: checked by hand, since a union would report each problem once for each of its sides."""
    if value is None:
        return None
    for role, rate in value.items() if isinstance(value, dict) else [("", value)]:
        if role not in ("", *_AUX_ROLES):
            raise ValueError(f"unknown role {role!r}; {did_you_mean(role, _AUX_ROLES)}")
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= 1e6:
            raise ValueError(f"expected a number above 0 (or one for each role), got {rate!r}{f' for {role}' if role else ''}")
    return {role: float(rate) for role, rate in value.items()} if isinstance(value, dict) else float(value)


_AUX_ROLES = ("embedding", "head", "vector")
_RATE_SCHEMA = {"type": "number", "exclusiveMinimum": 0, "maximum": 1e6}
_ROLES_SCHEMA = {"type": "object", "properties": dict.fromkeys(_AUX_ROLES, _RATE_SCHEMA), "additionalProperties": False}
AuxRates = Annotated[
    float | dict[str, float] | None,
    PlainValidator(_aux_rates),
    WithJsonSchema({"anyOf": [_RATE_SCHEMA, _ROLES_SCHEMA, {"type": "null"}]}),
]


def _optimizer_options(schema: dict[str, Any]) -> None:
    """Completes the JSON schema with the options of all variants; which fit which is checked on reading."""
    types = {float: "number", int: "integer", str: "string", bool: "boolean"}
    for name, chosen in variants().items():
        for option, parameter in chosen.options().items():
            kind = next((text for kind, text in types.items() if type(parameter.default) is kind), "array")
            known = schema["properties"].setdefault(option, {"type": kind, "description": "option of"})
            known["description"] += f" {name} (default {parameter.default})"
    schema["additionalProperties"] = False


class OptimizerConfig(BaseModel):
    """Arguments of `muonlab.optimizer`; further keys are options of the chosen optimizer (momentum, orthogonalizer, ...)."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False, json_schema_extra=_optimizer_options)

    name: str = Field("muon", description="one of `muonlab optimizers`")
    lr: Rate | None = Field(None, description="peak learning rate of the matrices; default: the optimizer's own")
    weight_decay: float = Field(0.0, description="of the matrices; decoupled; may be negative")
    aux: Literal["adamw", "lion", "sgd"] = Field("adamw", description="the optimizer for everything else")
    aux_lr: AuxRates = Field(None, description="the peak rate for everything else: one number, or one for each role")
    aux_weight_decay: float = 0.0
    aux_betas: tuple[float, float] | None = Field(None, description="AdamW's betas for everything else; default (0.9, 0.95)")
    aux_eps: PositiveFloat | None = Field(None, description="AdamW's eps for everything else; default 1e-8")
    constraint: Constraint = Field("none", description="a norm that weights keep; along the axes that the model declares")
    project_every: PositiveInt = Field(1, description="steps from one projection to the next, with constraint unit_norm")
    nonfinite: Nonfinite = Field("skip", description="what a NaN or infinite gradient leads to: the step is left out, or an error")
    roles: dict[str, Role] = Field({}, description="{pattern: role} overrides of what the model declares")
    lr_mul: dict[str, Annotated[float, Field(ge=0, le=1e6)]] = Field(
        {}, description="{pattern: factor} on the learning rate of single parameters"
    )
    wd_mul: dict[str, float] = Field({}, description="{pattern: factor} on the weight decay of single parameters")

    @model_validator(mode="before")
    @classmethod
    def _unset(cls, settings: Any) -> Any:
        """The optimizer's own options that may have no value (AdaMuon's beta2) and are "none" have none."""
        if not isinstance(settings, dict) or settings.get("name", "muon") not in variants():
            return settings
        options = variant(settings.get("name", "muon")).options()
        return {k: v for k, v in settings.items() if not (v == WORD and k in options and options[k].default is None)}

    @model_validator(mode="after")
    def _options_fit(self) -> OptimizerConfig:
        if self.name not in variants():
            raise ValueError(f"name: unknown optimizer {self.name!r}; {did_you_mean(self.name, variants())}")
        options = variant(self.name).options()
        extra = self.model_extra or {}
        known = [*type(self).model_fields, *options]
        unknown = [key for key in extra if key not in options]
        problems = [f"{key}: unknown key for {self.name}; {elsewhere(key, options) or did_you_mean(key, known)}" for key in unknown]
        problems += [_wrong_type(key, extra[key], options[key]) for key in extra if key in options]
        if not any(problems):
            try:
                check_scalars(variant(self.name).rule(**extra).scalars())
            except (ValueError, TypeError) as error:
                problems.append(str(error))
        if self.aux_betas is not None and not all(0 <= beta < 1 for beta in self.aux_betas):
            problems.append(f"aux_betas: expected two numbers >= 0 and < 1, got {list(self.aux_betas)}")
        if any(problems):
            raise ValueError("\n".join(filter(None, problems)))
        return self

    def build(self, model: nn.Module) -> Optimizer:
        arguments: dict[str, Any] = {key: getattr(self, key) for key in type(self).model_fields}
        arguments |= self.model_extra or {}
        return optimizer(model, **arguments)

    def canonical(self) -> dict[str, Any]:
        """The table with every value that it leaves open: the optimizer's options, its rate, AdamW's settings for the rest."""
        chosen = variant(self.name)
        table = {key: parameter.default for key, parameter in chosen.options().items()} | self.model_dump(mode="json")
        lr = chosen.lr if self.lr is None else self.lr
        rest, aux_lr = aux_rule(chosen.rule(**(self.model_extra or {})), lr, self.aux, self.aux_betas, self.aux_eps)
        opened = {"lr": lr, "aux_lr": aux_lr}
        if isinstance(rest, AdamW):
            opened |= {"aux_betas": rest.betas, "aux_eps": rest.eps}
        table |= {key: value for key, value in opened.items() if table[key] is None}
        if table.get("coupled") is False:  # an extra that is off: recipes of before there was it keep their identity
            del table["coupled"]
        if "scale" in table:
            table["scale"] = scaling_rule(table["scale"])
        for key, parameter in chosen.options().items():  # 1 and 1.0 are the same rate
            if isinstance(parameter.default, float):
                table[key] = float(table[key])
            elif isinstance(parameter.default, tuple):
                table[key] = [float(x) for x in table[key]]
        return json.loads(json.dumps(table))


def _wrong_type(key: str, value: Any, option: inspect.Parameter) -> str | None:
    default = option.default
    fits = {
        bool: isinstance(value, bool),
        float: isinstance(value, int | float) and not isinstance(value, bool),
        str: isinstance(value, str),
        tuple: isinstance(value, list | tuple) and len(value) == len(default) if isinstance(default, tuple) else False,
    }
    if fits.get(type(default), True):
        return None
    return f"{key}: expected {type(default).__name__} such as {default!r}, got {value!r}"


def _sequences(value: Any) -> Any:
    if value == "auto":  # a layer of settings has put accumulate in its place, unless that stands beside it
        raise ValueError("auto is accumulate = auto; beside it, accumulate says something else: leave one of the two out")
    return value


def _parts(value: Any) -> Any:
    """By hand, as for rates: a union would report a problem twice."""
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"expected a number of at least 1, or auto, got {value!r}")
    return value


_OR_AUTO = {"anyOf": [{"type": "integer", "exclusiveMinimum": 0}, {"const": "auto"}]}
Batch = Annotated[PositiveInt, BeforeValidator(_sequences), WithJsonSchema(_OR_AUTO)]
Parts = Annotated[int | Literal["auto"], PlainValidator(_parts), WithJsonSchema(_OR_AUTO)]


class TrainConfig(BaseModel):
    """How long, on how much at a time, and what is looked at on the way."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: PositiveInt = Field(1000, description="optimizer steps")
    batch: Batch = Field(
        32, description="sequences of model.context tokens per optimizer step; auto: leave it, and split it by accumulate = auto"
    )
    accumulate: Parts = Field(
        1, description="micro-batches that a batch is split into, gradients averaged; auto: as few as fit into memory, by trying"
    )
    precision: Literal["auto", "float32", "bf16"] = Field("auto", description="auto: bf16 autocast where the device is fast at it")
    grad_clip: PositiveFloat | None = Field(None, description="largest global gradient norm")
    compile: bool = Field(False, description="torch.compile the model")
    eval_every: PositiveInt = Field(100, description="optimizer steps between evaluations; the last step is always evaluated")
    eval_tokens: PositiveInt = Field(65536, description="validation tokens per evaluation, always the same ones")
    log_every: PositiveInt = Field(10, description="optimizer steps between logged training losses")
    checkpoint_every: PositiveInt = Field(500, description="optimizer steps between checkpoints; the last step always has one")
    keep_checkpoints: int = Field(2, ge=2, description="newest checkpoints that are kept: one more than is needed")
    keep_best: bool = extra(False, description="also keep that of the lowest validation loss; each new lowest is saved at once")
    keep_every: PositiveInt | None = extra(None, description="also save every so many optimizer steps, and keep all of these")

    @model_validator(mode="after")
    def _accumulation_fits(self) -> TrainConfig:
        if self.accumulate != "auto" and self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} is not a multiple of accumulate {self.accumulate}")
        return self


def _family(model: Any) -> str | None:
    """The family that a [model] table asks for: gpt where it names none. None: it is neither table nor config."""
    return model.get("family", "gpt") if isinstance(model, dict) else getattr(model, "family", None)


if TYPE_CHECKING:
    AnyModel = ModelConfig
else:
    AnyModel = Annotated[Union[tuple(Annotated[c, Tag(name)] for name, c in families().items())], Discriminator(_family)]  # noqa: UP007


_STEP_COUNTS = {  # what scale_steps multiplies, with the defaults
    "train": {
        k: TrainConfig.model_fields[k].default for k in ("steps", "eval_every", "log_every", "checkpoint_every", "keep_every")
    },
    "schedule": {"warmup_steps": ScheduleConfig.model_fields["warmup_steps"].default},
}


def _or_a_preset(schema: dict[str, Any]) -> None:
    """A [model] table is one of a family's, or names a preset, whose family the keys beside it are of."""
    model = schema["properties"]["model"]
    named = {"type": "object", "required": ["preset"], "properties": {"preset": {"enum": [*presets("model")]}}}
    model["anyOf"] = [*model.pop("oneOf", []), named]


class Recipe(BaseModel):
    """One training run, but for the seed."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="muonlab recipe", json_schema_extra=_or_a_preset)

    preset: Annotated[str | None, WithJsonSchema({"type": "string", "enum": [*presets("training")]})] = Field(
        None, exclude=True, description="a training preset (see `muonlab presets`) that optimizer, schedule and train are laid over"
    )
    scale_steps: float = Field(
        1.0,
        gt=0,
        le=1000,
        strict=True,
        allow_inf_nan=False,
        exclude=True,
        description="factor on all step counts: train.steps, eval_every, log_every, ..., and schedule.warmup_steps",
    )
    model: AnyModel = Field(default_factory=GPTConfig)  # pyright: ignore[reportArgumentType]
    data: DataConfig = Field(default_factory=DataConfig)  # pyright: ignore[reportArgumentType]
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)  # pyright: ignore[reportArgumentType]
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)  # pyright: ignore[reportArgumentType]
    train: TrainConfig = Field(default_factory=TrainConfig)  # pyright: ignore[reportArgumentType]

    @model_validator(mode="before")
    @classmethod
    def _expanded(cls, settings: Any) -> Any:
        """Presets and scale_steps give way to the ordinary values that they stand for; what cannot be expanded is refused below."""
        if not isinstance(settings, dict):
            return settings
        settings = unset(cls, laid({}, settings))
        if is_factor(settings.get("scale_steps")):
            settings = scaled(settings, settings.pop("scale_steps"), _STEP_COUNTS)
        return settings

    @field_validator("preset")
    @classmethod
    def _preset_known(cls, name: str | None) -> str | None:
        return None if name is None else choose("training preset", name, presets("training"))

    @model_validator(mode="after")
    def _scalars_known(self) -> Recipe:
        scalars = variant(self.optimizer.name).rule(**(self.optimizer.model_extra or {})).scalars()
        known = [key for key, value in scalars.items() if isinstance(value, float)]
        problems = [
            f"schedule.scalars.{key}: {self.optimizer.name} has no such scalar; {did_you_mean(key, known)}"
            for key in self.schedule.scalars
            if key not in known
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @model_validator(mode="after")
    def _vocabulary_known(self) -> Recipe:
        if self.data.source == "bin" and self.model.vocab_size is None:
            raise ValueError("model.vocab_size: missing; token shards do not say how large their vocabulary is (GPT-2's: 50304)")
        if self.schedule.windows is not None and self.model.window_blocks is None:
            raise ValueError("schedule.windows: needs model.window_pattern, of the family gpt (L: the long window in all layers)")
        if self.train.eval_tokens < self.model.context:
            raise ValueError(
                f"train.eval_tokens: expected at least model.context, {self.model.context}, got {self.train.eval_tokens}"
            )
        return self

    @property
    def tokens_per_step(self) -> int:
        return self.train.batch * self.model.context

    def canonical(self) -> dict[str, Any]:
        """Every key with its value, defaults and the optimizer's options included, as JSON types: recipes that mean the same
        have equal canonical forms, and a default that changes changes them. Only extras that are off are left out. Reads back
        as the same recipe."""
        return {**self.model_dump(mode="json"), "optimizer": self.optimizer.canonical()}

    def to_toml(self) -> str:
        """The canonical form as a recipe file, presets and flags gone into it. TOML has no null: keys without one go."""
        tables = {table: {k: v for k, v in keys.items() if v is not None} for table, keys in self.canonical().items()}
        return tomli_w.dumps(tables)

    def run_id(self, seed: int) -> str:
        """The run's identity: a hash of the canonical recipe and the seed."""
        recipe = self.canonical()
        for key in ("roles", "lr_mul", "wd_mul"):  # of these the order matters: the last pattern that matches wins
            recipe["optimizer"][key] = list(recipe["optimizer"][key].items())
        text = json.dumps({"recipe": recipe, "seed": seed}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def load_recipe(path: str | Path | None, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe in a TOML file (None: the defaults) with "dotted.key=value" overrides laid over it, presets among them. Raises
    InputError, all problems at once."""
    settings = {} if path is None else laid({}, read_toml(path))
    return validated(Recipe, laid(settings, with_overrides({}, overrides)), "command line" if path is None else str(path))
