package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"time"
)

// packages are Debian's. Each stands with the file that shows it is there, so
// that one who installed it in another way is left alone.
var packages = map[string]map[string]string{
	"services": {
		"postgresql":   "/usr/lib/postgresql/*/bin/postgres",
		"redis-server": "/usr/bin/redis-server",
	},
	"node": {
		"containerd":                  "/usr/bin/containerd",
		"runc":                        "/usr/sbin/runc",
		"containernetworking-plugins": "/usr/lib/cni/ptp",
		"iproute2":                    "/*bin/ip",
		"iptables":                    "/usr/sbin/iptables",
		"ipset":                       "/usr/sbin/ipset",
		"conntrack":                   "/usr/sbin/conntrack",
		"kmod":                        "/*bin/modprobe",
		"ca-certificates":             "/etc/ssl/certs/ca-certificates.crt",
	},
	// Cilium compiles its programs on the node.
	"policy": {
		"clang-19": "/usr/bin/clang-19",
		"llvm-19":  "/usr/bin/llc-19",
	},
	// promtool, which judges the alert rules.
	"rules": {
		"prometheus": "/usr/bin/promtool",
	},
}

// install brings in the missing packages of the groups, and only those. With
// nothing missing it touches nothing and says nothing.
func install(groups []string) error {
	missing, err := missingPackages(groups, present)
	if err != nil || len(missing) == 0 {
		return err
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("these Debian packages are missing and only root can install them: %s", strings.Join(missing, " "))
	}
	say("installing %s", strings.Join(missing, " "))
	restore, err := keepServicesStopped()
	if err != nil {
		return err
	}
	defer restore()
	if _, err := aptGet("install", missing...); err == nil {
		return nil
	}
	// The lists may be missing or old, and a mirror may be out of order for a moment.
	return again([]time.Duration{5 * time.Second, 20 * time.Second}, "installing "+strings.Join(missing, " "), func() error {
		if text, err := aptGet("update"); err != nil {
			return fmt.Errorf("apt-get update: %w:\n%s", err, text)
		}
		if text, err := aptGet("install", missing...); err != nil {
			return fmt.Errorf("apt-get install: %w:\n%s", err, text)
		}
		return nil
	})
}

func missingPackages(groups []string, present func(pattern string) bool) ([]string, error) {
	var missing []string
	for _, group := range groups {
		members, known := packages[group]
		if !known {
			return nil, fmt.Errorf("no group of packages is called %q; there are node, policy, rules and services", group)
		}
		for name, pattern := range members {
			if !present(pattern) {
				missing = append(missing, name)
			}
		}
	}
	sort.Strings(missing)
	return missing, nil
}

func aptGet(verb string, names ...string) (string, error) {
	args := append([]string{"-y", "-q", "-o", "Acquire::Retries=5", "-o", "DPkg::Lock::Timeout=300", verb, "--no-install-recommends"}, names...)
	if verb == "update" {
		args = []string{"-q", "-o", "Acquire::Retries=5", "update"}
	}
	command := exec.Command("apt-get", args...)
	command.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	text, err := command.CombinedOutput()
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n"), err
}

// keepServicesStopped tells Debian not to start what it installs: the databases
// that run here are the run's own, on ports and in folders of their own.
func keepServicesStopped() (func(), error) {
	const path = "/usr/sbin/policy-rc.d"
	for range 600 {
		err := func() error {
			file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
			if err != nil {
				return err
			}
			defer file.Close()
			_, err = file.WriteString("#!/bin/sh\n# croft-cluster is installing packages.\nexit 101\n")
			return err
		}()
		if err == nil {
			return func() { _ = os.Remove(path) }, nil
		}
		if !os.IsExist(err) {
			return nil, err
		}
		text, _ := os.ReadFile(path)
		if !strings.Contains(string(text), "croft-cluster") {
			return func() {}, nil // The machine has a policy of its own; it stands.
		}
		if about, err := os.Stat(path); err == nil && time.Since(about.ModTime()) > 15*time.Minute {
			_ = os.Remove(path) // Left by one that was killed.
		}
		time.Sleep(time.Second)
	}
	return nil, fmt.Errorf("%s stays there: is another installation stuck?", path)
}

func present(pattern string) bool {
	found, _ := filepath.Glob(pattern)
	return len(found) > 0
}
