package main

import (
	"fmt"
	"os"
	"strings"
)

// The addresses of the node. They are fixed because there is one node a
// machine: two would fight over the same firewall rules. Any number of control
// planes and services may stand beside it.
const (
	nodeName    = "croft"
	nodeBridge  = "croft0"
	nodeAddress = "10.200.0.1"
	nodeCIDR    = "10.200.0.0/24"
	// The node's own address must lie outside, or Cilium takes the node for a pod.
	podCIDR     = "10.244.0.0/16"
	serviceCIDR = "10.96.0.0/16"
	// The first address of the range is the API server's.
	apiAddress = "10.96.0.1"
	dnsAddress = "10.96.0.10"
)

// nodeOwner is the one file that all runs share: it names the run that has the node.
func nodeOwner() string { return "/run/croft-node" }

// ownsNode says whether this run is the one whose node is (or was) up.
func (d Dir) ownsNode() bool {
	text, err := os.ReadFile(nodeOwner())
	return err == nil && strings.TrimSpace(string(text)) == d.Path
}

// takeNode makes this run the owner, and clears away the node of a run that
// was killed before it could do so itself.
func (d Dir) takeNode() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("a node needs root: it makes interfaces, mounts and firewall rules")
	}
	text, err := os.ReadFile(nodeOwner())
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	if owner := strings.TrimSpace(string(text)); owner != "" && owner != d.Path {
		other, err := openDir(owner)
		if err != nil {
			return err
		}
		if other.running("kubelet") {
			return fmt.Errorf("the node of this machine belongs to %s; take that down first", owner)
		}
		say("clearing away the node that %s left", owner)
		if err := other.nodeDown(); err != nil {
			return err
		}
	}
	return writeFile(nodeOwner(), []byte(d.Path+"\n"), 0o644)
}
