#!/usr/bin/env bash
# A release's images as target/images/PART.tar, without a builder: images.sh [REPOSITORY]. `docker load`, `podman load`, `skopeo copy
# docker-archive:…` and `ctr images import` take them. They hold what `make up` runs, built for a release.
. "$(dirname "$0")/lib.sh"
repository=${1:-croft}
tag=$(sed -n 's/^appVersion: *"\{0,1\}\([^"]*\)"\{0,1\}$/\1/p' charts/croft/Chart.yaml)
programs=()
for part in operator front worker; do
    programs+=("$part=target/release/croft-$part")
done
step "Croft's programs" quiet cargo-release cargo build --workspace --release --locked \
    --bin croft-operator --bin croft-front --bin croft-worker
$cluster images save --repository "$repository" --tag "$tag" "${programs[@]}"
