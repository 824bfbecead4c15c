#!/usr/bin/env bash
# Builds wheels as containers would that lack a C++ compiler or Vulkan's headers, and holds what is in each, and what its
# `devices` says, against what the container has. Takes root, since a mount namespace hides what is there.
#
#   native_parts.sh PYTHON FOLDER
#
# PYTHON has mlc_dsv3 installed, built with all that it needs. FOLDER gets the wheel that a C++ compiler alone makes.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$(realpath --no-symlinks "$1")
kept=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset CXX VULKAN_SDK

no_compiler=$(find /usr/bin /usr/local/bin \( -name 'c++*' -o -name '*g++*' -o -name '*clang++*' \) -exec readlink -f {} + | sort -u)
no_headers=/usr/include/vulkan

# build NAME HIDDEN...: a wheel, made where the hidden files and folders are not; then its list of devices.
build() {
    local name=$1
    shift
    echo "a machine with $name:"
    unshare --mount bash -euc '
        python=$1 work=$2; shift 2
        for hidden; do
            if [ -d "$hidden" ]; then mount -t tmpfs none "$hidden"; else mount --bind /dev/null "$hidden"; fi
        done
        "$python" -m pip wheel -q --no-deps . -w "$work/wheel"
        "$python" -m pip install -q --no-deps --target "$work/package" "$work"/wheel/*.whl
    ' build "$python" "$work/$name" "$@"
    says "$work/$name/package"
}

# says FOLDER: the lines of `devices` for CUDA and Vulkan, of the package there.
says() {
    (cd "$work" && PYTHONPATH=$1 "$python" -m mlc_dsv3 devices) | grep -E 'cuda|vulkan' | tee "$work/said"
}

# expect DEVICE PATTERN, or expect_no
expect() { grep "$1" "$work/said" | grep -qE "$2" || { echo "devices does not say '$2' of $1"; exit 1; }; }
expect_no() { if grep "$1" "$work/said" | grep -qE "$2"; then echo "devices says '$2' of $1"; exit 1; fi; }

build "neither" $no_compiler $no_headers
for device in cuda vulkan; do expect $device "no native part .* no working C\+\+ compiler.*apt install g\+\+"; done
expect_no cuda 'Vulkan headers'
expect vulkan 'apt install libvulkan-dev'

# In the same folder: what was missing the last time is looked for again.
build "a C++ compiler" $no_headers
expect_no cuda 'native part'
expect vulkan 'no native part .* no Vulkan headers'
expect_no vulkan 'C\+\+ compiler'
cp "$work/a C++ compiler"/wheel/*.whl "$kept"

echo "this machine, with both:"
says "$("$python" -P -c 'import importlib.util as u; print(u.find_spec("mlc_dsv3").submodule_search_locations[0] + "/..")')"
for device in cuda vulkan; do expect_no $device 'native part'; done
