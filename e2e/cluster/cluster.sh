#!/bin/sh
# A real Kubernetes for this machine. `cluster.sh help` lists what it can do.
#
# This only builds the program in starter/ (seconds, and only when it changed) and hands over to it.
set -eu
source_folder=$(cd "$(dirname "$0")" && pwd)
cache=${CROFT_CACHE:-$HOME/.cache/croft}
version=$(cd "$source_folder/starter" && find . -type f | LC_ALL=C sort | xargs sha256sum | sha256sum | cut -c1-16)
built="$cache/starter-$version"
if [ ! -x "$built/croft-cluster" ]; then
    mkdir -p "$cache"
    unfinished=$(mktemp -d "$cache/.starter-XXXXXX")
    trap 'rm -rf "$unfinished"' EXIT
    trap 'exit 130' INT TERM
    (cd "$source_folder/starter" && CGO_ENABLED=0 GOWORK=off go build -trimpath -ldflags '-s -w' -o "$unfinished/" . ./pause ./probe)
    # Whoever built it first wins; the two are alike.
    mv -T "$unfinished" "$built" 2>/dev/null || [ -x "$built/croft-cluster" ]
    chmod 755 "$built"
    # They are small, but every edit leaves one.
    find "$cache" -maxdepth 1 -name 'starter-*' -mtime +2 -exec rm -rf {} +
fi
CROFT_CLUSTER_SOURCE=$source_folder exec "$built/croft-cluster" "$@"
