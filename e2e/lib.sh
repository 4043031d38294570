# Sourced by the scripts beside it: where things are, and how long they take.
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$repo"
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}
cluster=e2e/cluster/cluster.sh
began=$SECONDS

# say SENTENCE: what is going on, with the minutes since the start.
say() {
    printf '[%3d:%02d] %s\n' $(((SECONDS - began) / 60)) $(((SECONDS - began) % 60)) "$*"
}

# step NAME COMMAND…: runs it and tells how long it took.
step() {
    local name=$1 since=$SECONDS
    shift
    say "$name …"
    "$@" || { local code=$?; say "$name failed after $((SECONDS - since)) s"; return $code; }
    say "$name: $((SECONDS - since)) s"
}

# quiet LOG COMMAND…: its output goes to a file, of which the end is shown when it fails. While it lasts, a sign of life.
quiet() {
    local log=target/croft-logs/$1.log
    shift
    mkdir -p target/croft-logs
    "$@" >"$log" 2>&1 &
    local pid=$! since=$SECONDS
    while kill -0 "$pid" 2>/dev/null; do
        sleep 1
        if (((SECONDS - since) % 30 == 0)); then
            say "  still at it: $(tail -n 1 "$log" | cut -c1-100)"
        fi
    done
    wait "$pid" || { local code=$?; tail -n 40 "$log"; echo "All of it is in $log"; return $code; }
}
