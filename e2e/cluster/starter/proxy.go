package main

import "fmt"

// proxy makes Services: it writes the firewall rules that turn a Service's
// address into a pod's.
func (d Dir) proxy(kube string, p Ports) (Process, error) {
	kubeconfig, err := d.kubeconfig("kube-proxy", p)
	if err != nil {
		return Process{}, err
	}
	settings := fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
hostnameOverride: %s
clusterCIDR: %s
clientConnection: {kubeconfig: %q}
healthzBindAddress: 127.0.0.1:%d
metricsBindAddress: 127.0.0.1:%d
# Its defaults want to write limits that a machine without the right doesn't allow.
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
# A new pod is in its Service at once; waiting pays on big clusters only.
iptables: {localhostNodePorts: true, minSyncPeriod: 0s, syncPeriod: 30s}
`, nodeName, podCIDR, kubeconfig, p.ProxyHealth, p.ProxyMetrics)
	path := d.at("kube-proxy.yaml")
	if err := writeFile(path, []byte(settings), 0o644); err != nil {
		return Process{}, err
	}
	return Process{
		Name:   "kube-proxy",
		Args:   []string{kube, "kube-proxy", "--config=" + path},
		Files:  []string{path, kubeconfig},
		Ready:  healthy(fmt.Sprintf("http://127.0.0.1:%d/livez", p.ProxyHealth)),
		Within: patience,
	}, nil
}
