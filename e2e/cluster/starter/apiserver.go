package main

import (
	_ "embed"
	"fmt"
	"net"
)

// audit notes who did what to which object, without the bodies: enough to
// count the writes of a program by its user agent.
//
//go:embed manifests/audit.yaml
var auditPolicy []byte

// issuer is what service account tokens name as their maker.
const issuer = "https://kubernetes.default.svc.cluster.local"

// apiserver listens for this machine alone, or, with a node, for its pods too.
func (d Dir) apiserver(kube string, p Ports, forNode bool) (Process, error) {
	policy := d.at("audit-policy.yaml")
	if err := writeFile(policy, auditPolicy, 0o644); err != nil {
		return Process{}, err
	}
	args := []string{kube, "kube-apiserver",
		fmt.Sprintf("--etcd-servers=http://127.0.0.1:%d", p.EtcdClient),
		fmt.Sprintf("--secure-port=%d", p.APIServer),
		"--tls-cert-file=" + d.certificate("apiserver"), "--tls-private-key-file=" + d.key("apiserver"),
		"--client-ca-file=" + d.certificate("ca"),
		"--service-cluster-ip-range=" + serviceCIDR,
		"--service-account-issuer=" + issuer,
		// Croft's front takes tokens that were made out to it.
		"--api-audiences=" + issuer + ",croft",
		"--service-account-key-file=" + d.at("pki", "service-accounts.pub"),
		"--service-account-signing-key-file=" + d.key("service-accounts"),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
		"--kubelet-client-certificate=" + d.certificate("apiserver-to-kubelet"), "--kubelet-client-key=" + d.key("apiserver-to-kubelet"),
		"--kubelet-certificate-authority=" + d.certificate("ca"),
		// By address, for the node's name is in nobody's DNS.
		"--kubelet-preferred-address-types=InternalIP",
		"--audit-policy-file=" + policy, "--audit-log-path=" + d.at("audit.log"),
		// Written before the answer is sent, so that a test can count right after its call.
		"--audit-log-mode=blocking", "--audit-log-maxsize=200", "--audit-log-maxbackup=3",
		"--profiling=false", "--shutdown-delay-duration=0s", "--request-timeout=60s",
	}
	if forNode {
		args = append(args, "--bind-address=0.0.0.0", "--advertise-address="+nodeAddress)
	} else {
		// Nobody can reach it by the service's address, so no endpoint is made.
		args = append(args, "--bind-address=127.0.0.1", "--advertise-address="+anyAddress(), "--endpoint-reconciler-type=none")
	}
	return Process{
		Name:   "kube-apiserver",
		Args:   args,
		Files:  []string{policy, d.certificate("apiserver"), d.at("pki", "service-accounts.pub")},
		Ready:  d.apiReady,
		Within: patience,
	}, nil
}

func (d Dir) apiReady() error {
	api, err := d.api()
	if err != nil {
		return err
	}
	_, err = api.get("/readyz")
	return err
}

// anyAddress is one that is not loopback: the API server insists on having
// something to advertise, even where it advertises to nobody.
func anyAddress() string {
	addresses, _ := net.InterfaceAddrs()
	for _, address := range addresses {
		if network, ok := address.(*net.IPNet); ok && network.IP.IsGlobalUnicast() && network.IP.To4() != nil {
			return network.IP.String()
		}
	}
	return nodeAddress
}
