package main

import (
	"os/exec"
	"strings"
)

// chains are how the names of the rules' chains begin, by who makes them:
// kube-proxy and kubelet, Cilium, the CNI plugins.
var chains = []string{"KUBE-", "CILIUM_", "OLD_CILIUM_", "CNI-"}

// clearFirewall takes the node's rules out and leaves all others as they are.
func clearFirewall() {
	for _, family := range []string{"iptables", "ip6tables"} {
		text, err := exec.Command(family+"-save", "-c").Output()
		if err != nil {
			continue // This machine has no such rules.
		}
		rest, changed := withoutChains(string(text))
		if !changed {
			continue
		}
		command := exec.Command(family+"-restore", "-c")
		command.Stdin = strings.NewReader(rest)
		if text, err := command.CombinedOutput(); err != nil {
			say("cannot take the node's rules out of %s: %s", family, strings.TrimSpace(string(text)))
		}
	}
	names, err := exec.Command("ipset", "list", "-n").Output()
	if err != nil {
		return
	}
	for _, name := range strings.Fields(string(names)) {
		if strings.HasPrefix(name, "cilium_") || strings.HasPrefix(name, "KUBE-") {
			_, _ = output("ipset", "destroy", name)
		}
	}
}

// withoutChains drops the node's chains, the rules in them and the rules that
// jump to them from what iptables-save printed.
func withoutChains(text string) (string, bool) {
	var kept []string
	changed := false
	for _, line := range strings.Split(text, "\n") {
		if ours(line) {
			changed = true
			continue
		}
		kept = append(kept, line)
	}
	return strings.Join(kept, "\n"), changed
}

func ours(line string) bool {
	fields := strings.Fields(line)
	for i, field := range fields {
		// ":CHAIN policy", "-A CHAIN …" or "… -j CHAIN".
		name, isName := strings.CutPrefix(field, ":")
		if (isName && i == 0) || (i > 0 && (fields[i-1] == "-A" || fields[i-1] == "-j" || fields[i-1] == "-g")) {
			for _, chain := range chains {
				if strings.HasPrefix(name, chain) {
					return true
				}
			}
		}
	}
	return false
}
