"""The shape of the house: who may import whom, what is public, what an import loads."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tfrec_attn

ROOT = Path(tfrec_attn.__file__).parent
PUBLIC = [
    "AsyncClient", "AttentionWeightedCosine", "Client", "LABELS", "Schema", "Tables",
    "__version__", "backbone", "fetch", "movielens_100k", "read_tables",
    "require_legacy_keras",
]  # fmt: skip
# From left to right, the data flow: a module imports from its own row and from those
# before it. A folder stands for the modules in it that have no row of their own.
ROWS = [
    ["", "arrays", "atomic", "claims", "installed", "keras_binding", "labels", "paths",
     "user_keys"],
    ["item_flags"],
    ["downloads", "origins", "assets", "backbones"],
    ["data"],
    ["settings"],
    ["impressions"],
    ["model.scoring", "model.encoders", "model.causal", "model.towers"],
    ["layers", "keras3_layers"],
    ["model"],
    ["metrics", "training.distribution", "training.optimizers", "training.preemption"],
    ["training.agreement", "training.checkpoints"],
    ["training.keeper", "training.monitors"],
    ["training"],
    ["evaluation.baselines", "evaluation.plots", "evaluation.ranking"],
    ["run.knowledge"],
    ["run.incremental"],
    ["run.prepared"],
    ["run.pipeline", "run.building"],
    ["run.streamed"],
    ["run.runs"],
    ["run"],
    ["evaluation.comparison", "evaluation.feedback_head", "evaluation.report"],
    ["evaluation"],
    ["offers", "evaluate", "card"],
    ["serve"],
    ["bulk"],
    ["export", "train", "ask", "doctor", "compress", "prepare", "recommend"],
    ["training.space"],
    ["training.trials"],
    ["search"],
    ["explanation"],
    ["explanation_page"],
    ["explain"],
]  # fmt: skip
# Beside the rows: what is on the left never comes to import what is on the right.
# `settings` knows the schema of the tables, and `model.assembly` the config: not followed.
APART = [
    ("data", "model"),
    ("model", "data"),
    ("serve.server", "model"),
    ("serve.server", "serve.graph"),
    ("serve.server", "serve.client"),
    ("serve.client", "model"),
    ("serve.client", "serve.graph"),
    ("serve.client", "serve.server"),
    ("serve.graph", "serve.server"),
    ("serve", "run"),
]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def row_of(module: str) -> int | None:
    """The row of a module, or of the closest folder that has one."""
    while True:
        for number, row in enumerate(ROWS):
            if module in row:
                return number
        if "." not in module:
            return None
        module = module.rpartition(".")[0]


def imports(path: Path) -> set[str]:
    """Our modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            top, _, rest = name.partition(".")
            if top == "tfrec_attn":
                found.add(rest if rest in MODULES else rest.rpartition(".")[0])
    return found


def inside(module: str, folder: str) -> bool:
    return module == folder or module.startswith(f"{folder}.")


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_its_row_or_those_before_it(module):
    mine = row_of(module)
    assert mine is not None, f"{module} has no row: say in ROWS where it stands"
    later = {name for name in imports(MODULES[module]) if row_of(name) > mine}
    assert not later, f"{module} imports {later}, which come after it"


@pytest.mark.parametrize(("module", "never"), APART)
def test_two_that_never_meet(module, never):
    seen, todo = set(), [name for name in MODULES if inside(name, module)]
    assert todo
    while todo:
        name = todo.pop()
        if name not in seen | {"settings.config", "settings.sections"}:
            seen.add(name)
            todo += imports(MODULES[name])
    assert not {name for name in seen if inside(name, never)}


def test_no_row_is_left_without_a_module():
    assert {name for row in ROWS for name in row} <= set(MODULES)


def test_no_two_modules_import_each_other():
    graph = {name: imports(path) - {name} for name, path in MODULES.items()}
    while graph:
        free = {name for name, needs in graph.items() if not needs & set(graph)}
        assert free, f"a circle among {sorted(graph)}"
        graph = {name: needs for name, needs in graph.items() if name not in free}


def test_the_public_names():
    assert sorted(tfrec_attn.__all__) == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(tfrec_attn, name) is not None
    assert set(PUBLIC) <= set(dir(tfrec_attn))
    absent = "unheard_of"
    with pytest.raises(AttributeError, match=f"no attribute '{absent}'"):
        getattr(tfrec_attn, absent)


def loaded_by(program: str, names: list[str]) -> list[str]:
    """Which of `names` a Python of its own has loaded after `program`."""
    show = f"import sys; print(*[n for n in {names} if n in sys.modules])"
    run = [sys.executable, "-W", "error", "-c", f"{program}\n{show}"]
    return subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()


HEAVY = ["tensorflow", "keras", "tf_keras", "transformers", "torch"]


@pytest.mark.parametrize(
    ("program", "also"),
    [
        ("import tfrec_attn", ["polars", "numpy", "pydantic", "grpc"]),
        ("from tfrec_attn import LABELS", ["polars", "numpy", "pydantic", "grpc"]),
        ("import tfrec_attn.settings.config", ["grpc", "matplotlib"]),
        ("from tfrec_attn import Schema, read_tables, Tables", ["grpc", "matplotlib"]),
        ("from tfrec_attn import Client", ["polars", "pydantic"]),
        ("import tfrec_attn.serve.client", ["polars", "pydantic"]),
        ("import tfrec_attn.ask", ["polars", "pydantic"]),
        ("import tfrec_attn.explain", ["polars", "pydantic"]),
        ("import tfrec_attn.train; tfrec_attn.train.parser()", ["grpc", "matplotlib"]),
        ("import tfrec_attn.impressions", ["grpc", "matplotlib"]),
        ("import tfrec_attn.prepare as p; p.parser()", ["grpc", "apache_beam"]),
        ("import tfrec_attn.export", ["grpc"]),
        ("import tfrec_attn.search as s; s.parser()", ["optuna", "grpc", "matplotlib"]),
        ("import tfrec_attn.recommend as r; r.parser()", ["polars", "grpc", "apache_beam"]),
        ("import tfrec_attn.compress as c; c.parser()", ["grpc", "matplotlib"]),
    ],
)
def test_an_import_loads_nothing_heavy(program, also):
    assert loaded_by(program, HEAVY + also) == []


def test_what_it_loads_when_it_must_is_seen():
    """The test above can fail: this import is not light."""
    assert "tf_keras" in loaded_by("from tfrec_attn import AttentionWeightedCosine", HEAVY)


@pytest.mark.parametrize("module", ["bert", "tasks", "recommender"])
def test_a_model_after_keras_3_says_what_to_do(module):
    program = (
        "import tensorflow as tf\ntf.keras.Model\n"
        f"try:\n  import tfrec_attn.model.{module}\n"
        "except ImportError as error:\n  print(error)"
    )
    clean = {name: value for name, value in os.environ.items() if "KERAS" not in name}
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=clean
    )
    assert "Import tfrec_attn before them, or start Python with" in run.stdout
