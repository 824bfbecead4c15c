#!/usr/bin/env bash
# The main job and quick tests on the newest Python of this machine whose minor version is not that of PYTHON.
#
#   other_python.sh PYTHON WHEEL
set -euo pipefail
cd "$(dirname "$0")/.."
wheel=$2
minor() { "$1" -c 'import sys; print("%d%02d" % sys.version_info[:2])' 2>/dev/null || echo 0; }

shopt -s nullglob
newest=0 other=
for candidate in $(compgen -c | grep -xE 'python3\.[0-9]+' | sort -u | xargs -r which -a 2>/dev/null) \
    "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.*/bin/python "$HOME"/.local/share/uv/python/cpython-*/bin/python3; do
    found=$(minor "$candidate")
    if [ "$found" -ge 311 ] && [ "$found" != "$(minor "$1")" ] && [ "$found" -gt "$newest" ]; then
        newest=$found other=$candidate
    fi
done
if [ -z "$other" ]; then
    echo "other_python.sh: skipped, this machine has no Python from 3.11 on beside $("$1" -V)"
    exit
fi

echo "other_python.sh: $("$other" -V), $other"
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"$other" -m venv "$venv"
"$venv/bin/pip" install -q "$wheel" pytest pytest-xdist hypothesis safetensors
installed=("$venv"/lib/python3.*/site-packages/{mlc_dsv3,relax_model})
"$venv/bin/python" -W error::SyntaxWarning -m compileall -fq "${installed[@]}"
"$venv/bin/pytest" -p no:cacheprovider tests/test_main_job.py tests/test_native_parts.py \
    tests/compiler/test_kernel_sources.py tests/compiler/test_tuned.py tests/model/test_config.py \
    tests/cli/test_main.py tests/chat/test_template.py tests/weights/test_names.py tests/weights/test_identity.py
