"""The files in examples/ run as they stand, train, and say what they are there to say."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
README = EXAMPLES.parent / "README.md"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))
ENVIRONMENT = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
ALSO = {"hf_trainer": ["accelerate"]}  # what an example needs without importing it

# What an example is to print beside (or, for those that judge, instead of) two losses, the second below half of the first.
SAYS = {
    "accumulate_and_clip": r"0 steps left out",
    "checkpoint_resume": r"equal: True",
    "judge_csv": r"muon against adamw: better \(difference -0\.2594.*\)\n.*\nmuon twice against muon: equivalent",
    "log_and_judge": r"muon is better than adamw: difference -0\.",
    "mixture_of_experts": r"up +8×32×64 = 8 × 64×32 .* matrix",
    "modded_nanogpt": r"qkv\.weight .*3 × 64×64.* matrix [\s\S]* embedding +0\.01 [\s\S]* vector +0\.005 [\s\S]* head +0\.003 ",
    "own_variant": r"polar_express5 -> EqualRows",
    "schedules": r"after step 50: lr 0\.01\d+, momentum 0\.950",
    "train_from_python": r"\n'.*'\n'.*'\n",
}
JUDGES = ("judge_csv", "log_and_judge")


def imports(example):
    """The packages that a file imports."""
    tree = ast.parse((EXAMPLES / f"{example}.py").read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names


@pytest.mark.slow
@pytest.mark.parametrize("example", NAMES)
def test_it_runs_and_the_loss_falls(example, tmp_path):
    for package in sorted(imports(example) | set(ALSO.get(example, []))):
        pytest.importorskip(package, reason=f"{package} is not installed: it is in the extra 'clients'")
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{example}.py"], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(SAYS.get(example, ""), done.stdout), done.stdout
    if example not in JUDGES:
        told = [line for line in done.stdout.splitlines() if re.match(r"(step \d+: )?loss ", line)]
        losses = [float(number) for number in re.findall(r"\d+\.\d{3}", " ".join(told))]
        assert len(losses) == 2, done.stdout
        assert losses[1] < 0.5 * losses[0]
    assert not list(tmp_path.iterdir())  # nothing is left where it was run


@pytest.mark.parametrize("example", NAMES)
def test_it_is_short_and_says_what_to_install(example):
    text = (EXAMPLES / f"{example}.py").read_text()
    assert len(text.splitlines()) < 60
    install = re.search(
        r'^pip install (?:"(muonlab\[lab\])"|(muonlab))(.*), then: .*examples/' + f"{example}.py", text, flags=re.MULTILINE
    )
    assert install, text[:300]
    for package in imports(example) - {"muonlab", "torch"}:
        assert package in install[3]
    assert ("muonlab.lab" in text or "muonlab.train" in text or "muonlab.run(" in text) == bool(install[1])


def test_the_list_of_examples_has_each_file_once():
    listed = re.findall(r"\]\(examples/([\w.]+\.(?:py|ipynb))\)", README.read_text())
    assert sorted(listed) == sorted(path.name for path in [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.ipynb")])


def test_the_lines_of_the_list_stand_in_the_files():
    listed = re.findall(r"\]\(examples/([\w.]+\.py)\) \| `(.+)` \|$", README.read_text(), flags=re.MULTILINE)
    assert len(listed) > 10
    for file, line in listed:
        assert line in (EXAMPLES / file).read_text(), (file, line)


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: it is in the extra 'clients'")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed: it is in the extra 'clients'")
    notebook = nbformat.read(EXAMPLES / "first_steps.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)  # kept without
    client = nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=ENVIRONMENT)
    last = "".join(output.get("text", "") for output in code[-1].outputs)
    assert re.search(r"^muon against adamw: (better|worse|undecided) \(difference [+-]", last, flags=re.MULTILINE), last
