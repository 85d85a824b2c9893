"""What each package imports: the runtime must work without torch and the packages that make bundles."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import lipstream
import pytest
from lipstream.cli import LIPSTREAM, Program
from lipstream.errors import BackendError, MissingExtraError
from lipstream_training.cli import LIPSTREAM_TRAIN

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "lipstream": "sdk",
    "lipstream_engines": "engines",
    "lipstream_export": "export",
    "lipstream_models": "training",
    "lipstream_evaluate": "training",
    "lipstream_training": "training",
}
"""Package -> folder."""
OTHERS = tuple(name for name in PACKAGES if name != "lipstream")
EXTRAS = ("torch", "tensorrt", "cuda", "onnx", "onnxscript")
"""Dependencies of the extras alone."""
HEAVY = (*EXTRAS, "onnxruntime", "numpy", "cv2", "av")
"""What parsing a command line does not import."""

BLOCK = """
import json, sys
from importlib.abc import MetaPathFinder

class NotInstalled(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
"""


def python(code: str, blocked: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter in which the `blocked` packages cannot be imported."""
    source = f"BLOCKED = {blocked!r}\n{BLOCK}\n{code}"
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=300, check=False)


def printed(code: str, blocked: tuple[str, ...] = ()) -> Any:
    """The JSON that `code` prints."""
    done = python(code, blocked)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_module_of_the_runtime_imports_without_the_other_packages() -> None:
    modules = printed(
        """
import importlib, pkgutil, lipstream
optional = ("lipstream._native_cuda", "lipstream.backends.tensorrt", "lipstream.server.", "lipstream.integrations.")
found = pkgutil.walk_packages(lipstream.__path__, "lipstream.", onerror=lambda name: None)
names = ["lipstream"] + [m.name for m in found if not m.name.startswith(optional)]
for name in names:
    importlib.import_module(name)
print(json.dumps(names))
""",
        (*EXTRAS, *OTHERS),
    )
    folder = ROOT / "sdk" / "lipstream"
    found = {path.relative_to(ROOT / "sdk").with_suffix("").as_posix() for path in folder.rglob("*.py")}
    extras = (
        "lipstream/backends/tensorrt/",
        "lipstream/server/",
        "lipstream/integrations/",
    )  # with separate packages
    found = {name for name in found if not name.startswith(extras)}
    assert {name.replace("/", ".").removesuffix(".__init__") for name in found} <= {*modules}
    assert "lipstream._native" in modules


def test_importing_the_runtime_does_not_import_torch() -> None:
    loaded = printed("from lipstream import *; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))")
    assert "numpy" in loaded
    assert not {*EXTRAS, *OTHERS} & {*loaded}


def test_public_names_are_loaded_on_first_use() -> None:
    assert not {*HEAVY} & {*printed("import lipstream; print(json.dumps([*sys.modules]))")}
    assert {*lipstream.__all__} <= {*dir(lipstream)}
    for name in lipstream.__all__:
        assert getattr(lipstream, name).__name__ == name
    with pytest.raises(AttributeError, match="LipSink"):
        _ = lipstream.LipSink


def test_the_runtime_imports_its_dependencies_and_depends_on_what_it_imports() -> None:
    imported = set()
    for path in (ROOT / "sdk" / "lipstream").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[<>=]", dependency)[0].strip() for dependency in declared}
    modules = {{"opencv-python-headless": "cv2", "pillow": "PIL"}.get(name, name) for name in names}
    lazy = {"insightface", "torch"}  # options for those with its models, and to compare with the original
    lazy |= {"tensorrt", "cuda", "nvtx"}  # of the extra [tensorrt], whose backend is imported when it is asked for
    lazy |= {"fastapi", "starlette", "pydantic", "uvicorn", "websockets"}  # of `lipstream serve`
    lazy |= {"prometheus_client", "aiortc"}  # of it, too
    lazy |= {"ray"}  # of its deployment
    lazy |= {"livekit", "pipecat"}  # of their adapters
    lazy |= {"c2pa"}  # of --sign
    lazy |= {"cryptography"}  # of signatures of bundles
    lazy |= {"soxr"}  # of upstream mode
    assert imported - {*sys.stdlib_module_names} - {"lipstream"} - lazy == modules


@pytest.mark.parametrize("program", [LIPSTREAM, LIPSTREAM_TRAIN], ids=lambda program: program.name)
def test_help_imports_nothing_heavy(program: Program) -> None:
    """Of the program and of each of its commands, in one process, where the heavy packages are installed."""
    names = [command.name for command in program.commands()]
    module = "lipstream_training.cli" if program is LIPSTREAM_TRAIN else "lipstream.cli"
    helps, loaded = printed(
        f"""
import contextlib, io
from {module} import main
helps = []
for arguments in ([], *([name] for name in {names!r})):
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        main([*arguments, "--help"])
    helps.append(said.getvalue())
print(json.dumps([helps, [*sys.modules]]))
"""
    )
    assert not {*HEAVY} & {*loaded}
    for name, text in zip(["", *names], helps, strict=True):
        assert f"usage: {program.name} {name}".strip() in text
        assert name == "" or "--json" in text


def imports(path: Path, package: list[str]) -> Iterator[tuple[str, str]]:
    """(module, name in it or "") of every import in a file, lazy ones and those for type checkers included.

    Args:
        package: parts of the package that relative imports of the file start from.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((module, alias.name) for alias in node.names)


def test_the_runtime_names_no_other_package() -> None:
    """Not even in an import by string: they are found through entry points."""
    for path in (ROOT / "sdk" / "lipstream").rglob("*.py"):
        for module, _ in imports(path, ["lipstream"]):
            assert module.split(".")[0] not in OTHERS, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
                text = ast.unparse(node)
                assert not any(name in text for name in OTHERS), path


def test_modules_have_no_import_cycles() -> None:
    """Lazy imports count; the import of a package's `__init__` by its modules does not."""
    files: dict[str, Path] = {}
    for top, folder in PACKAGES.items():
        for path in (ROOT / folder / top).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            files[".".join(parts).removesuffix(".__init__")] = path
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        targets = {
            f"{module}.{part}" if f"{module}.{part}" in files else module for module, part in imports(path, package)
        }
        graph[name] = (targets & files.keys()) - {name}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("missing", [EXTRAS, ("torch",), ("onnxscript",)])
def test_export_names_its_extra(tmp_path: Path, missing: tuple[str, ...]) -> None:
    args = ["export", str(tmp_path), "-o", str(tmp_path / "bundle"), "--json"]
    done = python(f"from lipstream.cli import main; sys.exit(main({args!r}))", missing)
    assert done.returncode == json.loads(done.stdout)["error"]["exit_status"] == MissingExtraError.exit_code == 4
    assert "pip install 'lipstream[export]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("missing", [EXTRAS, ("tensorrt",), ("onnx",)])
def test_build_names_its_extra(tmp_path: Path, missing: tuple[str, ...]) -> None:
    args = ["build", "tiny", "--recipe", "tiny-bf16", "-o", str(tmp_path / "bundle"), "--json"]
    done = python(f"from lipstream.cli import main; sys.exit(main({args!r}))", missing)
    assert done.returncode == json.loads(done.stdout)["error"]["exit_status"] == MissingExtraError.exit_code == 4
    assert "pip install 'lipstream[tensorrt]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("args", "missing", "extra"),
    [(["serve"], "fastapi", "server"), (["run", "a.mp4", "-o", "b.mp4", "--sign", "c", "k"], "c2pa", "provenance")],
)
def test_serving_and_signing_name_their_extras(args: list[str], missing: str, extra: str) -> None:
    done = python(f"from lipstream.cli import main; sys.exit(main({args!r}))", (missing,))
    assert done.returncode == MissingExtraError.exit_code
    assert f"pip install 'lipstream[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_resampling_in_upstream_mode_names_its_extra() -> None:
    code = """
from lipstream.errors import MissingExtraError
from lipstream.media.librosa import librosa_blocks
assert list(librosa_blocks([], 16000, 16000)) == []
try:
    librosa_blocks([], 48000, 16000)
except MissingExtraError as error:
    print(json.dumps(str(error)))
"""
    found = printed(code, ("soxr",))
    assert "'soxr'" in found
    assert "pip install 'lipstream[upstream]'" in found


def test_the_torch_backend_names_its_extra(tmp_path: Path) -> None:
    args = ["run", "a.mp4", "-o", str(tmp_path / "b.mp4"), "--backend", "torch"]
    done = python(f"from lipstream.cli import main; sys.exit(main({args!r}))", ("torch",))
    assert done.returncode == BackendError.exit_code
    assert "'torch'" in done.stderr
    assert "pip install 'lipstream[export]'" in done.stderr


@pytest.mark.parametrize("command", ["tiny", "sample"])
def test_training_names_its_extra(tmp_path: Path, command: str) -> None:
    start = "from lipstream_training.cli import main; sys.exit(main({}))"
    done = python(start.format([command, "--help"]), ("torch", "espeakng_loader"))
    assert done.returncode == 0, done.stderr
    assert f"usage: lipstream-train {command}" in done.stdout
    done = python(start.format([command, str(tmp_path / "out")]), ("torch", "espeakng_loader"))
    assert done.returncode == MissingExtraError.exit_code
    assert "lipstream[training]" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("args", "extra"), [(["WEIGHTS"], "export"), (["--layers"], "tensorrt")])
def test_inspecting_names_its_extras(tmp_path: Path, args: list[str], extra: str) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"")
    args = [str(tmp_path / "weights.safetensors") if arg == "WEIGHTS" else arg for arg in args]
    done = python(f"from lipstream.cli import main; sys.exit(main({['inspect', *args]!r}))", EXTRAS)
    assert done.returncode == MissingExtraError.exit_code
    assert f"pip install 'lipstream[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_wheel_runs_with_its_base_dependencies_alone(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*args: object) -> subprocess.CompletedProcess[str]:
        command = [str(arg) for arg in args]
        return subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, check=False)

    venv.create(tmp_path / "venv", with_pip=True)
    bin_ = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    reach = run(bin_ / "python", "-m", "pip", "download", "--no-deps", "--quiet", "tqdm")
    if reach.returncode:
        pytest.skip("pip reaches no index")
    built = run(bin_ / "python", "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path, ROOT)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("lipstream-*.whl")
    installed = run(bin_ / "python", "-m", "pip", "install", "--quiet", wheel)
    assert installed.returncode == 0, installed.stderr
    assert run(bin_ / "python", "-c", "import torch").returncode != 0
    inspected = run(bin_ / "lipstream", "inspect", "tiny", "--json")
    assert inspected.returncode == 0, inspected.stderr
    assert json.loads(inspected.stdout)["path"].startswith(str(tmp_path / "venv"))
    sample = "from lipstream import samples; print(sorted(path.name for path in samples.FACE.parent.iterdir()))"
    assert "face.mp4" in run(bin_ / "python", "-c", sample).stdout
    exported = run(bin_ / "lipstream", "export", tmp_path, "-o", tmp_path / "bundle")
    assert exported.returncode == MissingExtraError.exit_code
    assert run(bin_ / "lipstream-train", "tiny", tmp_path / "out").returncode == 4


@pytest.mark.skipif(sys.platform == "win32", reason="the folder's name is another")
@pytest.mark.parametrize("choice", ["", "0"])
def test_onnx_runtime_keeps_no_identifier_of_the_machine(tmp_path: Path, choice: str) -> None:
    """It would send events with it. Where it does nothing of the kind of itself, nothing is shown."""
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / ".cache")}
    quiet = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    code = "import time; from lipstream import LipSyncEngine; LipSyncEngine.load('tiny', threads=1); time.sleep(1)"
    environment = quiet | home | ({"ORT_DISABLE_TELEMETRY": choice} if choice else {})
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    kept = (tmp_path / ".cache" / "Microsoft").exists()
    if choice and not kept:
        pytest.skip("this ONNX Runtime keeps none")
    assert kept == bool(choice)  # the user's own choice holds
