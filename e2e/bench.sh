#!/usr/bin/env bash
# Benchmarks, with all that they need, from nothing. Arguments go to `croft-bench operator`: `--tenants 200` is quicker.
. "$(dirname "$0")/lib.sh"
dir=target/croft-bench
programs=target/bench/release
finish() {
    local code=$?
    trap - EXIT
    $cluster down --dir $dir >>target/croft-logs/bench-down.log 2>&1 || { cat target/croft-logs/bench-down.log; code=1; }
    exit $code
}
mkdir -p target/croft-logs
step "Debian packages" $cluster apt services
step "cluster programs" $cluster tools kube helm --dir $dir
step "Croft's programs" quiet bench-build cargo build --release --target-dir target/bench \
    -p croft-operator -p croft-front -p croft-worker -p croft-e2e --bins
trap finish EXIT
trap 'exit 130' INT TERM
$cluster down --dir $dir
step "PostgreSQL, Redis" $cluster services up --dir $dir
step "API server" $cluster control-plane up --dir $dir
. $dir/env
export CROFT_BENCH_PROGRAMS=$programs
step "operator" $programs/croft-bench operator "$@" | tee target/croft-logs/bench-operator.md
