package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

func (d Dir) ciliumSocket() string { return d.short("cilium.sock") }

// cilium is the agent that enforces network policies. It does that and nothing
// else: no proxying, no tunnels, no Services, no view of the traffic.
func (d Dir) cilium(tool built, p Ports) (Process, error) {
	kubeconfig, err := d.kubeconfig("cilium", p)
	if err != nil {
		return Process{}, err
	}
	library := d.at("cilium", "lib")
	// It writes headers beside its sources, so it gets a copy.
	if _, err := os.Stat(filepath.Join(library, "bpf", "bpf_lxc.c")); err != nil {
		if err := copyFolder(tool.at("bpf"), filepath.Join(library, "bpf")); err != nil {
			return Process{}, err
		}
	}
	programs := d.at("cilium", "bin")
	for name, target := range map[string]string{"clang": "/usr/bin/clang-19", "llc": "/usr/bin/llc-19", "llvm-objcopy": "/usr/bin/llvm-objcopy-19"} {
		if err := symlink(target, filepath.Join(programs, name)); err != nil {
			return Process{}, err
		}
	}
	return Process{
		Name: "cilium-agent",
		Args: []string{tool.at("cilium-agent"),
			"--k8s-kubeconfig-path=" + kubeconfig, "--cluster-name=croft", "--cluster-id=0",
			"--enable-ipv4=true", "--enable-ipv6=false",
			"--ipam=kubernetes", "--identity-allocation-mode=crd",
			"--routing-mode=native", "--ipv4-native-routing-cidr=" + podCIDR, "--enable-host-legacy-routing=true",
			"--enable-ipv4-masquerade=true", "--enable-bpf-masquerade=false",
			// kube-proxy does Services.
			"--kube-proxy-replacement=false", "--enable-health-check-nodeport=false",
			"--devices=" + nodeBridge,
			"--enable-l7-proxy=false", "--enable-hubble=false", "--enable-health-checking=false", "--enable-endpoint-health-checking=false",
			// So that a policy's ipBlock can name the node, where PostgreSQL and Redis are.
			"--policy-cidr-match-mode=nodes",
			"--cni-exclusive=false",
			"--state-dir=" + d.short("cilium"), "--lib-dir=" + library, "--cgroup-root=" + unified(), "--socket-path=" + d.ciliumSocket(),
			fmt.Sprintf("--agent-health-port=%d", p.CiliumHealth), fmt.Sprintf("--prometheus-serve-addr=127.0.0.1:%d", p.CiliumMetrics),
			"--enable-gops=false",
		},
		Env: []string{
			"K8S_NODE_NAME=" + nodeName, "CILIUM_SOCK=" + d.ciliumSocket(),
			"PATH=" + programs + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		},
		Files:  []string{kubeconfig},
		Ready:  healthy(fmt.Sprintf("http://127.0.0.1:%d/healthz", p.CiliumHealth), "brief", "true"),
		Within: patience, // It compiles its programs, too.
	}, nil
}

// applyCiliumKinds makes the kinds of objects that Cilium keeps its state in,
// which on other clusters is the work of its operator.
func (d Dir) applyCiliumKinds(tool built) error {
	api, err := d.api()
	if err != nil {
		return err
	}
	paths, err := filepath.Glob(tool.at("crds/v2*/*.yaml"))
	if err != nil {
		return err
	}
	var all []func() error
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name := nameOf(string(text))
		if name == "" {
			return fmt.Errorf("no name in %s", path)
		}
		all = append(all, func() error { return api.apply("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/"+name, text) })
	}
	return together(all...)
}

// nameOf finds an object's name in its YAML without reading YAML: the one
// "name:" that is indented by two.
func nameOf(yaml string) string {
	inside := false
	for _, line := range strings.Split(yaml, "\n") {
		if strings.HasPrefix(line, "metadata:") {
			inside = true
		} else if line != "" && line[0] != ' ' {
			inside = false
		} else if inside && strings.HasPrefix(line, "  name: ") {
			return strings.TrimSpace(strings.TrimPrefix(line, "  name: "))
		}
	}
	return ""
}
