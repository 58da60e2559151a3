"""The CUDA kernels are at least CUDA: every rule's source compiles, also where there is no GPU to run it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from adamserve.optim.engine import kernels
from adamserve.optim.engine.emit import GRADIENT_TYPES, cuda_source
from tests.optim.rules import RULES_UNDER_TEST

KINDS: tuple[kernels.Kind, ...] = ("step", "bfloat16")
NVCC = shutil.which("nvcc") or next((str(p) for p in Path("/usr/local").glob("cuda*/bin/nvcc")), None)


@pytest.mark.skipif(NVCC is None, reason="nvcc is not on this machine")
@pytest.mark.timeout(300)
def test_every_rules_kernel_compiles(tmp_path: Path) -> None:
    """All of them in one file, each in a namespace of its own, for one run of the compiler."""
    assert NVCC is not None
    sources: list[str] = []
    for number, rule in enumerate(RULES_UNDER_TEST):
        for real in ("float32", "float64"):
            gradients = [real, *(set(GRADIENT_TYPES) - {"float32", "float64"})]
            for gradient in gradients if number == 0 else gradients[:1]:
                for kind in KINDS if real == "float32" else KINDS[:1]:
                    source = cuda_source(kernels.program(rule, kind, real), gradient)
                    entry = f"step_{len(sources)}"
                    sources.append(source.replace("adamserve_update", entry).replace('extern "C" ', ""))
    file = tmp_path / "kernels.cu"
    file.write_text("\n".join(f"namespace n{i} {{\n{source}\n}}" for i, source in enumerate(sources)))
    done = subprocess.run(
        [NVCC, "-ptx", "-fmad=false", "-arch=sm_90", "-o", str(tmp_path / "kernels.ptx"), str(file)],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[:3000]
    text = (tmp_path / "kernels.ptx").read_text()
    assert text.count(".entry") == len(sources)
    assert "fma.rn" not in text, "a contracted multiply-add would round differently"
