package main

import (
	"fmt"
	"os/exec"
)

func (d Dir) containerdSocket() string { return d.short("containerd.sock") }

// containerd runs the pods. It is Debian's program with everything else its
// own: root, state, socket and network configuration.
func (d Dir) containerd() (Process, error) {
	program, err := exec.LookPath("containerd")
	if err != nil {
		return Process{}, fmt.Errorf("containerd is not installed; `cluster.sh apt node` installs it")
	}
	settings := fmt.Sprintf(`version = 2
root = %q
state = %q
oom_score = 0
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
  address = %q
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/%s"
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  # Without CAP_SYS_RESOURCE nobody may lower the score, and runc dies trying.
  restrict_oom_score_adj = true
  # In a folder of ours, where "ip netns add" of someone else doesn't cover them with a mount.
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        Root = %q
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %q
    conf_dir = %q
`, d.at("containerd"), d.short("containerd"), d.containerdSocket(), pauseImage, d.short("runc"), d.at("cni", "bin"), d.at("cni", "conf"))
	path := d.at("containerd.toml")
	if err := writeFile(path, []byte(settings), 0o644); err != nil {
		return Process{}, err
	}
	return Process{
		Name:   "containerd",
		Args:   []string{program, "--config", path},
		Env:    []string{"CILIUM_SOCK=" + d.ciliumSocket()}, // The CNI program inherits it.
		Files:  []string{path},
		Ready:  func() error { _, err := d.ctr("version"); return err },
		Within: patience,
	}, nil
}

// ctr talks to the run's containerd, in the namespace that Kubernetes uses.
func (d Dir) ctr(args ...string) (string, error) {
	return output("ctr", append([]string{"--address", d.containerdSocket(), "--namespace", "k8s.io", "--timeout", "10s"}, args...)...)
}
