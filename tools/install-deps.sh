#!/bin/sh
# Install what the build and the tests need and is missing, from the distribution. Says what it installs; asks nothing.
# A machine that has all of it needs no root; one without root or without apt is told what is missing.
set -eu

PACKAGES="gcc g++ make pkg-config libc6-dev
libavformat-dev libavcodec-dev libswscale-dev libswresample-dev libavutil-dev ffmpeg
libjansson-dev libpcre2-dev libutf8proc-dev zlib1g-dev libjemalloc-dev libcmocka-dev
libevent-dev libssl-dev libhttp-parser-dev libcurl4-openssl-dev libseccomp-dev
libopenmpi-dev openmpi-bin
python3 python3-venv"

if ! command -v apt-get >/dev/null 2>&1 || ! command -v dpkg-query >/dev/null 2>&1; then
    if pkg-config --exists libavformat libavcodec libswscale libswresample libavutil jansson libpcre2-8 libutf8proc zlib libcurl libevent_core libevent_extra libevent_openssl openssl libseccomp cmocka \
        && command -v ffmpeg >/dev/null; then
        exit 0
    fi
    echo "omnidrop: no apt on this machine: install by hand what these Debian packages hold:" $PACKAGES >&2
    exit 1
fi

missing=""
for p in $PACKAGES; do
    dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing="$missing $p"
done
[ -z "$missing" ] && exit 0

if [ "$(id -u)" != 0 ]; then
    if command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
        SUDO="sudo -n"
    else
        echo "omnidrop: missing packages; install them with: sudo apt-get install$missing" >&2
        exit 1
    fi
else
    SUDO=""
fi
echo "omnidrop: installing from the distribution:$missing"
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086
$SUDO apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1 && exit 0
$SUDO apt-get update -qq
# shellcheck disable=SC2086
$SUDO apt-get install -y -qq --no-install-recommends $missing >/dev/null
