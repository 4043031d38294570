package main

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Folders that the node's components make outside the run's own, whatever
// they are told: the kubelet a socket and links to logs, Cilium sockets, the
// CNI library a note a pod, containerd a socket a pod.
var publicPlaces = []string{"/run/cilium", "/run/containerd", "/var/lib/cni", "/var/lib/kubelet", "/var/log/containers"}

// rememberPlaces notes which of them the machine did not have. What is noted already stays.
func (d Dir) rememberPlaces() error {
	note := d.short("places.json")
	if _, err := os.Stat(note); err == nil {
		return nil
	}
	absent := []string{}
	for _, path := range publicPlaces {
		if _, err := os.Lstat(path); os.IsNotExist(err) {
			absent = append(absent, path)
		}
	}
	text, err := json.Marshal(absent)
	if err != nil {
		return err
	}
	return writeFile(note, text, 0o644)
}

// restorePlaces removes what is certainly the run's, and then the folders that
// the machine did not have, as far as nobody else uses them by now.
func (d Dir) restorePlaces() {
	sockets, _ := filepath.Glob("/run/containerd/s/*")
	for _, socket := range sockets {
		// One per pod, and the run's have lost their owners.
		if connection, err := net.DialTimeout("unix", socket, time.Second); err == nil {
			_ = connection.Close()
		} else {
			_ = os.Remove(socket)
		}
	}
	notes, _ := filepath.Glob("/var/lib/cni/results/*")
	for _, note := range notes {
		if text, err := os.ReadFile(note); err == nil && ofOurNetworks(text) {
			_ = os.Remove(note)
		}
	}
	links, _ := filepath.Glob("/var/log/containers/*.log")
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && inside(target, d.at("pod-logs")) {
			_ = os.Remove(link)
		}
	}
	var absent []string
	text, err := os.ReadFile(d.short("places.json"))
	if err != nil || json.Unmarshal(text, &absent) != nil {
		return
	}
	for _, place := range absent {
		switch place {
		case "/run/cilium", "/var/lib/kubelet":
			_ = os.RemoveAll(place) // Only one node a machine, and it was ours.
		default:
			removeEmpty(place)
		}
	}
}

// ofOurNetworks reads a note of the CNI library: which network did it connect?
func ofOurNetworks(text []byte) bool {
	var note struct {
		NetworkName string `json:"networkName"`
	}
	return json.Unmarshal(text, &note) == nil && (note.NetworkName == "croft" || note.NetworkName == "cni-loopback")
}

// removeEmpty removes a folder and those below it, as far as there is no file in them.
func removeEmpty(folder string) {
	entries, _ := os.ReadDir(folder)
	for _, entry := range entries {
		if entry.IsDir() {
			removeEmpty(filepath.Join(folder, entry.Name()))
		}
	}
	_ = os.Remove(folder)
}

// inside says whether path lies at or below folder.
func inside(path, folder string) bool {
	relative, err := filepath.Rel(folder, path)
	return err == nil && filepath.IsLocal(relative)
}
