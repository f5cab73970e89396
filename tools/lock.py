"""Resolve the dependencies of pyproject.toml into requirements.lock and requirements-cuda.lock.

    make lock

The split is what lets one set of pins serve both builds of PyTorch: the CPU build needs none of the CUDA libraries
(several GB), and pip's hash mode would install whatever a lock file lists. `tools/setup.sh` adds the second file
where the installed build asks for it.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TORCH = "2.13.0"
CPU_BUILD_HASHES = ("6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",)
"""sha256 of the CPU builds of that release, which are not on PyPI; pip takes `2.13.0+cpu` for `==2.13.0`."""
CUDA_ONLY = re.compile(r"(nvidia-|cuda-)")
"""Triton is a dependency of CUDA builds too, but every tester needs it: its interpreter runs the kernels on a CPU."""
HEADER = "# Made by `make lock` from pyproject.toml; edit that instead.\n"


def resolve() -> str:
    """Every package with exact version, marker and hashes, for all platforms and Python 3.11 and newer."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--generate-hashes",
               "--no-annotate", "--no-header", "--python-version", "3.11", "--group", "dev",
               "--constraints", "-", "pyproject.toml"]  # fmt: skip
    return subprocess.run(
        command, cwd=ROOT, input=f"torch=={TORCH}\n", text=True, check=True, stdout=subprocess.PIPE
    ).stdout


def main() -> None:
    everywhere, cuda = [HEADER], [HEADER]
    for entry in re.split(r"\n(?=\S)", resolve().strip()):
        if entry.startswith(f"torch=={TORCH}"):
            entry += "".join(f" \\\n    --hash=sha256:{digest}" for digest in CPU_BUILD_HASHES)
        (cuda if CUDA_ONLY.match(entry) else everywhere).append(entry + "\n")
    (ROOT / "requirements.lock").write_text("".join(everywhere))
    (ROOT / "requirements-cuda.lock").write_text("".join(cuda))
    print(f"requirements.lock: {len(everywhere) - 1} packages, requirements-cuda.lock: {len(cuda) - 1}")


if __name__ == "__main__":
    main()
