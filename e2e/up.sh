#!/usr/bin/env bash
# Brings the whole system up on this machine and leaves it running. `--without-policy` leaves the NetworkPolicy enforcer out.
. "$(dirname "$0")/lib.sh"
dir=target/croft
policy=policy
for argument in "$@"; do
    case $argument in
    --without-policy) policy= ;;
    *) echo "up.sh: unknown argument $argument"; exit 2 ;;
    esac
done

install() {
    . $dir/env
    kubectl create namespace croft-system --dry-run=client -o yaml | kubectl apply -f - >/dev/null
    kubectl label --overwrite namespace croft-system pod-security.kubernetes.io/enforce=restricted >/dev/null
    # What the pods run comes with a tag that never changes, so a new build shows in this annotation alone.
    helm upgrade --install croft charts/croft --namespace croft-system --values e2e/values.yaml \
        --set-string "front.postgres.url=$CROFT_POSTGRES_FRONT_URL_IN_CLUSTER" \
        --set-string "front.postgres.adminUrl=$CROFT_POSTGRES_ADMIN_URL_IN_CLUSTER" \
        --set-string "front.redis.url=$CROFT_REDIS_URL_IN_CLUSTER" \
        --set-string "buildId=$(cat target/debug/croft-{operator,front,worker} | sha256sum | cut -c1-16)" \
        --wait --timeout 180s >/dev/null
}

tenant() {
    . $dir/env
    kubectl apply -f e2e/manifests/demo-tenant.yaml >/dev/null
    kubectl wait agenttenant/demo --for=condition=Ready --timeout=120s >/dev/null
    if [ -z "${CROFT_API_KEY:-}" ]; then
        # The fronts mirror a new tenant within moments.
        local key= tries=0
        until key=$(CROFT_POSTGRES_URL=$CROFT_POSTGRES_URL target/debug/croft-front api-key create --tenant demo 2>$dir/api-key.log); do
            tries=$((tries + 1))
            [ $tries -lt 30 ] || { cat $dir/api-key.log; return 1; }
            sleep 1
        done
        printf "export CROFT_API_KEY='%s'\n" "$key" >>$dir/env
    fi
    grep -q CROFT_GRPC $dir/env || {
        echo "export CROFT_GRPC='127.0.0.1:30051'"
        echo "export CROFT_HTTP='http://127.0.0.1:30080'"
    } >>$dir/env
}

step "Debian packages" $cluster apt services node $policy
step "cluster programs" $cluster tools kube dns helm ${policy:+cilium}
step "Croft's programs" quiet cargo-build cargo build --workspace --bins
step "Kubernetes, PostgreSQL, Redis" $cluster up --dir $dir $([ -n "$policy" ] || echo --without-policy)
step "images" $cluster images load --dir $dir \
    operator=target/debug/croft-operator front=target/debug/croft-front worker=target/debug/croft-worker
step "helm install" install
step "tenant demo" tenant
say "up: source $dir/env"
