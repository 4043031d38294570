package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// kubelet turns pods that the scheduler put on this node into containers.
func (d Dir) kubelet(kube string, p Ports) (Process, error) {
	kubeconfig, err := d.kubeconfig("kubelet", p)
	if err != nil {
		return Process{}, err
	}
	resolver := d.at("resolv.conf")
	if err := writeFile(resolver, []byte(resolvers()), 0o644); err != nil {
		return Process{}, err
	}
	settings := fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: %s
port: %d
healthzBindAddress: 127.0.0.1
healthzPort: %d
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: %s}
authorization: {mode: Webhook}
tlsCertFile: %s
tlsPrivateKeyFile: %s
clusterDomain: cluster.local
clusterDNS: [%s]
resolvConf: %s
containerRuntimeEndpoint: unix://%s
cgroupDriver: cgroupfs
cgroupRoot: /%s
# The machine may have the old kind of cgroups, and swap.
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
localStorageCapacityIsolation: false
podLogsDir: %s
volumePluginDir: %s
# A full disk is no reason to throw out pods and images that nobody can pull again.
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {memory.available: "0%%", nodefs.available: "0%%", nodefs.inodesFree: "0%%", imagefs.available: "0%%"}
maxPods: 200
serializeImagePulls: false
kubeAPIQPS: 100
kubeAPIBurst: 200
registryPullQPS: 0
# Ready within a second of being ready, not ten.
nodeStatusUpdateFrequency: 2s
runtimeRequestTimeout: 2m
shutdownGracePeriod: 0s
`, nodeAddress, p.Kubelet, p.KubeletHealth, d.certificate("ca"), d.certificate("kubelet"), d.key("kubelet"), dnsAddress, resolver,
		d.containerdSocket(), d.cgroup(), d.at("pod-logs"), d.at("kubelet-plugins"))
	path := d.at("kubelet.yaml")
	if err := writeFile(path, []byte(settings), 0o644); err != nil {
		return Process{}, err
	}
	return Process{
		Name: "kubelet",
		Args: []string{kube, "kubelet", "--config=" + path, "--kubeconfig=" + kubeconfig, "--root-dir=" + d.kubeletRoot(),
			"--hostname-override=" + nodeName, "--node-ip=" + nodeAddress},
		Files:  []string{path, kubeconfig, resolver},
		Ready:  healthy(fmt.Sprintf("http://127.0.0.1:%d/healthz", p.KubeletHealth)),
		Within: patience,
	}, nil
}

// kubeletRoot holds the pods' volumes, and sockets whose paths must stay short.
func (d Dir) kubeletRoot() string {
	if root := d.at("kubelet"); len(root) < 60 {
		return root
	}
	return d.short("kubelet")
}

// cgroup is the name of the group that all pods are in. Whatever is in there
// is ours, which is how "down" finds it.
func (d Dir) cgroup() string { return filepath.Base(d.Short) }

// resolvers is the machine's resolv.conf without what only the machine itself
// can reach. Empty means that names outside the cluster don't resolve.
func resolvers() string {
	text, _ := os.ReadFile("/etc/resolv.conf")
	return reachableResolvers(string(text))
}

func reachableResolvers(text string) string {
	var kept []string
	for _, line := range strings.Split(text, "\n") {
		fields := strings.Fields(line)
		if len(fields) >= 2 && fields[0] == "nameserver" && !strings.HasPrefix(fields[1], "127.") && fields[1] != "::1" {
			kept = append(kept, line+"\n")
		}
	}
	return strings.Join(kept, "")
}
