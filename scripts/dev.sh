#!/bin/sh
# Dagster's UI and daemon on the settings of this folder (or of MM_ASSETS_CONFIG), with their storage below `state`.
set -eu
bin="$(dirname "$0")/../.venv/bin"
DAGSTER_HOME="$("$bin/python" -c 'from mm_assets.cli.runs import open_instance; from mm_assets.settings import load_settings; s = load_settings(); open_instance(s).dispose(); print(s.dagster_home)')"
export DAGSTER_HOME
export PATH="$bin:$PATH"
exec dagster dev -m mm_assets.definitions "$@"
