package main

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// tool is a module of this folder's and what to build of it.
type tool struct {
	what     string // for people
	module   string // the folder, beside this one
	packages []string
	ldflags  string
	// links are the names that people call, and the program that answers to each.
	links map[string]string
	// copies are folders of other modules that the programs need when they run:
	// module, folder in it, and name in the result.
	copies [][3]string
	cold   string // how long the first build takes on two idle cores
}

const kubeVersion = "1.36.3"

var toolbox = map[string]tool{
	"kube": {
		what: "Kubernetes " + kubeVersion + " with etcd 3.6.8", module: ".", packages: []string{"."}, cold: "7 to 15 minutes",
		ldflags: "-X k8s.io/component-base/version.gitVersion=v" + kubeVersion +
			" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36" +
			// What clients call themselves in the audit log.
			" -X k8s.io/client-go/pkg/version.gitVersion=v" + kubeVersion,
		links: map[string]string{"kubectl": "croft-kube"},
	},
	"dns": {what: "CoreDNS 1.15.0", module: "dns", packages: []string{"."}, cold: "2 minutes"},
	"cilium": {
		what: "Cilium 1.20.2", module: "cilium", packages: []string{"./cilium-agent", "./cilium-cni"}, cold: "7 minutes",
		copies: [][3]string{
			{"github.com/cilium/cilium", "bpf", "bpf"},
			{"github.com/cilium/cilium", "pkg/k8s/apis/cilium.io/client/crds", "crds"},
		},
	},
	"helm": {
		what: "Helm 4.3.1", module: "helm", packages: []string{"helm.sh/helm/v4/cmd/helm"}, cold: "3 minutes",
		ldflags: "-X helm.sh/helm/v4/internal/version.version=v4.3.1",
		links:   map[string]string{"helm": "helm"},
	},
	"buf": {
		what: "buf 1.75.0", module: "buf", packages: []string{"github.com/bufbuild/buf/cmd/buf"}, cold: "2 minutes",
		links: map[string]string{"buf": "buf"},
	},
	"grpcurl": {
		what: "grpcurl 1.9.4", module: "grpcurl", packages: []string{"github.com/fullstorydev/grpcurl/cmd/grpcurl"}, cold: "1 minute",
		ldflags: "-X main.version=v1.9.4",
		links:   map[string]string{"grpcurl": "grpcurl"},
	},
	"kubeconform": {
		what: "kubeconform 0.8.0", module: "kubeconform", packages: []string{"github.com/yannh/kubeconform/cmd/kubeconform"}, cold: "10 seconds",
		ldflags: "-X main.version=v0.8.0",
		links:   map[string]string{"kubeconform": "kubeconform"},
	},
}

// built is the folder with what a tool's build gave.
type built string

func (b built) at(name string) string { return filepath.Join(string(b), name) }

// tools builds what is missing of the named tools (of all, if none is named)
// and links their programs.
func (d Dir) tools(names []string) error {
	if len(names) == 0 {
		for name := range toolbox {
			names = append(names, name)
		}
		sort.Strings(names)
	}
	for _, name := range names {
		folder, err := build(name)
		if err != nil {
			return err
		}
		if err := d.link(name); err != nil {
			return err
		}
		fmt.Printf("%s\t%s\n", name, folder)
	}
	return nil
}

// link puts the tool's programs into DIR/bin under the names people know.
func (d Dir) link(name string) error {
	folder, err := toolbox[name].folder()
	if err != nil {
		return err
	}
	for link, program := range toolbox[name].links {
		if err := symlink(folder.at(program), d.at("bin", link)); err != nil {
			return err
		}
	}
	return nil
}

// symlink makes name point to target, replacing what name was in one step.
func symlink(target, name string) error {
	if current, err := os.Readlink(name); err == nil && current == target {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	unfinished := fmt.Sprintf("%s.%d.new", name, os.Getpid())
	_ = os.Remove(unfinished)
	if err := os.Symlink(target, unfinished); err != nil {
		return err
	}
	return os.Rename(unfinished, name)
}

func toolNames() string {
	var names []string
	for name := range toolbox {
		names = append(names, name)
	}
	sort.Strings(names)
	return strings.Join(names, ", ")
}

// isBuilt fails when a tool would have to be built first.
func isBuilt(name string) error {
	t, known := toolbox[name]
	if !known {
		return fmt.Errorf("no tool is called %q; there are %s", name, toolNames())
	}
	folder, err := t.folder()
	if err != nil {
		return err
	}
	if _, err := os.Stat(string(folder)); err != nil {
		return fmt.Errorf("%s is not built yet", t.what)
	}
	return nil
}
