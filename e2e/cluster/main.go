// Command croft-kube is a whole Kubernetes in one binary: the first argument
// says which program it is.
//
// Nothing here changes how those programs behave. They are linked together
// because this is the only form in which the module proxy serves them, and
// because one link instead of seven saves minutes and half a gigabyte.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"          // --logging-format=json
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // client metrics of the controllers
	_ "k8s.io/component-base/metrics/prometheus/version"  // build information as a metric
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
)

// programs maps the name of each program to what runs it until it ends and
// gives its exit code.
var programs = map[string]func(args []string) int{
	"etcd":                    etcd,
	"kube-apiserver":          command(apiserver.NewAPIServerCommand),
	"kube-controller-manager": command(controllermanager.NewControllerManagerCommand),
	"kube-proxy":              command(proxy.NewProxyCommand),
	"kube-scheduler":          command(func() *cobra.Command { return scheduler.NewSchedulerCommand() }),
	"kubectl":                 command(kubectl.NewDefaultKubectlCommand),
	"kubelet":                 kubeletCommand,
}

func main() {
	// A symlink named after a program runs that program: `kubectl` on PATH is one.
	name, args := filepath.Base(os.Args[0]), os.Args[1:]
	if programs[name] == nil && len(args) > 0 {
		name, args = args[0], args[1:]
	}
	program := programs[name]
	if program == nil {
		fmt.Fprintf(os.Stderr, "usage: croft-kube PROGRAM [FLAG…], where PROGRAM is one of %s\n", strings.Join(names(), ", "))
		os.Exit(2)
	}
	// Every program looks at os.Args for itself, so it must see itself as its own binary.
	os.Args = append([]string{name}, args...)
	os.Exit(program(args))
}

func command(build func() *cobra.Command) func([]string) int {
	return func([]string) int { return cli.Run(build()) }
}

func etcd(args []string) int {
	etcdmain.Main(append([]string{"etcd"}, args...))
	return 0
}

func names() []string {
	all := make([]string, 0, len(programs))
	for name := range programs {
		all = append(all, name)
	}
	sort.Strings(all)
	return all
}
