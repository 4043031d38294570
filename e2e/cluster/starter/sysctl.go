package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
)

// Kernel settings that the node's components change: kube-proxy, kubelet and
// Cilium all write some of these. Interfaces that come and go are not listed.
var kernelSettings = []string{
	"net/ipv4/ip_forward",
	"net/ipv4/conf/*/route_localnet", "net/ipv4/conf/*/rp_filter", "net/ipv4/conf/*/forwarding", "net/ipv4/conf/*/accept_local",
	"net/ipv4/conf/*/send_redirects", "net/ipv4/conf/*/accept_redirects",
	"net/ipv6/conf/all/forwarding", "net/ipv6/conf/*/forwarding", "net/ipv6/conf/*/accept_ra",
	"net/ipv4/fib_multipath_use_neigh", "net/ipv4/ip_local_reserved_ports", "net/ipv4/vs/*",
	"net/core/bpf_jit_enable", "net/core/fb_tunnels_only_for_init_net", "net/core/somaxconn",
	"net/netfilter/nf_conntrack_*", "net/bridge/*",
	// Not kernel/unprivileged_bpf_disabled: Cilium sets it to 1, from where no way leads back.
	"kernel/timer_migration",
	"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
}

// rememberKernel notes how the kernel is set before the node changes it. What
// is noted already stays: a second start must not take our values for the machine's.
func (d Dir) rememberKernel() error {
	note := d.short("kernel.json")
	if _, err := os.Stat(note); err == nil {
		return nil
	}
	text, err := json.Marshal(readKernel())
	if err != nil {
		return err
	}
	return writeFile(note, text, 0o644)
}

// restoreKernel sets back what has changed since.
func (d Dir) restoreKernel() {
	text, err := os.ReadFile(d.short("kernel.json"))
	if err != nil {
		return
	}
	var before map[string]string
	if json.Unmarshal(text, &before) != nil {
		return
	}
	now := readKernel()
	// ip_forward comes first: writing it resets the settings of the interfaces.
	set := func(path string) {
		if value, there := now[path]; there && value != before[path] {
			if err := os.WriteFile(path, []byte(before[path]), 0o644); err != nil {
				say("cannot set %s back to %s: %v", path, before[path], err)
			}
		}
	}
	const first = "/proc/sys/net/ipv4/ip_forward"
	set(first)
	now = readKernel()
	for _, path := range sortedKeys(before) {
		set(path)
	}
}

func readKernel() map[string]string {
	values := map[string]string{}
	for _, pattern := range kernelSettings {
		paths, _ := filepath.Glob("/proc/sys/" + pattern)
		for _, path := range paths {
			if text, err := os.ReadFile(path); err == nil {
				values[path] = strings.TrimSpace(string(text))
			}
		}
	}
	delete(values, "/proc/sys/net/netfilter/nf_conntrack_count") // A count, not a setting.
	return values
}
