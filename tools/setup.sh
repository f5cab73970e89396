#!/bin/sh
# Build the environment from the lock files: setup.sh PYTHON FOLDER
# Every package is pinned, and checked by hash. PyTorch goes first and by itself, because pip in hash mode prefers
# files whose index states a hash: so it would pass over a CPU build that the machine offers in a folder. The CUDA
# libraries are added only where the installed PyTorch is a CUDA build, which says so in its own requirements.
set -eu
python=$1
folder=$2

unset PYTHONPATH  # packages of elsewhere
export PIP_USER=0

"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || {
    echo "Python 3.11 to 3.14 is needed; $python is $("$python" --version). Try: make PYTHON=python3.12 ..." >&2
    exit 1
}
# An environment of another Python, of another place or half made is made anew.
clear=
case $folder in
    /*) place=$folder ;;
    *) place=$(pwd -P)/$folder ;;
esac
who='import sys; print(sys.version_info[:2])'
if [ -d "$folder" ] && { ! grep -qs "[^a-zA-Z0-9_./-]$place/" "$folder/bin/pip" ||
    [ "$("$folder/bin/python" -c "$who")" != "$("$python" -c "$who")" ]; }; then
    clear=--clear
fi
"$python" -m venv $clear "$folder" || {
    echo "$python has no venv of its own; on Debian and Ubuntu it is the package python3-venv" >&2
    exit 1
}
pip="$folder/bin/python -m pip --disable-pip-version-check --quiet"
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

echo "installing PyTorch into $folder"
awk '/^torch==/ { print; hashes = 1; next } /^[a-zA-Z]/ { hashes = 0 } hashes' requirements.lock > "$wheels/torch.lock"
if ! "$folder/bin/python" -c 'import importlib.metadata as m, sys; sys.exit(m.version("torch").split("+")[0] != sys.argv[1])' \
    "$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' "$wheels/torch.lock")" 2> /dev/null; then
    from_wheels() { $pip install --no-index --find-links "$wheels" --require-hashes --no-deps -r "$wheels/torch.lock"; }
    $pip download --no-deps --dest "$wheels" "$(sed -n 's/^\(torch==[0-9.]*\).*/\1/p' "$wheels/torch.lock")"
    from_wheels || {
        echo "requirements.lock does not know that build of PyTorch; taking PyPI's" >&2
        rm "$wheels"/*.whl
        $pip download --require-hashes --no-deps --dest "$wheels" -r "$wheels/torch.lock"
        from_wheels
    }
fi
echo "installing the other packages"
$pip install --require-hashes --no-deps -r requirements.lock
if "$folder/bin/python" -c '
import sys
from importlib.metadata import requires
sys.exit(not any(line.startswith(("nvidia", "cuda", "triton")) for line in requires("torch") or ()))'; then
    echo "installing the CUDA libraries"
    $pip install --require-hashes --no-deps -r requirements-cuda.lock
fi
$pip install --no-deps --no-build-isolation --editable .
$pip check
echo "compiling the kernels for this processor, where it has some"
"$folder/bin/python" -c 'from zturbo.acceleration.levels import build_passes; build_passes()'
