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

# Each image also has a tag that follows its content, so that a new build replaces the pods.
images() {
    $cluster images load --dir $dir operator=target/debug/croft-operator front=target/debug/croft-front \
        worker=target/debug/croft-worker | tee $dir/image-tags
}

tag() {
    grep -o "croft/$1:[0-9a-f]\{12\}" $dir/image-tags | cut -d: -f2
}

install() {
    . $dir/env
    kubectl create namespace croft-system --dry-run=client -o yaml | kubectl apply -f - >/dev/null
    kubectl label --overwrite namespace croft-system pod-security.kubernetes.io/enforce=restricted >/dev/null
    # The URLs hold passwords, which a command line would show to everyone on the machine.
    umask 077
    cat >$dir/values.yaml <<VALUES
images:
  tags: { operator: "$(tag operator)", front: "$(tag front)", worker: "$(tag worker)" }
front:
  postgres:
    url: "$CROFT_POSTGRES_FRONT_URL_IN_CLUSTER"
    adminUrl: "$CROFT_POSTGRES_ADMIN_URL_IN_CLUSTER"
  redis:
    url: "$CROFT_REDIS_URL_IN_CLUSTER"
VALUES
    # Whose tokens the fronts take: the cluster's own service accounts'.
    kubectl get --raw /openid/v1/jwks >$dir/jwks.json
    local issuer
    issuer=$(kubectl get --raw /.well-known/openid-configuration | grep -o '"issuer":"[^"]*"' | cut -d'"' -f4)
    helm upgrade --install croft charts/croft --namespace croft-system \
        --values e2e/values.yaml --values $dir/values.yaml \
        --set front.serviceAccounts.issuer="$issuer" --set-file front.serviceAccounts.jwks=$dir/jwks.json --wait --timeout 180s >$dir/helm.log 2>&1 || {
        cat $dir/helm.log
        kubectl get pods,events -n croft-system
        return 1
    }
}

tenant() {
    . $dir/env
    kubectl apply -f e2e/manifests/demo-tenant.yaml >/dev/null
    kubectl wait agenttenant/demo --for=condition=Ready --timeout=120s >/dev/null
    if [ -z "${CROFT_API_KEY:-}" ]; then
        # The fronts hear of a new tenant within moments.
        local key= tries=0
        until key=$(kubectl -n croft-system exec deploy/croft-front -c front -- \
            croft-front api-key create --tenant demo 2>$dir/api-key.log); do
            tries=$((tries + 1))
            [ $tries -lt 60 ] || { cat $dir/api-key.log; return 1; }
            sleep 0.5
        done
        CROFT_API_KEY=$key
    fi
    umask 077
    mkdir -p $dir/env.d
    cat >$dir/env.d/croft.env <<ENV
export CROFT_GRPC='127.0.0.1:30051'
export CROFT_HTTP='http://127.0.0.1:30080'
export CROFT_API_KEY='$CROFT_API_KEY'
ENV
    $cluster env --dir $dir >/dev/null
}

step "Debian packages" $cluster apt services node $policy
step "cluster programs" $cluster tools kube dns helm ${policy:+cilium}
# With the tests' features when the tests are to follow, so that nothing is built twice.
step "Croft's programs" quiet cargo-build cargo build --workspace --bins ${CROFT_WITH_TESTS:+--tests}
step "Kubernetes, PostgreSQL, Redis" $cluster up --dir $dir $([ -n "$policy" ] || echo --without-policy)
step "images" images
step "helm install" install
step "tenant demo" tenant
say "up: source $dir/env"
