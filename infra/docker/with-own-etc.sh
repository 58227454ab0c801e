#!/bin/sh
# Runs a command where /etc is a copy of /etc: `with-own-etc COMMAND …`, as an ordinary user.
#
# A container engine mounts resolv.conf, hosts and hostname into /etc, and the kernel refuses whoever has no privilege
# an overlay over a folder with mounts in it. Steps get their private, writable /etc over this copy. Copied at the
# start: steps see the resolver and the hosts as they were then.
set -eu
own=/tmp/etc
rm -rf "$own"
mkdir "$own"
# What this user cannot read (shadow) steps could not read either.
cp -RP --preserve=mode,timestamps,links /etc/. "$own" 2>/dev/null || true
test -s "$own/resolv.conf" || echo "with-own-etc: no resolv.conf: steps will find no host by its name" >&2
# Mounting takes capabilities in a namespace of our own; the command gets none of them.
# shellcheck disable=SC2016 - the inner shell's
unshare --user --map-current-user --keep-caps --mount -- sh -eu -c '
    mount --bind "$0" /etc
    exec setpriv --ambient-caps=-all --inh-caps=-all -- "$@"' "$own" "$@" &
command=$!
# As process 1 we pass on what the engine asks and bury orphans, which waiting does. An init of the engine's own would
# be one more mount, in /usr.
trap 'kill -TERM "$command"' TERM INT
code=0
while kill -0 "$command" 2>/dev/null; do
    code=0
    wait "$command" || code=$?
done
exit "$code"
