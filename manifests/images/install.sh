#!/bin/sh
# install.sh ARGUMENT…: `pip install` of these arguments into /opt/venv; collect.sh then finds what came new.
set -eu
touch /before && sleep 1 # what came before has an earlier second: layers keep no smaller part of the time
[ -e /opt/venv ] || python3 -m venv --without-pip /opt/venv
pip --python /opt/venv/bin/python install --no-compile --root-user-action ignore "$@"
/opt/venv/bin/python bytecode.py
