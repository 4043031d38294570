package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
)

// makeNetwork makes the bridge that carries the node's address, and lets the
// machine forward packets. The bridge has no ports: it is an address that is
// always up, whatever the machine's real network is called or does.
func makeNetwork() error {
	if _, err := os.Stat("/sys/class/net/" + nodeBridge); err != nil {
		if _, err := output("ip", "link", "add", nodeBridge, "type", "bridge"); err != nil {
			return err
		}
	}
	if text, _ := output("ip", "-4", "addr", "show", "dev", nodeBridge); !strings.Contains(text, nodeAddress+"/") {
		if _, err := output("ip", "addr", "add", nodeAddress+"/24", "dev", nodeBridge); err != nil {
			return err
		}
	}
	if _, err := output("ip", "link", "set", nodeBridge, "up"); err != nil {
		return err
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644)
}

// bpfFolder is where the kernel's BPF file system belongs.
const bpfFolder = "/sys/fs/bpf"

// mountBPF mounts it where the machine doesn't have it, and notes that it did.
func (d Dir) mountBPF() error {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(text), " "+bpfFolder+" bpf ") {
		return err
	}
	if err := writeFile(d.short("mounted-bpf"), nil, 0o644); err != nil {
		return err
	}
	if err := syscall.Mount("bpf", bpfFolder, "bpf", 0, ""); err != nil {
		return fmt.Errorf("cannot mount the BPF file system at %s: %w", bpfFolder, err)
	}
	return nil
}
