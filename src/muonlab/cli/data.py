"""Commands about data: `muonlab data ...`. Heavy imports wait until a command needs them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from muonlab.cli.app import DATA, app, positive, say, show
from muonlab.cli.flags import Json, listed
from muonlab.errors import InputError

if TYPE_CHECKING:
    from muonlab.data.prepared import Prepared

data = App(group=DATA, name="data", help="Prepare data sets, train tokenizers, look at what is prepared.")
app.command(data)

Columns = Annotated[
    str, Parameter(help="names of columns: PROMPT,ANSWER (several prompts may come before the answer), or one with plain text")
]
Format = Literal["jsonl", "json", "csv", "tsv", "parquet", "text", "bin"]
Kind = Annotated[Format | None, Parameter(name="--format", help="of files whose names do not say it")]
Subset = Annotated[str | None, Parameter(help="a data set's subset (configuration), such as main")]
Split = Annotated[str | None, Parameter(help="a data set's split; default: train")]
Limit = Annotated[int | None, Parameter(help="read so many rows and no more")]


@data.command
def prepare(
    *sources: str,
    out: Path,
    columns: Columns = "text",
    template: str | None = None,
    mask: Literal["prompt", "none"] | None = None,
    tokenizer: str = "bytes",
    held_out: float = 0.05,
    against: Annotated[
        list[Path] | None, Parameter(negative=(), help="prepared folders: count the rows that are in them, too; may be repeated")
    ] = None,
    dedupe: Annotated[bool, Parameter(negative=(), help="leave out rows whose columns came before")] = False,
    skip_bad: Annotated[bool, Parameter(negative=(), help="leave out rows that lack a column or its text, and count them")] = False,
    limit: Limit = None,
    subset: Subset = None,
    split: Split = None,
    kind: Kind = None,
    json: Json = False,
) -> None:
    """Turn rows into a folder of tokens to train on. The same command goes on with what was stopped.

    Parameters
    ----------
    sources:
        Files (JSONL, JSON, CSV, Parquet, text, token shards; also .gz, .bz2, .xz, .zst), globs, folders, folders that the
        library datasets saved, or names of data sets on the Hugging Face hub.
    out:
        The folder to make.
    template:
        A Jinja template of the prompt, or a file with one: its variables are the prompt's columns, and prompt for them all.
        The answer follows it. Default: the prompt and a line end.
    mask:
        prompt: the loss counts on the answer alone (the default where there is a prompt); none: on all.
    tokenizer:
        bytes, a tokenizer.json, or a name on the hub.
    held_out:
        The share of prompts that is held out for validation, chosen by a hash of the prompt.
    """
    from muonlab.cli.progress import PrepareDisplay
    from muonlab.data.overlap import in_words, shared
    from muonlab.data.prepare import Plan
    from muonlab.data.prepare import prepare as prepare_data
    from muonlab.data.prepared import open_prepared

    if not sources:
        raise InputError("muonlab data prepare: expected files, a folder or a data set's name, got none")
    plan = Plan(
        sources=sources, columns=listed("--columns", columns), template=template_text(template), mask=mask, tokenizer=tokenizer,
        kind=kind, subset=subset, split=split, limit=limit, dedupe=dedupe, skip_bad=skip_bad, held_out=held_out,
    )  # fmt: skip
    others = {folder: open_prepared(folder) for folder in against or ()}
    with PrepareDisplay(out.name) as display:
        made = prepare_data(plan, out, on_progress=display.update, say=display.say)
    seen = {str(folder): shared(made, other) for folder, other in others.items()}
    for folder, count in seen.items():
        if words := in_words(count, "rows", f"rows of {folder}"):
            say(f"{out}: {words}")
    show({"folder": str(out), **made.manifest, **({"seen": seen} if seen else {})}, json, lambda: "\n".join(_summary(made)))


@data.command(name="tokenizer")
def train_tokenizer(
    *sources: str,
    out: Path,
    vocab_size: int,
    columns: Columns = "text",
    split_digits: Annotated[bool, Parameter(negative=(), help="every digit is a token of its own")] = False,
    limit: Limit = None,
    subset: Subset = None,
    split: Split = None,
    kind: Kind = None,
    json: Json = False,
) -> None:
    """Train a byte-level BPE tokenizer on the texts of all columns named.

    Parameters
    ----------
    sources:
        As for muonlab data prepare.
    out:
        The file to write, such as tokenizer.json.
    vocab_size:
        Tokens, the 256 bytes and the end of a document included.
    """
    from muonlab.data.tokenizers import about, train_bpe

    if not sources:
        raise InputError("muonlab data tokenizer: expected files, a folder or a data set's name, got none")
    if out.exists():
        raise InputError(f"--out {out}: is already there: choose another name, or delete it")
    trained = train_bpe(
        _texts(sources, listed("--columns", columns), limit, subset, split, kind), vocab_size, split_digits=split_digits
    )
    if trained.vocab_size < vocab_size:
        say(f"the texts yield {trained.vocab_size} tokens, not {vocab_size}")
    out.parent.mkdir(parents=True, exist_ok=True)
    trained.save(out)
    show({"file": str(out), **about(trained)}, json, lambda: f"{out}: {trained.vocab_size:,} tokens")


@data.command(name="show")
def show_data(
    folder: Path,
    *,
    context: Annotated[int, Parameter(help="pack for rows of so many tokens")] = 1024,
    examples: Annotated[int, Parameter(help="documents to print")] = 3,
    verify: Annotated[bool, Parameter(negative=(), help="compare every file with its SHA-256")] = False,
    json: Json = False,
) -> None:
    """Show what a prepared folder holds, what packing costs, and a few documents with the part that is no target in ⟦ ⟧.

    Parameters
    ----------
    folder:
        What muonlab data prepare made.
    """
    from muonlab.data.packing import PackedLoader
    from muonlab.data.prepared import open_prepared
    from muonlab.data.tokenizers import continuation

    positive("--context", context)
    made = open_prepared(folder)
    damaged = made.damage() if verify else []
    if damaged:
        raise InputError(f"{folder}: damaged: {', '.join(damaged)} do not match their SHA-256; prepare it again")
    packed = PackedLoader(made.train, context=context, batch=1, seed=0).waste() if len(made.train) else None
    tokenizer = made.tokenizer
    texts = []
    for i in range(min(examples, len(made.train))):
        tokens, lead = made.train.tokens(i), made.train.masked(i)
        texts.append({"prompt": tokenizer.decode(tokens[:lead]), "answer": continuation(tokenizer, tokens[:lead], tokens[lead:])})
    waste = None if packed is None else {**vars(packed), "context": context, "share": packed.share}
    found = {"folder": str(folder), "sha256": made.sha256, **made.manifest, "packing": waste, "examples": texts}
    show(found, json, lambda: "\n".join([*_summary(made), *_packing(packed, context), *_marked(texts)]))


def template_text(given: str | None) -> str | None:
    """A template, or the content of the file that it names."""
    if given is None or "\n" in given or "{" in given or not Path(given).is_file():
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--template {given}: cannot be read: {error}") from None


def _texts(
    sources: tuple[str, ...], columns: tuple[str, ...], limit: int | None, subset: str | None, split: str | None, kind: str | None
) -> Iterator[str]:
    from muonlab.data.examples import Reader
    from muonlab.data.prepare import Plan
    from muonlab.data.sources import find_sources
    from muonlab.data.template import Template
    from muonlab.data.tokenizers import ByteTokenizer

    plan = Plan(sources, columns, limit=limit, held_out=0)
    reader = Reader(find_sources(sources, kind=kind, subset=subset, split=split), Template(columns), ByteTokenizer(), plan)
    found = False
    for batch in reader.batches(0, 0, 0, 1024, 1 << 18):
        for example in batch.examples:
            found = True
            yield from filter(None, (example.prompt, example.answer))
    if not found:
        raise InputError(f"{', '.join(sources)}: no text to train a tokenizer on: name sources with rows")


def _summary(made: Prepared) -> list[str]:
    about = made.manifest
    left = "".join(f", {count:,} left out ({reason})" for reason, count in about["left_out"].items())
    same = f", {about['duplicates']:,} duplicates" if about["dedupe"] else ""
    lines = [f"{made.folder}: {about['rows']:,} rows{same}{left}; tokenizer {about['tokenizer']['name']}"]
    for name in ("train", "validation"):
        part = about[name]
        share = f", {100 * part['targets'] / part['tokens']:.1f} % of them targets" if part["tokens"] else ""
        lines.append(f"  {name}: {part['documents']:,} documents, {part['tokens']:,} tokens{share}")
    if not about["validation"]["documents"]:
        lines.append("  nothing is held out: to train on this, name data.validation_files, or prepare with a larger --held-out")
    return lines


def _packing(waste: Any, context: int) -> list[str]:
    return [] if waste is None else [f"  packed for a context of {context:,}: {waste}"]


def _marked(texts: list[dict[str, str]]) -> list[str]:
    marked = [(f"⟦{text['prompt']}⟧" if text["prompt"] else "") + text["answer"] for text in texts]
    return [line for i, text in enumerate(marked) for line in ("", f"document {i}:", text)]
