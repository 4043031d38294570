package main

import (
	"fmt"
	"os"
	"strings"
	"time"
)

// up brings up the whole system. On a machine where it is up it only looks.
func (d Dir) up(policy bool) error {
	groups, tools := []string{"services", "node"}, []string{"kube", "dns", "helm"}
	if policy {
		groups, tools = append(groups, "policy"), append(tools, "cilium")
	}
	if err := install(groups); err != nil {
		return err
	}
	binaries := map[string]built{}
	for _, name := range tools {
		folder, err := build(name)
		if err != nil {
			return err
		}
		if err := d.link(name); err != nil {
			return err
		}
		binaries[name] = folder
	}
	// A node of the other kind, or one of which a part has died, is not mended but made anew.
	if d.ownsNode() && (d.running("cilium-agent") != policy || !d.running("containerd") || !d.running("kubelet")) {
		if err := d.nodeDown(); err != nil {
			return err
		}
	}
	if err := d.takeNode(); err != nil {
		return err
	}
	if err := inTurn(d.rememberKernel, d.rememberRules, d.rememberPlaces, makeNetwork, d.makeCgroups, func() error { return d.makeCNI(binaries["cilium"]) }); err != nil {
		return err
	}
	if policy {
		if err := d.mountBPF(); err != nil {
			return err
		}
	}
	kube := binaries["kube"].at("croft-kube")
	if err := together(
		d.servicesUp,
		func() error { return d.controlPlane(kube, true, quickRates) },
		func() error { return d.containers(binaries["dns"]) },
	); err != nil {
		return err
	}
	say("services, control plane and containerd are up")
	if err := d.node(kube, binaries["cilium"]); err != nil {
		return err
	}
	if err := d.writeEnv(); err != nil {
		return err
	}
	say("the node is ready; `. %s` makes kubectl and helm use it", d.at("env"))
	return nil
}

// containers brings up containerd and gives it the images of the system.
func (d Dir) containers(dns built) error {
	containerd, err := d.containerd()
	if err != nil {
		return err
	}
	return inTurn(func() error { return d.run(containerd) }, func() error { return d.loadSystemImages(dns) })
}

// node starts what makes this machine a node, and waits until a pod could run and resolve names.
func (d Dir) node(kube string, cilium built) error {
	ports, err := d.ports()
	if err != nil {
		return err
	}
	kubelet, err := d.kubelet(kube, ports)
	if err != nil {
		return err
	}
	proxy, err := d.proxy(kube, ports)
	if err != nil {
		return err
	}
	scheduler, err := d.scheduler(kube, ports)
	if err != nil {
		return err
	}
	enforce := func() error { return nil }
	if cilium != "" {
		enforce = func() error {
			agent, err := d.cilium(cilium, ports)
			if err != nil {
				return err
			}
			if !d.running(agent.Name) {
				if err := d.applyCiliumKinds(cilium); err != nil {
					return err
				}
			}
			return d.run(agent)
		}
	}
	return inTurn(
		func() error {
			return together(
				func() error { return d.run(kubelet) },
				func() error { return d.run(proxy) },
				func() error { return d.run(scheduler) },
				func() error { return d.applyManifests("dns") },
				enforce,
			)
		},
		func() error { return d.expect("the node to be ready", "kubelet", patience, d.nodeReady) },
		func() error { return d.expect("DNS to answer", "kubelet", patience, dnsReady) },
	)
}

// expect waits for something that takes several components; log is the one to look at first.
func (d Dir) expect(what, log string, within time.Duration, ready func() error) error {
	deadline := time.Now().Add(within)
	for {
		err := ready()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("waited %s for %s (%w); the log to look at is %s and ends:\n%s", within, what, err, d.log(log), tail(d.log(log), 12))
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (d Dir) nodeReady() error {
	api, err := d.api()
	if err != nil {
		return err
	}
	text, err := api.get("/api/v1/nodes/" + nodeName)
	if err != nil {
		return err
	}
	if !strings.Contains(string(text), `"reason":"KubeletReady"`) {
		return fmt.Errorf("the kubelet doesn't say that it is ready")
	}
	// Nothing is scheduled as long as the node carries a taint.
	if strings.Contains(string(text), `"key":"node.kubernetes.io/not-ready"`) {
		return fmt.Errorf("the node is still marked as not ready")
	}
	return nil
}

// rememberRules notes the routing rules, which Cilium reorders.
func (d Dir) rememberRules() error {
	if _, err := os.Stat(d.short("rules")); err == nil {
		return nil
	}
	text, err := output("ip", "-4", "rule", "show")
	if err != nil {
		return err
	}
	return writeFile(d.short("rules"), []byte(text), 0o644)
}
