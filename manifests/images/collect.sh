#!/bin/sh
# collect.sh: copies to /added, for a layer of its own, what install.sh has brought into /opt/venv, but for what no
# step reads.
set -eu
mkdir /added
left_out=$(realpath "$(dirname "$0")")/left-out.txt
cd /
find opt/venv -newer before ! -type d -print0 | tar -c --null --exclude-from="$left_out" -T - | tar -x -C /added
# Of the services of AWS, the descriptions of S3 and of those that give credentials: 20 MB less.
find /added -path '*/botocore/data/*' -prune -type d ! -name s3 ! -name 'sso*' ! -name sts ! -name signin \
    -exec rm -r {} +
# Symbol tables, 80 MB, which only a debugger reads. Not of what auditwheel has edited: strip breaks that.
find /added -name '*.so*' ! -path '*.libs/*' ! -path '*/torch/*' -exec strip --strip-unneeded {} +
