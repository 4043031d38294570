#!/usr/bin/env bash
# Removes what up.sh started.
. "$(dirname "$0")/lib.sh"
$cluster down --dir target/croft
