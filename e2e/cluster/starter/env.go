package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// writeEnv writes the file that people and scripts `source`: what is up and
// how to reach it. Lines that others want in it they put into a file of their
// own in env.d, and run `cluster.sh env`: this file is replaced at every start.
func (d Dir) writeEnv() error {
	ports, err := d.ports()
	if err != nil {
		return err
	}
	text := &strings.Builder{}
	set := func(name, value string) { fmt.Fprintf(text, "export %s=%s\n", name, quote(value)) }
	set("CROFT_CLUSTER_DIR", d.Path)
	if d.running("kube-apiserver") {
		set("KUBECONFIG", d.at("kubeconfig"))
		set("CROFT_KUBE_AUDIT_LOG", d.at("audit.log"))
	}
	// ${PATH} is the reader's, so this one value is not quoted whole.
	fmt.Fprintf(text, "export PATH=%s\"${PATH:+:$PATH}\"\n", quote(d.at("bin")))
	if d.running("postgres") && d.running("redis") {
		secrets, err := d.secrets()
		if err != nil {
			return err
		}
		postgres := func(user, password, host string) string {
			return fmt.Sprintf("postgres://%s:%s@%s:%d/%s", user, password, host, ports.Postgres, postgresDatabase)
		}
		redis := func(host string) string { return fmt.Sprintf("redis://:%s@%s:%d/0", secrets.Redis, host, ports.Redis) }
		set("CROFT_POSTGRES_URL", postgres(postgresAdmin, secrets.PostgresAdmin, "127.0.0.1"))
		set("CROFT_POSTGRES_FRONT_URL", postgres(postgresFront, secrets.PostgresFront, "127.0.0.1"))
		set("CROFT_REDIS_URL", redis("127.0.0.1"))
		if d.ownsNode() {
			set("CROFT_POSTGRES_ADMIN_URL_IN_CLUSTER", postgres(postgresAdmin, secrets.PostgresAdmin, nodeAddress))
			set("CROFT_POSTGRES_FRONT_URL_IN_CLUSTER", postgres(postgresFront, secrets.PostgresFront, nodeAddress))
			set("CROFT_REDIS_URL_IN_CLUSTER", redis(nodeAddress))
		}
	}
	if d.ownsNode() {
		set("CROFT_NODE_ADDRESS", nodeAddress)
		set("CROFT_NODE_CIDR", nodeCIDR)
		set("CROFT_POD_CIDR", podCIDR)
		set("CROFT_SERVICE_CIDR", serviceCIDR)
		set("CROFT_DNS_ADDRESS", dnsAddress)
		set("CROFT_API_PORT", fmt.Sprint(ports.APIServer))
		set("CROFT_CONTAINERD_ADDRESS", d.containerdSocket())
		self, err := os.Executable()
		if err != nil {
			return err
		}
		set("CROFT_PROBE", filepath.Join(filepath.Dir(self), "probe"))
		if d.running("cilium-agent") {
			set("CROFT_CILIUM_METRICS", fmt.Sprintf("http://127.0.0.1:%d/metrics", ports.CiliumMetrics))
		}
	}
	more, _ := filepath.Glob(d.at("env.d", "*.env"))
	for _, path := range more {
		lines, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		text.Write(lines)
		if len(lines) > 0 && lines[len(lines)-1] != '\n' {
			text.WriteByte('\n')
		}
	}
	// Passwords are in it.
	return writeFile(d.at("env"), []byte(text.String()), 0o600)
}

// quote makes a value safe in any POSIX shell.
func quote(value string) string {
	return "'" + strings.ReplaceAll(value, "'", `'\''`) + "'"
}
