package main

import "fmt"

// quickRates let the controllers keep up with tests that make many objects at
// once. Kubernetes ships 20 requests a second for each, 30 at a time.
var quickRates = []string{"--kube-api-qps=200", "--kube-api-burst=400"}

// controllerManager runs what makes objects act: garbage collection,
// namespaces that end, deployments, endpoints, tokens.
func (d Dir) controllerManager(kube string, p Ports, forNode bool, rates []string) (Process, error) {
	config, err := d.kubeconfig("kube-controller-manager", p)
	if err != nil {
		return Process{}, err
	}
	args := []string{kube, "kube-controller-manager",
		"--kubeconfig=" + config, "--authentication-kubeconfig=" + config, "--authorization-kubeconfig=" + config,
		"--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", p.ControllerManager),
		"--tls-cert-file=" + d.certificate("kube-controller-manager"), "--tls-private-key-file=" + d.key("kube-controller-manager"),
		// There is one of it; an election would only delay the start.
		"--leader-elect=false",
		"--use-service-account-credentials=true",
		"--root-ca-file=" + d.certificate("ca"), "--service-account-private-key-file=" + d.key("service-accounts"),
		"--cluster-signing-cert-file=" + d.certificate("ca"), "--cluster-signing-key-file=" + d.key("ca"),
		"--service-cluster-ip-range=" + serviceCIDR,
		"--profiling=false",
	}
	args = append(args, rates...)
	if forNode {
		args = append(args, "--allocate-node-cidrs=true", "--cluster-cidr="+podCIDR, "--node-cidr-mask-size=24")
	}
	return Process{
		Name:   "kube-controller-manager",
		Args:   args,
		Files:  []string{config},
		Ready:  healthy(fmt.Sprintf("https://127.0.0.1:%d/healthz", p.ControllerManager)),
		Within: patience,
	}, nil
}

// scheduler gives pods their node.
func (d Dir) scheduler(kube string, p Ports) (Process, error) {
	config, err := d.kubeconfig("kube-scheduler", p)
	if err != nil {
		return Process{}, err
	}
	return Process{
		Name: "kube-scheduler",
		Args: []string{kube, "kube-scheduler",
			"--kubeconfig=" + config, "--authentication-kubeconfig=" + config, "--authorization-kubeconfig=" + config,
			"--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", p.Scheduler),
			"--tls-cert-file=" + d.certificate("kube-scheduler"), "--tls-private-key-file=" + d.key("kube-scheduler"),
			"--leader-elect=false", "--profiling=false",
		},
		Files:  []string{config},
		Ready:  healthy(fmt.Sprintf("https://127.0.0.1:%d/healthz", p.Scheduler)),
		Within: patience,
	}, nil
}
