package main

import "time"

// controlPlaneAlone brings up an API server that stores, validates, admits
// and collects garbage, and runs no pod. It is what most tests need, and any
// number of them can stand on one machine.
func (d Dir) controlPlaneAlone(rates []string) error {
	if d.ownsNode() && d.running("kubelet") {
		say("the node in %s is up, and its control plane with it", d.Path)
		return nil
	}
	binaries, err := build("kube")
	if err != nil {
		return err
	}
	if err := d.link("kube"); err != nil {
		return err
	}
	already := d.running("kube-apiserver") && d.running("kube-controller-manager")
	if err := d.controlPlane(binaries.at("croft-kube"), false, rates); err != nil {
		return err
	}
	if !already {
		say("the control plane is up, its kubeconfig is %s", d.at("kubeconfig"))
	}
	return d.writeEnv()
}

// controlPlane starts etcd, the API server and the controller manager.
func (d Dir) controlPlane(kube string, forNode bool, rates []string) error {
	ports, err := d.ports()
	if err != nil {
		return err
	}
	if err := d.makeCertificates(); err != nil {
		return err
	}
	if _, err := d.kubeconfig("admin", ports); err != nil {
		return err
	}
	apiserver, err := d.apiserver(kube, ports, forNode)
	if err != nil {
		return err
	}
	controllers, err := d.controllerManager(kube, ports, forNode, rates)
	if err != nil {
		return err
	}
	etcd := d.etcd(kube, ports)
	return inTurn(
		func() error { return d.start(etcd) },
		// It looks for etcd by itself until it finds it, so its own start-up need not wait.
		func() error { return d.start(apiserver) },
		func() error { return d.await(etcd) },
		func() error { return d.await(apiserver) },
		func() error { return d.run(controllers) },
	)
}

// controlPlaneDown ends it and removes what it stored.
func (d Dir) controlPlaneDown() error {
	d.stopAll(3*time.Second, "kube-scheduler", "kube-controller-manager")
	d.stop("kube-apiserver", 5*time.Second)
	d.stop("etcd", 5*time.Second)
	return d.forget("etcd", "pki", "kubeconfig", "audit-policy.yaml", "audit.log", "audit-*.log")
}
