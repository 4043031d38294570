package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
)

// Ports are the run's own, chosen once and kept, so that a kubeconfig written
// yesterday still works today.
type Ports struct {
	Postgres, Redis                         int
	EtcdClient, EtcdPeer                    int
	APIServer, ControllerManager, Scheduler int
	Kubelet, KubeletHealth                  int
	ProxyHealth, ProxyMetrics               int
	CiliumHealth, CiliumMetrics             int
}

var choosing sync.Mutex

func (d Dir) ports() (Ports, error) {
	// Parts that start at the same time must not choose twice.
	choosing.Lock()
	defer choosing.Unlock()
	var p Ports
	path := d.at("ports.json")
	if text, err := os.ReadFile(path); err == nil {
		if err := json.Unmarshal(text, &p); err != nil {
			return p, fmt.Errorf("%s is damaged, delete it: %w", path, err)
		}
		return p, nil
	}
	taken := map[int]bool{}
	for _, port := range []*int{
		&p.Postgres, &p.Redis, &p.EtcdClient, &p.EtcdPeer, &p.APIServer, &p.ControllerManager, &p.Scheduler,
		&p.Kubelet, &p.KubeletHealth, &p.ProxyHealth, &p.ProxyMetrics, &p.CiliumHealth, &p.CiliumMetrics,
	} {
		free, err := freePort(taken)
		if err != nil {
			return p, err
		}
		*port = free
	}
	text, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return p, err
	}
	return p, writeFile(path, append(text, '\n'), 0o644)
}

// freePort picks below both the kernel's range for outgoing connections and
// Kubernetes' range for NodePorts, so that nobody takes the port by chance
// while the run is down.
func freePort(taken map[int]bool) (int, error) {
	for range 200 {
		port := 20000 + rand.IntN(9000)
		if taken[port] {
			continue
		}
		listener, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			continue
		}
		_ = listener.Close()
		taken[port] = true
		return port, nil
	}
	return 0, fmt.Errorf("no free port between 20000 and 29000 in 200 attempts")
}
