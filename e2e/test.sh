#!/usr/bin/env bash
# All tests, with all that they need, from nothing.
. "$(dirname "$0")/lib.sh"
finish() {
    local code=$?
    trap - EXIT
    e2e/down.sh >target/croft-logs/down.log 2>&1 || { cat target/croft-logs/down.log; code=1; }
    $cluster down --dir target/croft-test >>target/croft-logs/down.log 2>&1 || { cat target/croft-logs/down.log; code=1; }
    exit $code
}
mkdir -p target/croft-logs
trap finish EXIT
trap 'exit 130' INT TERM

formatted() { cargo fmt --all --check; }
proto_lint() { (cd proto && ../target/croft/bin/buf lint); }
chart_lint() {
    local helm=target/croft/bin/helm
    $helm lint --quiet charts/croft --values e2e/values.yaml &&
        $helm template croft charts/croft --namespace croft-system --values e2e/values.yaml --include-crds |
        target/croft/bin/kubeconform -strict -summary -schema-location e2e/schemas -ignore-missing-schemas
}
cluster_tests_of_the_starter() { (cd e2e/cluster/starter && go vet ./... && go test ./...); }

step "cluster programs" $cluster tools kube dns helm cilium buf
step "format" formatted
step "protobuf lint" proto_lint
step "clippy" quiet clippy cargo clippy --workspace --all-targets -- -D warnings
step "build" quiet test-build cargo test --workspace --no-run
step "starter" quiet starter cluster_tests_of_the_starter
step "services" e2e/test-services.sh
step "system" e2e/up.sh
. target/croft-test/test-env
INSTA_UPDATE=no step "tests" cargo test --workspace --no-fail-fast
