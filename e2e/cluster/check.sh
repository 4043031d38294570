#!/bin/bash
# Shows that the cluster in DIR (target/croft unless told) does what Croft's tests rely on:
#   check.sh [DIR]
# It works in a namespace of its own and removes it. Each line is one promise.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=${1:-$here/../../target/croft}
. "$dir/env" || exit 1
namespace=croft-check
failed=0

check() { # WHAT COMMAND…
    local what=$1 said
    shift
    if said=$("$@" 2>&1); then
        echo "ok    $what"
    else
        echo "FAIL  $what: $said" | head -5
        failed=1
    fi
}
not() { ! "$@"; }
eventually() { for _ in $(seq 100); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done; "$@"; }
from() { local pod=$1; shift; kubectl -n $namespace exec "$pod" -- /usr/local/bin/probe "$@"; }
tcp() { timeout 5 bash -c "exec 3<>/dev/tcp/$1/$2"; }
says() { local expected=$1; shift; [[ $("$@") == *"$expected"* ]]; }
address() { local url=${1#*@}; echo "${url%%/*}"; }
clean() { kubectl delete namespace $namespace --ignore-not-found --wait=true >/dev/null 2>&1; }

pod() { # NAME ARGUMENTS
    cat <<POD
---
apiVersion: v1
kind: Pod
metadata: {name: $1, namespace: $namespace, labels: {app: $1}}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
  containers:
    - {name: probe, image: croft/probe:dev, imagePullPolicy: Never, args: [$2], resources: {limits: {cpu: 100m, memory: 64Mi}}}
POD
}

clean
trap clean EXIT
kubectl create namespace $namespace >/dev/null
eventually kubectl -n $namespace get serviceaccount default
kubectl apply -f - >/dev/null <<MANIFESTS
$(pod server 'listen, "8080"')
$(pod client sleep)
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: $namespace}
spec: {selector: {app: server}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: outside, namespace: $namespace}
spec: {type: NodePort, selector: {app: server}, ports: [{port: 80, targetPort: 8080, nodePort: 30999}]}
MANIFESTS
check "pods become ready" kubectl -n $namespace wait pod --all --for=condition=Ready --timeout=60s
server=$(kubectl -n $namespace get pod server -o jsonpath='{.status.podIP}')
check "a pod reaches a pod" eventually from client connect "$server:8080" 1s
check "a pod reaches a Service by name" eventually from client connect "server.$namespace.svc.cluster.local:80" 2s
check "a pod reaches itself through its Service" eventually from server connect "server.$namespace.svc.cluster.local:80" 2s
check "a pod reaches the API server" from client connect kubernetes.default.svc:443 2s
check "a pod reaches PostgreSQL" from client connect "$(address "$CROFT_POSTGRES_FRONT_URL_IN_CLUSTER")" 2s
check "a pod reaches Redis" from client connect "$(address "$CROFT_REDIS_URL_IN_CLUSTER")" 2s
check "the machine reaches a pod" tcp "$server" 8080
check "the machine reaches a NodePort at 127.0.0.1" eventually tcp 127.0.0.1 30999
check "the machine reaches a NodePort at the node's address" tcp "$CROFT_NODE_ADDRESS" 30999
check "a NodePort answers to HTTP" says server curl -s -m 5 http://127.0.0.1:30999/
check "logs arrive" says from kubectl -n $namespace logs server
check "a memory limit is a cgroup's" says 67108864 bash -c "cat /sys/fs/cgroup/memory/croft-*/kubepods/pod*/memory.limit_in_bytes /sys/fs/cgroup/croft-*/kubepods/pod*/memory.max 2>/dev/null; true"
if [ -n "${CROFT_CILIUM_METRICS:-}" ]; then
    kubectl apply -f - >/dev/null <<'POLICY'
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: croft-check}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
POLICY
    check "default deny closes the way to a pod" eventually not from client connect "$server:8080" 1s
    check "default deny closes the way to PostgreSQL" eventually not from client connect "$(address "$CROFT_POSTGRES_FRONT_URL_IN_CLUSTER")" 1s
    check "default deny closes DNS" not from client resolve kubernetes.default.svc.cluster.local 1s
    check "default deny closes the API server" not from client connect "$CROFT_NODE_ADDRESS:$CROFT_API_PORT" 1s
    kubectl apply -f - >/dev/null <<POLICY
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow, namespace: croft-check}
spec:
  podSelector: {matchLabels: {app: client}}
  policyTypes: [Egress]
  egress:
    - to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}]
      ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]
    - to: [{ipBlock: {cidr: $CROFT_NODE_ADDRESS/32}}]
      ports: [{protocol: TCP, port: $(address "$CROFT_POSTGRES_FRONT_URL_IN_CLUSTER" | cut -d: -f2)}]
POLICY
    check "an allowed name resolves" eventually from client resolve kubernetes.default.svc.cluster.local 1s
    check "an allowed ipBlock on the node opens" eventually from client connect "$(address "$CROFT_POSTGRES_FRONT_URL_IN_CLUSTER")" 1s
    check "what is not allowed stays closed" not from client connect "$(address "$CROFT_REDIS_URL_IN_CLUSTER")" 1s
    check "drops are counted" says 'reason="Policy denied"' curl -s "$CROFT_CILIUM_METRICS"
fi
chart=$(mktemp -d)
mkdir "$chart/templates"
printf 'apiVersion: v2\nname: trivial\nversion: 0.1.0\n' >"$chart/Chart.yaml"
printf 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: trivial}\ndata: {release: {{ .Release.Name }}}\n' >"$chart/templates/map.yaml"
check "helm installs a chart" helm -n $namespace install trivial "$chart" --wait
check "helm uninstalls it" helm -n $namespace uninstall trivial
rm -rf "$chart"
check "a token is made out to croft" says . kubectl -n $namespace create token default --audience croft
check "the audit log tells who wrote" grep -q '"userAgent":"kubectl' "$CROFT_KUBE_AUDIT_LOG"
exit $failed
