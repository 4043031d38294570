package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"time"
)

// certificate says what one certificate of the cluster is for. The API server
// reads the user from the common name and the groups from the organizations.
type certificate struct {
	file   string
	user   string
	groups []string
	hosts  []string // for a server: the names and addresses it answers to
}

var certificates = []certificate{
	{file: "admin", user: "croft-cluster-admin", groups: []string{"system:masters"}},
	{file: "apiserver", user: "kube-apiserver", hosts: []string{
		"127.0.0.1", "localhost", nodeAddress, apiAddress, "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
	}},
	{file: "apiserver-to-kubelet", user: "kube-apiserver-kubelet-client", groups: []string{"system:masters"}},
	{file: "kube-controller-manager", user: "system:kube-controller-manager", hosts: []string{"127.0.0.1"}},
	{file: "kube-scheduler", user: "system:kube-scheduler", hosts: []string{"127.0.0.1"}},
	{file: "kube-proxy", user: "system:kube-proxy"},
	{file: "kubelet", user: "system:node:" + nodeName, groups: []string{"system:nodes"}, hosts: []string{nodeAddress, nodeName, "127.0.0.1"}},
	{file: "cilium", user: "system:cilium", groups: []string{"system:masters"}},
}

func (d Dir) certificate(name string) string { return d.at("pki", name+".crt") }
func (d Dir) key(name string) string         { return d.at("pki", name+".key") }

// makeCertificates makes the authority and all it signs, unless they are there.
// They live as long as the run does; nobody renews them.
func (d Dir) makeCertificates() error {
	done := d.at("pki", "done")
	if _, err := os.Stat(done); err == nil {
		return nil
	}
	authorityKey, err := d.makeKey("ca")
	if err != nil {
		return err
	}
	authority := template(certificate{user: "croft-cluster"})
	authority.IsCA, authority.BasicConstraintsValid = true, true
	authority.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	authority.ExtKeyUsage = nil // A use named here would bind all it signs.
	if err := d.sign("ca", authority, authority, authorityKey, authorityKey); err != nil {
		return err
	}
	if err := d.makeServiceAccountKey(); err != nil {
		return err
	}
	for _, one := range certificates {
		key, err := d.makeKey(one.file)
		if err != nil {
			return err
		}
		if err := d.sign(one.file, template(one), authority, key, authorityKey); err != nil {
			return err
		}
	}
	return writeFile(done, nil, 0o644)
}

// makeServiceAccountKey makes what tokens are signed with. It is RSA, as on
// nearly every real cluster: who checks tokens must cope with RS256.
func (d Dir) makeServiceAccountKey() error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	if err := writePEM(d.key("service-accounts"), "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key), 0o600); err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	return writePEM(d.at("pki", "service-accounts.pub"), "PUBLIC KEY", public, 0o644)
}

func template(one certificate) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	made := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: one.user, Organization: one.groups},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().AddDate(1, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, host := range one.hosts {
		made.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
		if address := net.ParseIP(host); address != nil {
			made.IPAddresses = append(made.IPAddresses, address)
		} else {
			made.DNSNames = append(made.DNSNames, host)
		}
	}
	return made
}

func (d Dir) makeKey(name string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	text, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, writePEM(d.key(name), "EC PRIVATE KEY", text, 0o600)
}

func (d Dir) sign(name string, made, authority *x509.Certificate, key, authorityKey *ecdsa.PrivateKey) error {
	text, err := x509.CreateCertificate(rand.Reader, made, authority, key.Public(), authorityKey)
	if err != nil {
		return fmt.Errorf("cannot sign the certificate %s: %w", name, err)
	}
	return writePEM(d.certificate(name), "CERTIFICATE", text, 0o644)
}

func writePEM(path, kind string, text []byte, mode os.FileMode) error {
	return writeFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: text}), mode)
}
