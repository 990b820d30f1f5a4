#!/bin/sh
# Make sure that the programs outside Python are there; install what is missing where that can be done.
#   install_programs.sh              tesseract, the one program that mm_assets calls
#   install_programs.sh espeak       the speech synthesiser as well, which speaks the tests' media
#   install_programs.sh chromium     both, and the browser of `make browser`
#   install_programs.sh postgresql   both, and the server's binaries, for `make postgres-test`; the tests run one of their own
set -eu

has_espeak() {
    command -v espeak-ng >/dev/null 2>&1 || ldconfig -p 2>/dev/null | grep -q libespeak-ng
}

has_postgresql() {
    command -v postgres >/dev/null 2>&1 || ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1
}

has_chromium() {
    command -v chromium >/dev/null 2>&1 || command -v chromium-browser >/dev/null 2>&1 || command -v google-chrome >/dev/null 2>&1
}

install_package() {
    command -v apt-get >/dev/null 2>&1 || return 1
    sudo=""
    [ "$(id -u)" = 0 ] || sudo="sudo -n"
    echo "installing $1 ..." >&2
    $sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "$1" >/dev/null
}

case "${1:-}" in
    "" | espeak | postgresql | chromium) ;;
    *) echo "usage: $0 [espeak | postgresql | chromium]" >&2; exit 2 ;;
esac

failed=0
command -v tesseract >/dev/null 2>&1 || install_package tesseract-ocr || {
    failed=1
    cat >&2 <<'TEXT'
tesseract is missing and could not be installed from here. It reads text on images (step ocr_text). Install it:
    Debian, Ubuntu   sudo apt-get install tesseract-ocr
    Fedora           sudo dnf install tesseract
    macOS            brew install tesseract
TEXT
}
[ -z "${1:-}" ] || has_espeak || install_package espeak-ng || {
    failed=1
    cat >&2 <<'TEXT'
eSpeak NG is missing and could not be installed from here. It speaks the tests' media. Install it:
    Debian, Ubuntu   sudo apt-get install espeak-ng
    Fedora           sudo dnf install espeak-ng
    macOS            brew install espeak-ng
TEXT
}
[ "${1:-}" != postgresql ] || has_postgresql || install_package postgresql || {
    failed=1
    cat >&2 <<'TEXT'
PostgreSQL is missing and could not be installed from here. The tests start a server of their own. Install its binaries:
    Debian, Ubuntu   sudo apt-get install postgresql
    Fedora           sudo dnf install postgresql-server
    macOS            brew install postgresql
TEXT
}
[ "${1:-}" != chromium ] || has_chromium || install_package chromium || {
    failed=1
    cat >&2 <<'TEXT'
Chromium is missing and could not be installed from here. `make browser` drives the page in it. Install it:
    Debian, Ubuntu   sudo apt-get install chromium
    Fedora           sudo dnf install chromium
    macOS            brew install --cask google-chrome
TEXT
}
exit $failed
