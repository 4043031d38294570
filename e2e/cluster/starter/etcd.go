package main

import "fmt"

// etcd stores what the API server knows. It does not wait for the disk: the
// cluster lives as long as the run does, and a lost write after a power cut
// would be a lost test.
func (d Dir) etcd(kube string, p Ports) Process {
	client, peer := fmt.Sprintf("http://127.0.0.1:%d", p.EtcdClient), fmt.Sprintf("http://127.0.0.1:%d", p.EtcdPeer)
	return Process{
		Name: "etcd",
		Args: []string{kube, "etcd",
			"--name=croft", "--data-dir=" + d.at("etcd"),
			"--listen-client-urls=" + client, "--advertise-client-urls=" + client,
			"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer, "--initial-cluster=croft=" + peer,
			"--unsafe-no-fsync", "--auto-compaction-retention=10m", "--quota-backend-bytes=4294967296", "--log-level=warn",
			// The API server's streaming lists want to know how far a watch has come.
			"--watch-progress-notify-interval=5s",
		},
		Ready:  healthy(client + "/health"),
		Within: patience,
		Stop:   9, // Nothing is kept, so there is nothing to say goodbye to.
	}
}
