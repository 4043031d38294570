#!/usr/bin/env bash
# All tests, with all that they need, from nothing.
. "$(dirname "$0")/lib.sh"
finish() {
    local code=$?
    trap - EXIT
    kill "$stalls_pid" 2>/dev/null || true
    e2e/down.sh >target/croft-logs/down.log 2>&1 || { cat target/croft-logs/down.log; code=1; }
    $cluster down --dir target/croft-test >>target/croft-logs/down.log 2>&1 || { cat target/croft-logs/down.log; code=1; }
    exit $code
}
# Tells of each time in which the machine stood still for longer than a second: a test may have missed a bound for it.
stalls() {
    local never before=${EPOCHREALTIME//[.,]/} now gap_ms
    exec {never}<> <(:)
    while kill -0 $$ 2>/dev/null; do
        read -r -t 0.2 -u "$never" || true
        now=${EPOCHREALTIME//[.,]/}
        gap_ms=$(((now - before) / 1000))
        if ((gap_ms > 1200)); then
            printf '%(%H:%M:%S)T, for %d ms\n' -1 "$gap_ms"
        fi
        before=$now
    done
}
mkdir -p target/croft-logs
stalls >target/croft-logs/stalls.log 2>&1 &
stalls_pid=$!
trap finish EXIT
trap 'exit 130' INT TERM

formatted() { cargo fmt --all --check; }
proto_lint() { (cd proto && ../target/croft/bin/buf lint); }
everything=(--set "monitoring.podMonitor.enabled=true,monitoring.rules.enabled=true,monitoring.dashboards.enabled=true")
chart_lint() {
    target/croft/bin/helm lint --quiet charts/croft --values e2e/values.yaml &&
        target/croft/bin/helm lint --quiet charts/croft --values e2e/values.yaml "${everything[@]}" &&
        target/croft/bin/helm template croft charts/croft --namespace croft-system --values e2e/values.yaml >/dev/null
}
# Against the schemas of the API server that is up. Those two kinds are Prometheus's operator's.
chart_objects() {
    local schemas=target/croft/schemas
    rm -rf "$schemas"
    (. target/croft-test/test-env && kubectl get --raw /openapi/v2) | $cluster schemas --to "$schemas" &&
        target/croft/bin/helm template croft charts/croft --namespace croft-system --values e2e/values.yaml "${everything[@]}" |
        target/croft/bin/kubeconform -strict -summary -skip PodMonitor,PrometheusRule \
            -schema-location "$schemas/{{ .ResourceKind }}{{ .KindSuffix }}.json"
}
alert_rules() {
    promtool check rules --lint=all --lint-fatal charts/croft/alerts.yaml && promtool test rules e2e/alerts.yaml
}
# What failed is told once more at the end, where people look first.
tests() {
    local log=target/croft-logs/tests.log
    cargo test --workspace --no-fail-fast 2>&1 | tee "$log" && return
    local code=$?
    echo
    echo "What failed, all of it is in $log:"
    grep -a '^test .* FAILED$' "$log" || true
    # Programs that log tell of their panics so, and so do those that a test means to have.
    grep -a '"message":"panicked"' "$log" | tail -n 20 | cut -c1-1000 || true
    awk '/^     Running /{program = $0} /^---- .* stdout ----$/{print program; shown = 30} /^test result/{shown = 0} shown-- > 0' "$log" | cut -c1-1000
    if [ -s target/croft-logs/stalls.log ]; then
        echo
        echo "The machine stood still until (target/croft-logs/stalls.log):"
        tail -n 40 target/croft-logs/stalls.log
    fi
    return $code
}
# What a newcomer sees first.
demo() {
    target/debug/croft-demo &&
        (. target/croft/env && kubectl delete --timeout=60s -f e2e/manifests/demo-session.yaml)
}
cluster_tests_of_the_starter() { (cd e2e/cluster/starter && go vet ./... && go test ./...); }

export CROFT_WITH_TESTS=yes INSTA_UPDATE=no
step "Debian packages" $cluster apt services node policy rules
step "cluster programs" $cluster tools kube dns helm cilium buf kubeconform
step "format" formatted
step "protobuf lint" proto_lint
step "chart lint" chart_lint
step "alert rules" alert_rules
step "clippy" quiet clippy cargo clippy --workspace --all-targets -- -D warnings
step "build" quiet test-build cargo build --workspace --bins --tests
step "the cluster's own tests" quiet starter cluster_tests_of_the_starter
step "services" e2e/test-services.sh
step "chart's objects" chart_objects
step "system" e2e/up.sh
step "demo" demo
. target/croft-test/test-env
step "tests" tests
