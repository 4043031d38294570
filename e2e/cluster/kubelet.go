package main

import (
	"context"

	"k8s.io/component-base/cli"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// kubeletCommand stands apart because the kubelet alone wants a context.
func kubeletCommand([]string) int {
	return cli.Run(kubelet.NewKubeletCommand(context.Background()))
}
