#!/usr/bin/env bash
# Benchmarks, with all that they need, from nothing: of the operator, or of what the first argument names, `front` or `worker`.
# Further arguments go to `croft-bench`: `--tenants 200` is quicker.
. "$(dirname "$0")/lib.sh"
what=operator
if [ "${1:-}" = front ] || [ "${1:-}" = worker ]; then
    what=$1
    shift
fi
dir=target/croft-bench
if [ $what != operator ]; then
    dir=target/croft-bench-$what
fi
programs=target/bench/release
finish() {
    local code=$?
    trap - EXIT
    $cluster down --dir $dir >>target/croft-logs/bench-down.log 2>&1 || { cat target/croft-logs/bench-down.log; code=1; }
    exit $code
}
mkdir -p target/croft-logs
if [ $what = worker ]; then
    step "Croft's programs" quiet bench-build cargo build --release --target-dir target/bench \
        -p croft-worker -p croft-e2e --bin croft-worker --bin croft-bench
    export CROFT_BENCH_PROGRAMS=$programs
    step worker $programs/croft-bench worker --scratch $dir "$@" | tee target/croft-logs/bench-worker.md
    exit
fi
step "Debian packages" $cluster apt services
if [ $what = operator ]; then
    step "cluster programs" $cluster tools kube helm --dir $dir
fi
step "Croft's programs" quiet bench-build cargo build --release --target-dir target/bench \
    -p croft-operator -p croft-front -p croft-worker -p croft-e2e --bins
trap finish EXIT
trap 'exit 130' INT TERM
$cluster down --dir $dir
step "PostgreSQL, Redis" $cluster services up --dir $dir
if [ $what = operator ]; then
    step "API server" $cluster control-plane up --shipped-rates --dir $dir
else
    # A file a WebSocket, for the harness and, as its child, for the front.
    ulimit -n "$(ulimit -H -n)"
fi
. $dir/env
export CROFT_BENCH_PROGRAMS=$programs
step $what $programs/croft-bench $what "$@" | tee target/croft-logs/bench-$what.md
