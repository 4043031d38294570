package main

import (
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// makeCgroups makes the run's group in every hierarchy: the kubelet wants to
// find its root there. On the old kind of cgroups each controller is one hierarchy.
func (d Dir) makeCgroups() error {
	for _, hierarchy := range hierarchies() {
		folder := filepath.Join(hierarchy, d.cgroup())
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return err
		}
		// A new cpuset is empty, and nothing can run in it.
		for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
			if text, err := os.ReadFile(filepath.Join(hierarchy, name)); err == nil {
				_ = os.WriteFile(filepath.Join(folder, name), text, 0o644)
			}
		}
	}
	return nil
}

// killPods ends every process of every pod, at once.
func (d Dir) killPods() {
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		left := false
		for _, folder := range d.cgroupFolders() {
			text, _ := os.ReadFile(filepath.Join(folder, "cgroup.procs"))
			for _, word := range strings.Fields(string(text)) {
				if pid, err := strconv.Atoi(word); err == nil && pid > 1 {
					left = true
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
			}
		}
		if !left {
			return
		}
	}
	say("some processes of pods do not end")
}

// removeCgroups removes the groups; the innermost must go first.
func (d Dir) removeCgroups() {
	for _, folder := range d.cgroupFolders() {
		_ = os.Remove(folder)
	}
}

// cgroupFolders gives the run's groups, innermost first.
func (d Dir) cgroupFolders() []string {
	var folders []string
	for _, hierarchy := range hierarchies() {
		_ = filepath.WalkDir(filepath.Join(hierarchy, d.cgroup()), func(path string, entry os.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				folders = append(folders, path)
			}
			return nil
		})
	}
	sort.SliceStable(folders, func(a, b int) bool { return len(folders[a]) > len(folders[b]) })
	return folders
}

// hierarchies gives where cgroups are mounted, of either kind.
func hierarchies() []string {
	text, _ := os.ReadFile("/proc/self/mounts")
	var found []string
	for _, line := range strings.Split(string(text), "\n") {
		if fields := strings.Fields(line); len(fields) > 2 && (fields[2] == "cgroup" || fields[2] == "cgroup2") && strings.HasPrefix(fields[1], "/sys/fs/cgroup") {
			found = append(found, fields[1])
		}
	}
	return found
}

// unified is where the new kind of cgroups is mounted; Cilium attaches to it.
func unified() string {
	text, _ := os.ReadFile("/proc/self/mounts")
	for _, line := range strings.Split(string(text), "\n") {
		if fields := strings.Fields(line); len(fields) > 2 && fields[2] == "cgroup2" {
			return fields[1]
		}
	}
	return "/sys/fs/cgroup"
}
