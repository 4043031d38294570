#!/usr/bin/env bash
# Everything up, a short conversation, everything removed.
. "$(dirname "$0")/lib.sh"
finish() {
    local code=$?
    trap - EXIT
    if [ $code -eq 0 ]; then
        say "removing everything (\`make up\` leaves it running; then \`source target/croft/env\` and try \`kubectl get agenttenants,agentsessions -A\`)"
    fi
    e2e/down.sh || code=1
    exit $code
}
trap finish EXIT
trap 'exit 130' INT TERM
# The policy enforcer takes long to build: the demo goes without it unless it has been built.
enforcer=--without-policy
if $cluster built cilium 2>/dev/null; then
    enforcer=
else
    say "the NetworkPolicy enforcer is left to \`make up\` and \`make test\`, which build it: here the fence is applied but not enforced"
fi
e2e/up.sh $enforcer
say "up; now as a user would"
target/debug/croft-demo
