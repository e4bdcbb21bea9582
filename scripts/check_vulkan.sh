#!/bin/sh
# Runs llama.cpp's path through a GPU without one: on its Vulkan backend and Mesa's software device (lavapipe).
#
#   scripts/check_vulkan.sh [FOLDER]
#
# Installs Mesa's driver and the build tools with apt-get (Debian, Ubuntu; as root or with sudo), builds a wheel of
# llama-cpp-python with its Vulkan backend in FOLDER (frcli-vulkan in the user's cache if not given), and runs tests/gpu
# in an environment that is gone afterwards. The build takes a quarter of an hour on two cores; the wheel stays in FOLDER,
# and the next run uses it again. $PYTHON is the Python to use, $VULKAN_HEADERS an include folder with newer headers of
# Vulkan than the distribution's.
set -eu

case ${1:-} in
-*)
    echo "usage: scripts/check_vulkan.sh [FOLDER]" >&2
    exit 2
    ;;
esac
folder=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/frcli-vulkan}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
cd "$(dirname "$0")/.."

packages="mesa-vulkan-drivers libvulkan-dev spirv-headers glslc g++"
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

# llama.cpp passes over Vulkan devices that are processors unless they are named, and only Mesa's own driver shall be seen.
driver=$(find /usr/share/vulkan/icd.d -name 'lvp_icd*.json' | head -n 1)
[ -n "$driver" ] || { echo "check_vulkan.sh: Mesa's software driver is not in /usr/share/vulkan/icd.d" >&2; exit 1; }
export GGML_VK_VISIBLE_DEVICES=0 VK_ICD_FILENAMES="$driver" VK_DRIVER_FILES="$driver"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
"${PYTHON:-python3}" -m venv "$work/venv"
python="$work/venv/bin/python"
"$python" -m pip install --quiet --upgrade "pip>=25.1"

requirement=$("$python" -c 'import tomllib
with open("pyproject.toml", "rb") as file:
    print(*(each for each in tomllib.load(file)["project"]["dependencies"] if each.startswith("llama-cpp-python")))')
from_folder() { # a wheel of another version than pyproject.toml asks for is passed over
    "$python" -m pip --isolated install --quiet --no-index --no-deps --find-links "$folder" "$requirement"
}
if ! from_folder 2>/dev/null; then
    headers=${VULKAN_HEADERS:-/usr/include}
    if ! grep -q VkLayerSettingEXT "$headers/vulkan/vulkan_core.h" 2>/dev/null; then  # Debian 12 has 1.3.239
        echo "check_vulkan.sh: the headers in $headers/vulkan are none that llama.cpp compiles with (it needs" \
            "VK_EXT_layer_settings): set VULKAN_HEADERS to the include folder of newer ones, such as Debian 13's libvulkan-dev" >&2
        exit 1
    fi
    # pip's own cache is left out: a wheel that was built for the processor would be taken from there, and this one by others.
    CMAKE_ARGS="-DGGML_VULKAN=on -DVulkan_INCLUDE_DIR=$headers ${CMAKE_ARGS:-}" "$python" -m pip wheel --no-cache-dir --no-deps \
        --no-binary llama-cpp-python --wheel-dir "$folder" "$requirement"
    from_folder
fi
"$python" -m pip install --quiet --editable . --group dev

PYTHONDONTWRITEBYTECODE=1 "$python" -m pytest tests/gpu/check_vulkan.py -p no:cacheprovider --basetemp "$work/tests"
