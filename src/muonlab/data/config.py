"""A recipe's [data] table."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator


def _of_rows(off: Any, description: str) -> Any:
    """A key of source "rows". At `off` it is left out of a recipe's canonical form, so that runs on other sources keep their id."""
    return Field(off, exclude_if=lambda value: value == off, description=f"rows: {description}")


class DataConfig(BaseModel):
    """Which text or tokens to train on, and what is held out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["stdlib", "text", "jsonl", "bin", "prepared", "rows"] = Field(
        "stdlib",
        description="stdlib: the .py files of the running Python; text, jsonl: your files; bin: token shards; prepared: "
        "folders that `muonlab data prepare` made; rows: what that command reads, prepared into the cache before the run",
    )
    files: tuple[str, ...] = Field(
        (),
        description="paths or globs, relative to the working directory; of prepared data, folders; of rows, names of data sets too",
    )
    validation_files: tuple[str, ...] = Field(
        (), description="held-out files, not trained on even if `files` matches them; default: a fixed split of `files`"
    )
    validation_fraction: float = Field(0.05, gt=0, lt=1, description="share held out where no validation_files are named")
    text_key: str = Field("text", description="jsonl: the key of each row's text")

    columns: tuple[str, ...] = _of_rows((), "the prompt's columns and then the answer's; default: text alone")
    split: str | None = _of_rows(None, "a data set's split; default: train")
    subset: str | None = _of_rows(None, "a data set's subset (configuration), such as main")
    template: str | None = _of_rows(None, "a Jinja template of the prompt; default: the prompt's columns, a line each")
    mask: Literal["prompt", "none"] | None = _of_rows(None, "prompt (default where there is one): the loss counts on answers alone")
    tokenizer: str = _of_rows("bytes", "bytes, a tokenizer.json, or a name on the hub")
    limit: PositiveInt | None = _of_rows(None, "read so many rows and no more")
    dedupe: bool = _of_rows(False, "leave out rows whose columns came before")
    skip_bad: bool = _of_rows(False, "leave out rows that lack a column or its text")

    @model_validator(mode="after")
    def _files_fit(self) -> DataConfig:
        if (self.source == "stdlib") != (not self.files):
            wanted = "no files for source 'stdlib'" if self.files else f"files for source {self.source!r}"
            raise ValueError(f"expected {wanted}, got files = {list(self.files)}")
        if self.source == "stdlib" and self.validation_files:
            raise ValueError("source 'stdlib' has a fixed split: remove validation_files")
        given = [name for name in OF_ROWS if getattr(self, name) != type(self).model_fields[name].default]
        if self.source != "rows" and given:
            raise ValueError(f"{', '.join(given)}: of source 'rows' alone, got source {self.source!r}")
        if self.source == "prepared" and self.validation_fraction != type(self).model_fields["validation_fraction"].default:
            raise ValueError("validation_fraction: prepared data is split by `muonlab data prepare --held-out`: remove it")
        return self


OF_ROWS = ("columns", "split", "subset", "template", "mask", "tokenizer", "limit", "dedupe", "skip_bad")
