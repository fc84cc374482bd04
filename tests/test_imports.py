from __future__ import annotations

import ast
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BASE = {"errors", "files"}
MODELS = BASE | {"layers"}
DECODING = MODELS | {"models"}
LOADING = DECODING | {"generation", "data"}
USING = LOADING | {"checkpoints"}
# What each part may import besides itself. Each line builds on those above it, never on one below.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "progress": set(),
    "layers": BASE,
    "data": BASE,
    "metrics": BASE,
    "models": MODELS,
    "generation": DECODING,
    "checkpoints": DECODING | {"data"},
    "pipeline": USING,
    "training": USING | {"metrics", "progress"},
    "search": USING | {"pipeline", "progress"},
    "serve": USING | {"pipeline", "search", "progress"},
    "bench": USING | {"pipeline", "search", "metrics", "progress"},
    "cli": USING | {"pipeline", "training", "search", "serve", "bench", "metrics", "progress"},
    "": {"pipeline", "search", "models"},
    "__main__": {"cli"},
}

# What the modules of mm.data build on that import none of its folders, and what each folder may import besides itself:
# shards are made and reported on from without, and training reads them in place.
GROUND = {"ahead", "counting", "hashes", "images", "jpeg", "parallel", "rgb", "samples"}
WITHIN_DATA: dict[str, set[str]] = {
    "shards": GROUND,
    "remote": GROUND | {"shards"},
    "making": GROUND | {"shards", "sources"},
    "reports": GROUND | {"shards", "sources"},
}


def part(module: str) -> str:
    """The part of mm that a module belongs to: ``search`` for ``mm.search.gallery``, nothing for ``mm`` itself."""
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> set[str]:
    """Every module of mm that a file imports, anywhere in it."""
    here = [*path.relative_to(ROOT).with_suffix("").parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = ".".join(here[: len(here) - node.level]) if node.level else ""
            module = ".".join(filter(None, (parent, node.module)))
            found |= {f"{module}.{alias.name}" for alias in node.names} if module in ("mm", "mm.data") else {module}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            name = node.args[0]
            if isinstance(name, ast.Constant):
                found.add(str(name.value))
            elif isinstance(name, ast.JoinedStr) and isinstance(name.values[0], ast.Constant):
                found.add(str(name.values[0].value).rstrip("."))
    return {module for module in found if module == "mm" or module.startswith("mm.")}


FILES = sorted((ROOT / "mm").rglob("*.py"))


def test_every_part_has_its_place() -> None:
    parts = {path.relative_to(ROOT / "mm").parts[0].removesuffix(".py") for path in FILES}
    assert parts - {"__init__"} <= ALLOWED.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    own = path.relative_to(ROOT / "mm").parts[0].removesuffix(".py")
    own = "" if own == "__init__" else own
    for module in imports(path):
        if module == "mm" or module == "mm.__version__":
            assert "pipeline" in ALLOWED[own], f"{path} imports mm itself"
            continue
        assert part(module) in ALLOWED[own] | {own}, f"{path} imports {module}"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "mm/data").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT / "mm/data"))
)
def test_folders_of_data_import_one_way(path: Path) -> None:
    own = path.relative_to(ROOT / "mm/data").parts[0].removesuffix(".py")
    for module in imports(path):
        used = module.split(".")[2] if module.startswith("mm.data.") else own
        if own in WITHIN_DATA:
            assert used in WITHIN_DATA[own] | {own}, f"{path} imports {module}"
        else:
            assert used in GROUND if own in GROUND else used not in ("making", "reports"), f"{path} imports {module}"


def test_the_order_of_parts_has_no_circle() -> None:
    order: list[str] = []
    while len(order) < len(ALLOWED):
        ready = [name for name, needs in ALLOWED.items() if name not in order and needs <= set(order)]
        assert ready, f"a circle among {ALLOWED.keys() - set(order)}"
        order += ready


def loaded(statement: str) -> set[str]:
    """The modules that are there after a statement in a fresh interpreter."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(json.loads(result.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("statement", "without"),
    [
        ("import mm", {"torch", "numpy", "PIL", "rich"}),
        ("import mm.errors, mm.cli, mm.progress", {"torch", "numpy", "PIL", "rich", "jsonargparse"}),
        (
            "import mm.models, mm.generation, mm.pipeline",
            {"lightning", "webdataset", "faiss", "fastapi", "gradio", "transformers", "open_clip"},
        ),
        ("import mm.metrics.captioning, mm.metrics.retrieval", {"torch", "lightning"}),
    ],
)
def test_what_is_not_used_is_not_loaded(statement: str, without: set[str]) -> None:
    assert not without & loaded(statement)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["no-such-command"]])
def test_the_command_line_answers_without_heavy_imports(arguments: list[str]) -> None:
    code = f"from mm.cli import main\nmain({arguments!r})"
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    modules = loaded(code)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 5  # of a processor, however busy it is
    assert not {"torch", "jsonargparse", "lightning", "numpy", "rich"} & modules


def test_public_names_are_there() -> None:
    code = "import mm\nassert set(mm.__all__) <= set(dir(mm))\nmm.Gallery, mm.load, mm.VisionLanguageModel"
    assert "mm.search.gallery" in loaded(code)
    import mm

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mm.nothing
