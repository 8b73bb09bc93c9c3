"""What is published: what the wheel holds, what it needs, and what it says where something is not installed."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import muonlab
from muonlab import extras
from muonlab.errors import InputError

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {name: [Requirement(line) for line in lines] for name, lines in PROJECT["optional-dependencies"].items()}


def named(requirements):
    return {canonicalize_name(r.name) for r in requirements}


# without a build


def test_an_install_without_extras_is_torch_and_numpy():
    assert named(map(Requirement, PROJECT["dependencies"])) == {"torch", "numpy"}


def test_what_the_lab_is_looked_for_by_is_what_its_extra_installs():
    distributions = packages_distributions()
    assert {canonicalize_name(distributions[package][0]) for package in extras.LAB} == named(EXTRAS["lab"])


@pytest.mark.parametrize("extra", sorted(EXTRAS.keys() - {"lab", "kernels"}))
def test_extras_that_work_with_the_lab_bring_it(extra):
    assert "lab" in set().union(*(r.extras for r in EXTRAS[extra] if r.name == "muonlab"))


def test_every_extra_that_a_text_names_exists():
    texts = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("src/**/*.py"), *ROOT.glob("examples/*"), ROOT / "Makefile"]
    found = [
        (path.name, extra) for path in texts if path.is_file() for extra in re.findall(r"muonlab\[([a-z,-]+)\]", path.read_text())
    ]
    assert len(found) > 5
    assert {(name, extra) for name, several in found for extra in several.split(",") if extra not in EXTRAS} == set()


def test_a_missing_package_is_both_an_import_error_and_a_problem_of_the_input(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(
        ImportError, match=r'muonlab.x needs the extra \'lab\': pip install "muonlab\[lab\]" \(not installed: scipy\)'
    ) as error:
        extras.need_lab("muonlab.x", "pydantic", "scipy")
    assert isinstance(error.value, InputError)
    assert not extras.has_lab()
    assert "run" not in dir(muonlab)


def test_a_command_names_the_extra_of_a_package_that_it_misses(monkeypatch, muonlab, tmp_path):
    for name in [name for name in sys.modules if name.startswith(("muonlab.lab", "altair"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "altair", None)
    code, out, err = muonlab("report", ROOT / "experiments/quickstart", "--out", tmp_path)
    assert (code, out) == (2, "")
    assert err == "muonlab: this command needs the extra 'lab': pip install \"muonlab[lab]\" (not installed: altair)\n"


def test_changelog_and_citation_are_of_this_version():
    heads = re.findall(r"^## \[(.+)\](?: - (\d{4}-\d\d-\d\d))?$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert heads[0] == ("Unreleased", "") or heads[0][0] == muonlab.__version__
    version, date = next((version, date) for version, date in heads if version != "Unreleased")
    assert version == muonlab.__version__
    cited = dict(re.findall(r'^([\w-]+): "?([^"\n]+)"?$', (ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE))
    assert (cited["version"], cited["date-released"], cited["license"]) == (version, date, PROJECT["license"])


# the wheel, in an environment of its own


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the source archive, and the wheel that is made from it."""
    folder = tmp_path_factory.mktemp("dist")
    pytest.importorskip("build", reason="build is not installed: it is in the extra 'dev'")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def closure(*names):
    """Distributions by name, with all that they need on this machine."""
    found, todo = {}, list(names)
    while todo:
        name = canonicalize_name(todo.pop())
        if name not in found:
            found[name] = importlib.metadata.distribution(name)
            needs = map(Requirement, found[name].requires or ())
            todo += [r.name for r in needs if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found.values()


class Bare:
    """A virtual environment whose packages are links to torch, numpy and what these two need, and the wheel."""

    def __init__(self, folder, wheel):
        venv.create(folder, with_pip=False)
        scripts = folder / ("Scripts" if os.name == "nt" else "bin")
        self.python, self.command = scripts / "python", scripts / "muonlab"
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_"))} | {"OMP_NUM_THREADS": "1"}
        self.packages = Path(self.run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
        for distribution in closure("torch", "numpy"):
            for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
                link = self.packages / top
                if not link.exists():  # several share a folder, such as nvidia
                    link.symlink_to(distribution.locate_file(top))
        install = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "--no-index", "--quiet", str(wheel)]
        done = subprocess.run(install, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr  # with --no-index it fails where the wheel needs more than is there

    def run(self, *arguments, program=None, cwd=None):
        command = [str(program or self.python), *map(str, arguments)]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False, cwd=cwd)


@pytest.fixture(scope="module")
def bare(built, tmp_path_factory):
    return Bare(tmp_path_factory.mktemp("bare") / "venv", next(built.glob("*.whl")))


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package_and_no_other(built):
    wheel = zipfile.ZipFile(next(built.glob("*.whl")))
    source = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src/muonlab").rglob("*") if path.is_file()}
    source = {name for name in source if "__pycache__" not in name}
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == source
    assert "muonlab/py.typed" in source
    assert any(name.endswith(".toml") for name in source)
    assert any(name.endswith(".j2") for name in source)


@pytest.mark.slow
def test_the_source_archive_holds_what_builds_and_explains_the_package(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    tops = {name.partition("/")[0] for name in names}
    texts = {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md"}
    assert tops == texts | {"src", "docs", "examples", "recipes", "pyproject.toml", "constraints.txt", "PKG-INFO", ".gitignore"}
    assert not [name for name in names if name.endswith(".pyc")]


@pytest.mark.slow
def test_the_readmes_library_lines_run_with_torch_and_numpy_alone(bare, tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    blocks = [block for block in blocks if "muonlab.optimizer(" in block and "muonlab.run(" not in block]
    assert blocks
    for block in blocks:
        done = bare.run("-c", block, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "normuon" in done.stdout
        assert "NumPy" not in done.stderr
    where = bare.run(
        "-c", "import muonlab; print(muonlab.__file__, muonlab.__version__); muonlab.optimizers(); help(muonlab)", cwd=tmp_path
    )
    assert where.stdout.startswith(str(bare.packages / "muonlab")), where.stderr
    assert muonlab.__version__ in where.stdout
    assert (bare.packages / "muonlab/py.typed").exists()


NEEDING = [
    "import muonlab; muonlab.run('arm', seed=0)",
    "from muonlab import run",
    "import muonlab.lab.stats",
    "import muonlab.train.recipe",
    "import muonlab.models.gpt",
    "import muonlab.data.corpus",
    "import muonlab.evaluate.gsm8k",
]


@pytest.mark.slow
@pytest.mark.parametrize("program", NEEDING)
def test_without_the_extra_it_is_named(bare, tmp_path, program):
    done = bare.run("-c", f"try:\n    {program}\nexcept ImportError as error:\n    print(error)", cwd=tmp_path)
    assert re.match(
        r"muonlab\.\w+ needs the extra 'lab': pip install \"muonlab\[lab\]\" \(not installed: .*pydantic.*\)$", done.stdout
    )
    assert done.stderr == ""


@pytest.mark.slow
def test_the_command_without_the_extra_says_so_and_with_it_works(bare, tmp_path):
    for arguments in ({"program": bare.command}, {}):
        done = bare.run(*(() if arguments else ("-m", "muonlab")), "--version", cwd=tmp_path, **arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(
            r"muonlab: .* needs the extra 'lab': pip install \"muonlab\[lab\]\" \(not installed: .*\)\n", done.stderr
        )

    others = bare.packages / "others.pth"  # what this environment has beside; muonlab stays the wheel's, which comes first
    others.write_text(str(importlib.metadata.distribution("cyclopts").locate_file("")))
    try:
        assert bare.run("--version", program=bare.command, cwd=tmp_path).stdout.strip() == muonlab.__version__
        for command in (["optimizers", "--json"], ["stats", ROOT / "tests/data/quickstart.jsonl", "--by", "arm", "--json"]):
            done = bare.run(*command, program=bare.command, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)
        program = "import muonlab.lab as lab; from muonlab.presets import presets; print(lab.__file__, *presets('model'))"
        done = bare.run("-c", program, cwd=tmp_path)
        assert done.stdout.startswith(str(bare.packages)), done.stderr
        assert "gpt-124m" in done.stdout
    finally:
        others.unlink()
