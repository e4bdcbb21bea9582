#!/bin/sh
# Runs llama.cpp's path through a GPU without one: on its Vulkan backend and Mesa's software device (lavapipe).
#
#   scripts/check_vulkan.sh [FOLDER]
#
# Installs Mesa's driver and the build tools with apt-get (Debian, Ubuntu; as root or with sudo), makes an environment in
# FOLDER (.venv-vulkan if not given), builds llama-cpp-python there with its Vulkan backend, and runs tests/gpu. The build
# takes from a quarter of an hour to an hour on two cores; a second run uses it again.
set -eu

cd "$(dirname "$0")/.."
folder=${1:-.venv-vulkan}
python=${PYTHON:-python3}

packages="mesa-vulkan-drivers libvulkan-dev spirv-headers glslc cmake g++"
missing=
for package in $packages; do
    dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $package"
done
if [ -n "$missing" ]; then
    sudo=
    [ "$(id -u)" -eq 0 ] || sudo=sudo
    $sudo apt-get update
    # shellcheck disable=SC2086  # several words
    $sudo apt-get install --yes --no-install-recommends $missing
fi

if [ ! -f "$folder/.built" ]; then
    "$python" -m venv "$folder"
    "$folder/bin/python" -m pip install --quiet --upgrade "pip>=25.1"
    requirement=$("$folder/bin/python" -c 'import tomllib
with open("pyproject.toml", "rb") as file:
    print(*(each for each in tomllib.load(file)["project"]["dependencies"] if each.startswith("llama-cpp-python")))')
    # No cache: a wheel that was built for the processor would be taken from there, and this one by others.
    CMAKE_ARGS="-DGGML_VULKAN=on" "$folder/bin/python" -m pip install --no-cache-dir --no-binary llama-cpp-python "$requirement"
    "$folder/bin/python" -m pip install --quiet --editable . --group dev
    touch "$folder/.built"
fi

# llama.cpp passes over Vulkan devices that are processors unless they are named, and only Mesa's own driver shall be seen.
driver=$(find /usr/share/vulkan/icd.d -name 'lvp_icd*.json' | head -n 1)
[ -n "$driver" ] || { echo "check_vulkan.sh: Mesa's software driver is not in /usr/share/vulkan/icd.d" >&2; exit 1; }
GGML_VK_VISIBLE_DEVICES=0 VK_ICD_FILENAMES="$driver" VK_DRIVER_FILES="$driver" \
    exec "$folder/bin/python" -m pytest tests/gpu/check_vulkan.py
