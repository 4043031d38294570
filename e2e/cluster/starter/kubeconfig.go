package main

import (
	"encoding/base64"
	"fmt"
	"os"
)

// kubeconfig writes how the named user reaches the API server, with the
// credentials inside, so that the file can be carried about. It gives the path.
func (d Dir) kubeconfig(user string, p Ports) (string, error) {
	inside := func(path string) string {
		text, _ := os.ReadFile(path) // makeCertificates wrote it.
		return base64.StdEncoding.EncodeToString(text)
	}
	path := d.at("pki", user+".kubeconfig")
	if user == "admin" {
		path = d.at("kubeconfig")
	}
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- name: croft
  cluster:
    server: https://127.0.0.1:%d
    certificate-authority-data: %s
users:
- name: %s
  user:
    client-certificate-data: %s
    client-key-data: %s
contexts:
- name: croft
  context: {cluster: croft, user: %s}
current-context: croft
`, p.APIServer, inside(d.certificate("ca")), user, inside(d.certificate(user)), inside(d.key(user)), user)
	return path, writeFile(path, []byte(text), 0o600)
}
