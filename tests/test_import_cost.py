"""What `import adamserve`, a rule's constructor and `adamserve --help` load in a fresh interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

HEAVY = ("torch", "ray", "scipy", "sklearn", "matplotlib", "pandas", "safetensors", "prometheus_client")

ONLY = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ALLOWED | sys.stdlib_module_names:
            raise ImportError(f"{name} is not there for a client with the base dependencies")

ALLOWED = {"adamserve", "numpy", "grpc", "google"}
sys.meta_path.insert(0, Refuse())
"""

HELP = """
import runpy, sys

sys.argv = ["adamserve", *ARGUMENTS]
try:
    runpy.run_module("adamserve", run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code, end.code
"""

REPORT = """
import json, sys

print()
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def loaded(code: str) -> set[str]:
    """Run code in an interpreter of its own; name the top-level packages that it has loaded by the end."""
    command = [sys.executable, "-c", f"{code}\n{REPORT}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import adamserve",
        "from adamserve import optim; optim.Adam(lr=1e-3, beta2=0.99)",
        "from adamserve import errors, values, job; from adamserve.shard import consistency, geometry",
        *(
            f"ARGUMENTS = {arguments!r}\n{HELP}"
            for arguments in (["--help"], ["train", "--help"], ["--version"])
        ),
    ],
    ids=["import", "a rule", "the pure layers", "--help", "train --help", "--version"],
)
def test_nothing_heavy_is_loaded(code: str) -> None:
    assert loaded(code).intersection(HEAVY) == set()


@pytest.mark.parametrize(
    "module",
    ["observe.families", "observe.alerts", "cluster.controller", "cluster.ray_runtime", "cluster.serving"],
)
def test_only_shards_and_trainers_load_torch(module: str) -> None:
    """The controller's process and `serve`'s start seconds sooner for it, and are hundreds of MB smaller."""
    assert "torch" not in loaded(f"import adamserve.{module}")


def test_the_face_and_the_rules_need_only_the_base_dependencies() -> None:
    loaded(ONLY + "import adamserve\nfrom adamserve import optim\noptim.AdaMax(lr=1e-3)\n")


def test_the_check_itself_sees_a_heavy_import() -> None:
    assert "safetensors" in loaded("import safetensors")
    with pytest.raises(AssertionError, match="base dependencies"):
        loaded(ONLY + "import safetensors")
