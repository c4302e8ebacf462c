#!/bin/bash
# bash tools/venv.sh FOLDER     (make setup): a virtual environment in FOLDER, whose Python is new enough and has pip.
# What stands there and is not that, of an interrupted set-up or an older Python, is made anew. PYTHON3=program: with that one.
set -u
venv=$1
OTHERS="python3.14 python3.13 python3.12 python3.11"  # where python3 itself is too old
fits(){ "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
version(){ "$1" -c 'import sys; print(".".join(map(str, sys.version_info[:3])))' 2>/dev/null || echo "nothing that runs"; }
whole(){
	fits "$venv/bin/python" && "$venv/bin/python" -m pip --version > /dev/null 2>&1 || return 1
	[ -z "${PYTHON3:-}" ] || [ "$(version "$PYTHON3")" = "$(version "$venv/bin/python")" ]
}
first(){ for one in python3 $OTHERS; do if fits "$one"; then echo "$one"; return; fi; done; }
stop(){ printf 'error: %s\n' "$@" >&2; exit 2; }

! whole || exit 0
if [ -n "${PYTHON3:-}" ]; then
	other=$(first)
	fits "$PYTHON3" || stop "Coview needs Python 3.11 or newer, PYTHON3=$PYTHON3 is $(version "$PYTHON3"). Type: PYTHON3=${other:-python3.12} make setup"
	python=$PYTHON3
else
	python=$(first)
	[ -n "$python" ] || stop "Coview needs Python 3.11 or newer; python3 here is $(version python3), and none of $OTHERS is there. Install one (Debian, Ubuntu: sudo apt install python3.12 python3.12-venv; elsewhere: uv python install 3.12), then type: PYTHON3=python3.12 make setup"
fi
if [ -e "$venv" ]; then
	[ "$venv" = .venv ] || [ -z "$(ls -A "$venv")" ] || stop "VENV=$venv holds something else than a virtual environment with Python 3.11 or newer and pip, and is left alone. Name another folder, or type: make setup"
	echo "$venv is half made, or of another Python ($(version "$venv/bin/python")): made anew with $python ($(version "$python"))"
fi
said=$("$python" -m venv --clear "$venv" 2>&1) && whole && exit 0
printf '%s\n' "$said" >&2
number=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
stop "$python cannot make a virtual environment with pip in $venv. Debian and Ubuntu have that in a package of its own; type: sudo apt install python$number-venv   and then: make setup"
