"""`muonlab export`: a trained run, in both forms, and what is refused."""

from __future__ import annotations

import json
import shutil

from muonlab.evaluate.export import load_exported
from muonlab.evaluate.loading import load_run
from muonlab.train.checkpoint import weights_sha256
from muonlab.train.run_folder import RunFolder, write_json


def test_a_run_is_exported_in_both_forms_and_never_over_another_folder(workdir, muonlab):
    assert muonlab("train", "tiny.toml", "--set", "train.steps=6", "--set", "train.eval_every=6", "--out", "runs/a")[0] == 0
    code, out, err = muonlab("export", "runs/a", "--to", "safetensors", "--out", "models/a", "--checkpoint", "3")
    assert code == 0, err
    assert out.startswith("models/a: the model after step 3, ")
    earlier = load_exported("models/a")
    assert weights_sha256(earlier.model) == weights_sha256(load_run("runs/a", checkpoint="3").model)
    assert earlier.trained["step"] == 3

    code, out, err = muonlab("export", "runs/a", "--to", "hf", "--out", "models/hf", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert (told["step"], told["to"]) == (6, "hf")
    assert told["files"] == {path.name: path.stat().st_size for path in (workdir / "models/hf").iterdir()}
    assert "modeling_muonlab_gpt.py" in told["files"]
    config = json.loads((workdir / "models/hf/config.json").read_text())
    assert (config["vocab_size"], config["layers"], config["eos_token_id"]) == (257, 2, 256)

    before = (workdir / "models/hf/config.json").stat()
    code, out, err = muonlab("export", "runs/a", "--to", "safetensors", "--out", "models/hf")
    assert (code, out) == (2, "")
    assert "models/hf: exists already; delete it, or choose another folder with --out" in err
    assert (workdir / "models/hf/config.json").stat().st_mtime_ns == before.st_mtime_ns
    code, _, err = muonlab("export", "runs/none", "--to", "hf", "--out", "models/b")
    assert (code, "runs/none: no such folder" in err) == (2, True)
    assert sorted(path.name for path in (workdir / "models").iterdir()) == ["a", "hf"]

    # a run on token shards, which do not say what their tokens mean
    shutil.copytree("runs/a", "runs/shards")
    folder = RunFolder("runs/shards")
    described = folder.run()
    assert described is not None
    del described["data"]["tokenizer"]
    described["recipe"]["model"]["vocab_size"] = 257
    write_json(folder.run_file, described)
    (workdir / "runs/shards/tokenizer.json").unlink()
    code, _, err = muonlab("export", "runs/shards", "--to", "hf", "--out", "models/shards")
    assert (code, "no tokenizer is exported; see --tokenizer" in err) == (0, True), err
    assert not list((workdir / "models/shards").glob("tokenizer*"))
    assert muonlab("export", "runs/shards", "--to", "hf", "--out", "models/named", "--tokenizer", "bytes")[0] == 0
    assert (workdir / "models/named/tokenizer.json").exists()
