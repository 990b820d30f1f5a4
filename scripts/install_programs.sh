#!/bin/sh
# Make sure that tesseract, the one program that mm_assets calls, is there; install it where that can be done.
set -eu
if command -v tesseract >/dev/null 2>&1; then exit 0; fi
if command -v apt-get >/dev/null 2>&1; then
    sudo=""
    [ "$(id -u)" = 0 ] || sudo="sudo -n"
    echo "installing tesseract-ocr ..." >&2
    if $sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends tesseract-ocr >/dev/null; then
        exit 0
    fi
fi
cat >&2 <<'TEXT'
tesseract is missing and could not be installed from here. It reads text on images (step ocr_text). Install it:
    Debian, Ubuntu   sudo apt-get install tesseract-ocr
    Fedora           sudo dnf install tesseract
    macOS            brew install tesseract
TEXT
exit 1
