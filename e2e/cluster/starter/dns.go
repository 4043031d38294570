package main

import (
	"embed"
	"fmt"
	"path"
	"strings"
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

// dnsReady tells whether a DNS pod is among the Service's endpoints.
func (d Dir) dnsReady() error {
	api, err := d.api()
	if err != nil {
		return err
	}
	text, err := api.get("/apis/apps/v1/namespaces/kube-system/deployments/coredns")
	if err != nil {
		return err
	}
	if !strings.Contains(string(text), `"availableReplicas":1`) {
		return fmt.Errorf("CoreDNS has no pod that is ready; see `kubectl -n kube-system describe pod`")
	}
	return nil
}
