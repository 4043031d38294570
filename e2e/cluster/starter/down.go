package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// down stops and removes everything of this run but its logs and its images'
// sources. It works on whatever is left of a run that was killed.
func (d Dir) down() error {
	if err := d.nodeDown(); err != nil {
		return err
	}
	if err := together(d.controlPlaneDown, d.servicesDown); err != nil {
		return err
	}
	d.sweep()
	if err := d.forget("env.d"); err != nil {
		return err
	}
	return d.tidy()
}

// nodeDown ends the pods and all that makes the machine a node, and sets the
// machine back to how it was.
func (d Dir) nodeDown() error {
	if !d.ownsNode() {
		return nil
	}
	// First whoever would start pods again, then the pods, then their keepers.
	d.stopAll(3*time.Second, "kubelet", "kube-scheduler", "kube-proxy")
	d.killPods()
	d.stopAll(5*time.Second, "cilium-agent", "containerd")
	d.sweepBut("postgres", "redis", "etcd", "kube-apiserver", "kube-controller-manager")
	d.unmountAll()
	d.removeInterfaces()
	clearFirewall()
	d.removeBPF()
	d.restoreRules()
	d.restoreKernel()
	d.restorePlaces()
	d.removeCgroups()
	if err := d.forget("containerd", "containerd.toml", "cni", "cilium", "kubelet", "kubelet.yaml", "kubelet-plugins", "kube-proxy.yaml",
		"pod-logs", "resolv.conf", "images"); err != nil {
		return err
	}
	for _, path := range []string{"containerd", "cilium", "kubelet", "containerd.sock", "containerd.sock.ttrpc", "cilium.sock", "kernel.json", "rules", "places.json", "runc", "mounted-bpf"} {
		if err := removeAll(d.short(path)); err != nil {
			return err
		}
	}
	return removeAll(nodeOwner())
}

// sweep ends every process that carries the run's mark, whether a record of it is left or not.
func (d Dir) sweep() { d.sweepBut() }

// sweepBut spares the recorded processes of those names, and their children.
func (d Dir) sweepBut(spared ...string) {
	keep := map[int]bool{}
	for _, name := range spared {
		if old, err := d.record(name); err == nil && old.alive() {
			keep[old.PID] = true
		}
	}
	// The killed are gone once they have been let run for a last time.
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		left := false
		for _, pid := range marked(d.mark()) {
			if keep[pid] || keep[parent(pid)] || pid == os.Getpid() {
				continue
			}
			left = true
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if !left {
			return
		}
	}
}

// unmountAll takes down the file systems of pods, containers and network namespaces.
func (d Dir) unmountAll() {
	for range 5 {
		text, _ := os.ReadFile("/proc/self/mountinfo")
		points := mountsUnder(string(text), d.Path, d.Short)
		if len(points) == 0 {
			return
		}
		for _, point := range points {
			_ = syscall.Unmount(point, syscall.MNT_DETACH)
		}
	}
}

// removeInterfaces removes the node's own and what is left of the pods'.
func (d Dir) removeInterfaces() {
	names, _ := filepath.Glob("/sys/class/net/*")
	for _, path := range names {
		name := filepath.Base(path)
		if name == nodeBridge || strings.HasPrefix(name, "cilium_") || strings.HasPrefix(name, "lxc") {
			_, _ = output("ip", "link", "del", name) // The other end of a pair may be gone with the first.
		}
	}
}

// removeBPF unpins Cilium's maps and programs, which lets the kernel drop them.
func (d Dir) removeBPF() {
	_ = os.RemoveAll(filepath.Join(bpfFolder, "cilium"))
	pinned, _ := filepath.Glob(filepath.Join(bpfFolder, "tc", "globals", "cilium_*"))
	for _, path := range pinned {
		_ = os.Remove(path)
	}
	// Only if nothing else is in them.
	_ = os.Remove(filepath.Join(bpfFolder, "tc", "globals"))
	_ = os.Remove(filepath.Join(bpfFolder, "tc"))
	if _, err := os.Stat(d.short("mounted-bpf")); err == nil {
		_ = syscall.Unmount(bpfFolder, syscall.MNT_DETACH)
	}
}

// restoreRules undoes what was done to the order of routing.
func (d Dir) restoreRules() {
	text, err := os.ReadFile(d.short("rules"))
	if err != nil {
		return
	}
	now, err := output("ip", "-4", "rule", "show")
	if err != nil || now == string(text) {
		return
	}
	for _, rule := range missingLines(string(text), now) {
		_, _ = output("ip", append([]string{"-4", "rule", "add", "pref"}, ruleWords(rule)...)...)
	}
	for _, rule := range missingLines(now, string(text)) {
		_, _ = output("ip", append([]string{"-4", "rule", "del", "pref"}, ruleWords(rule)...)...)
	}
}

// ruleWords makes "100:\tfrom all lookup local" what "ip rule add pref" takes.
func ruleWords(rule string) []string {
	return strings.Fields(strings.Replace(rule, ":", " ", 1))
}

// missingLines gives the lines of text that other lacks.
func missingLines(text, other string) []string {
	has := map[string]bool{}
	for _, line := range strings.Split(other, "\n") {
		has[line] = true
	}
	var missing []string
	for _, line := range strings.Split(text, "\n") {
		if line != "" && !has[line] {
			missing = append(missing, line)
		}
	}
	return missing
}
