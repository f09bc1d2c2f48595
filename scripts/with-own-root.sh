#!/bin/sh
# Runs a command in a place where "/" is a mount.
#
#   scripts/with-own-root.sh COMMAND [ARGUMENT…]
#
# Container tools such as buildah make the mount at "/" private before they unpack a layer. In a chroot
# that somebody made without a mount of its own there is none, and they fail with "invalid argument".
# Here "/" is then bound to a folder in a mount namespace of our own, and the command runs in that. On any
# other machine this only runs the command.
set -eu

if awk '$5 == "/" { found = 1 } END { exit !found }' /proc/self/mountinfo; then
	exec "$@"
fi
# The namespace's mounts are not made private as a whole: that takes a mount at "/" as well. Where they are
# shared with the machine's, taking ours away again takes it away there too.
PINNACE_OWN_ROOT=$(mktemp -d) PINNACE_OWN_CWD=$(pwd)
export PINNACE_OWN_ROOT PINNACE_OWN_CWD
status=0
# shellcheck disable=SC2016 # the inner shells expand these
unshare --mount --propagation unchanged sh -c '
	mount --rbind / "$PINNACE_OWN_ROOT" && mount --make-rprivate "$PINNACE_OWN_ROOT" || exit 1
	status=0
	chroot "$PINNACE_OWN_ROOT" sh -c "cd \"\$PINNACE_OWN_CWD\" && exec \"\$@\"" "$@" || status=$?
	umount --recursive --lazy "$PINNACE_OWN_ROOT"
	exit $status' sh sh "$@" || status=$?
rmdir "$PINNACE_OWN_ROOT"
exit $status
