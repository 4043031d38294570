package main

import (
	"context"
	"embed"
	"fmt"
	"net"
	"path"
	"strings"
	"time"
)

// Each of these files is one object; its first line says where in the API it lies.
//
//go:embed manifests/dns/*.yaml
var manifests embed.FS

// applyManifests applies a folder of objects, in the order of their names.
func (d Dir) applyManifests(folder string) error {
	api, err := d.api()
	if err != nil {
		return err
	}
	files, err := manifests.ReadDir(path.Join("manifests", folder))
	if err != nil {
		return err
	}
	values := strings.NewReplacer("${DNS_IMAGE}", dnsImage, "${DNS_ADDRESS}", dnsAddress, "${FORWARD}", forward(resolvers()))
	for _, file := range files {
		text, err := manifests.ReadFile(path.Join("manifests", folder, file.Name()))
		if err != nil {
			return err
		}
		first, _, _ := strings.Cut(string(text), "\n")
		if err := api.apply(strings.TrimPrefix(first, "# "), []byte(values.Replace(string(text)))); err != nil {
			return fmt.Errorf("cannot apply %s: %w", file.Name(), err)
		}
	}
	return nil
}

// forward is the line that sends names outside the cluster on, if there is
// anyone to send them to.
func forward(resolvers string) string {
	if resolvers == "" {
		return ""
	}
	return "forward . /etc/resolv.conf"
}

// dnsReady asks the Service for a name. It doesn't ask the API server whether
// the pod is ready: after a restart of the node that answer may be yesterday's.
func dnsReady() error {
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "udp", net.JoinHostPort(dnsAddress, "53"))
	}}
	bounded, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	addresses, err := resolver.LookupHost(bounded, "kubernetes.default.svc.cluster.local.")
	if err != nil {
		return fmt.Errorf("%w; `kubectl -n kube-system describe pod` tells more", err)
	}
	if len(addresses) != 1 || addresses[0] != apiAddress {
		return fmt.Errorf("it thinks the API server is at %v", addresses)
	}
	return nil
}
