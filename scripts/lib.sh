# Shared by the scripts in this folder: the repository's root and its virtual environment.
# Sourced, not run. Needs python3 >= 3.10 with the venv module and nothing else; $PYTHON chooses another python3.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=$ROOT/.venv
CALLED_FROM=$PWD
cd "$ROOT"

say() { printf '%s\n' "$*" >&2; }

die() {
  say "error: $*"
  exit 1
}

# Runs a command silently; its output is shown only when it fails.
quietly() {
  local log status=0
  log=$(mktemp)
  "$@" >"$log" 2>&1 </dev/null || status=$?
  if [ "$status" -ne 0 ]; then cat "$log" >&2; fi
  rm -f "$log"
  return "$status"
}

# An environment can be there and useless: made half, or by a python3 that is gone.
venv_works() { [ -x "$VENV/bin/python" ] && "$VENV/bin/python" -c 'import pip' 2>/dev/null; }

make_venv() {
  local python=${PYTHON:-python3}
  command -v "$python" >/dev/null || die "$python is not installed. On Debian or Ubuntu: apt-get install python3 python3-venv"
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    die "$("$python" --version) is too old: Python 3.10 or newer is needed. PYTHON=/path/to/python3 chooses another."
  "$python" -c 'import venv, ensurepip' 2>/dev/null ||
    die "$python cannot make virtual environments. On Debian or Ubuntu: apt-get install python3-venv"
  say "Making a virtual environment in ${VENV#"$ROOT"/} ..."
  rm -rf "$VENV"
  quietly "$python" -m venv "$VENV" || die "could not make $VENV; see the output above."
}

# What an installation depends on: the project file, and the place that the editable installation points to.
stamp() { { cat pyproject.toml && printf '%s' "$ROOT"; } | cksum; }

# ensure_venv NAME REQUIREMENT...: installs the requirements once, and again when pyproject.toml has changed.
ensure_venv() {
  local file=$VENV/.installed-$1
  shift
  venv_works || make_venv
  if [ "$(cat "$file" 2>/dev/null)" != "$(stamp)" ]; then
    say "Installing $* (a minute or two the first time) ..."
    quietly "$VENV/bin/python" -m pip install --disable-pip-version-check --quiet "$@" ||
      die "the installation failed; see the output above."
    stamp >"$file"
  fi
  PATH=$VENV/bin:$PATH
}
