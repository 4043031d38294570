package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"
)

// api is the little of the Kubernetes API that bringing a cluster up takes:
// look at something, apply something. It saves starting kubectl, which takes
// longer than most of the calls do.
type api struct {
	address string
	client  *http.Client
}

var (
	apis     = map[string]*api{}
	apisOnce sync.Mutex
)

// api gives the client of this run; its connections are shared.
func (d Dir) api() (*api, error) {
	apisOnce.Lock()
	defer apisOnce.Unlock()
	if known := apis[d.Path]; known != nil {
		return known, nil
	}
	ports, err := d.ports()
	if err != nil {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(d.certificate("admin"), d.key("admin"))
	if err != nil {
		return nil, err
	}
	authority, err := os.ReadFile(d.certificate("ca"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority)
	made := &api{
		address: fmt.Sprintf("https://127.0.0.1:%d", ports.APIServer),
		client: &http.Client{
			Timeout:   10 * time.Second,
			Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}},
		},
	}
	apis[d.Path] = made
	return made, nil
}

// get reads what lies at path.
func (a *api) get(path string) ([]byte, error) { return a.call(http.MethodGet, path, "", nil) }

// apply makes the object at path be as the YAML says (server-side apply).
func (a *api) apply(path string, yaml []byte) error {
	_, err := a.call(http.MethodPatch, path+"?fieldManager=croft-cluster&force=true", "application/apply-patch+yaml", yaml)
	return err
}

func (a *api) call(method, path, kind string, body []byte) ([]byte, error) {
	request, err := http.NewRequest(method, a.address+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", "application/json")
	request.Header.Set("User-Agent", "croft-cluster")
	if kind != "" {
		request.Header.Set("Content-Type", kind)
	}
	response, err := a.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode >= 300 {
		err = fmt.Errorf("%s %s: %s: %s", method, path, response.Status, text[:min(len(text), 300)])
	}
	return text, err
}

// healthy is readiness by an HTTP endpoint that needs no credentials.
func healthy(url string, header ...string) func() error {
	client := &http.Client{
		Timeout: 2 * time.Second,
		// Only ever asked on 127.0.0.1, of a process we started.
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true},
	}
	return func() error {
		request, err := http.NewRequest(http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		if len(header) == 2 {
			request.Header.Set(header[0], header[1])
		}
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if text, _ := io.ReadAll(response.Body); response.StatusCode != http.StatusOK {
			return fmt.Errorf("%s answers %s: %s", url, response.Status, text[:min(len(text), 200)])
		}
		return nil
	}
}
