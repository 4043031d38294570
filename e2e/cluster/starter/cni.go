package main

import (
	"fmt"
	"os"
	"path/filepath"
)

// debianCNI is where Debian puts the plugins that connect pods.
const debianCNI = "/usr/lib/cni"

// makeCNI writes how pods are connected: by Cilium, or, where policies need
// not be enforced, by a plain pair of interfaces a pod.
func (d Dir) makeCNI(cilium built) error {
	plugins, err := filepath.Glob(debianCNI + "/*")
	if err != nil || len(plugins) == 0 {
		return fmt.Errorf("no CNI plugins in %s; `cluster.sh apt node` installs them", debianCNI)
	}
	for _, plugin := range plugins {
		if err := symlink(plugin, d.at("cni", "bin", filepath.Base(plugin))); err != nil {
			return err
		}
	}
	// A configuration of the other kind would be read as well.
	plain, policed := d.at("cni", "conf", "10-plain.conflist"), d.at("cni", "conf", "05-cilium.conflist")
	if cilium != "" {
		if err := symlink(cilium.at("cilium-cni"), d.at("cni", "bin", "cilium-cni")); err != nil {
			return err
		}
		_ = os.Remove(plain)
		return writeFile(policed, fmt.Appendf(nil, `{
  "cniVersion": "0.3.1",
  "name": "croft",
  "plugins": [
    {"type": "cilium-cni", "enable-debug": false, "log-file": %q},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`, d.log("cilium-cni")), 0o644)
	}
	_ = os.Remove(policed)
	// Routed, not bridged: two pods on one bridge would answer each other
	// directly, past the rules that undo a Service's address translation.
	return writeFile(plain, fmt.Appendf(nil, `{
  "cniVersion": "0.3.1",
  "name": "croft",
  "plugins": [
    {"type": "ptp", "ipMasq": true, "ipam": {
      "type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.244.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
    {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}
  ]
}
`, d.at("cni", "addresses")), 0o644)
}
