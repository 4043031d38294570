# Croft. `make demo` shows it, `make test` proves it; both install and build what they need.

.PHONY: demo up down images test test-services bench bench-front bench-worker generate lint fmt

demo: ## Everything up on this machine, a session by kubectl, one by gRPC, tokens on the terminal, everything removed
	@e2e/demo.sh

up: ## The same system, left running; then `source target/croft/env`
	@e2e/up.sh

down: ## Removes what `make up` started
	@e2e/down.sh

images: ## A release's images in target/images, for your registry; its name with `make images REPOSITORY=registry.example.com/croft`
	@e2e/images.sh $(REPOSITORY)

test: ## All tests, with all that they need
	@e2e/test.sh

test-services: ## PostgreSQL, Redis and an API server for `cargo test`; then `source target/croft-test/env`
	@e2e/test-services.sh

bench: ## BENCHMARKS.md's figures on this machine, on an API server of their own; less with `e2e/bench.sh --tenants 200`
	@e2e/bench.sh

bench-front: ## The front's figures, which need PostgreSQL and Redis alone
	@e2e/bench.sh front

bench-worker: ## The worker's figures, which need nothing but its program
	@e2e/bench.sh worker

generate: ## CRD manifests, their copy in the chart
	@cargo run --quiet -p croft-crds --bin crdgen

lint: ## What the compiler and the linters can tell
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets --quiet -- -D warnings

fmt:
	@cargo fmt --all
