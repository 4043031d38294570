// Command cilium-cni is what containerd calls to connect a pod.
package main

import (
	"runtime"

	"github.com/cilium/cilium/plugins/cilium-cni/cmd"
)

func init() {
	// Network namespaces belong to threads: the one that enters a pod's must stay in it.
	runtime.LockOSThread()
}

func main() {
	cmd.PluginMain()
}
