package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"path"
	"runtime"
	"sort"
	"strings"
)

// image is a container image made from nothing: one program, and beside it
// only what it takes to run it. No tool builds it and no registry holds it: an
// image is a tar of a tar and a little JSON, and writing that takes less time
// than starting a builder.
type image struct {
	name  string // "croft/front:dev", with a tag
	entry string // the program's path inside
	args  []string
	files map[string]file // by path inside, without the leading slash
}

type file struct {
	content []byte
	mode    fs.FileMode
}

// nonroot is the user that the programs run as, the number that others use for it too.
const nonroot = 65532

// layer writes the files as a tar. Equal files give equal bytes: no times, no
// owners, names in order. That is what lets an unchanged image be recognized.
func (i image) layer() ([]byte, error) {
	text := &bytes.Buffer{}
	archive := tar.NewWriter(text)
	for _, folder := range i.folders() {
		mode := int64(0o755)
		if folder == "tmp" {
			mode = 0o1777
		}
		if err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: folder + "/", Mode: mode}); err != nil {
			return nil, err
		}
	}
	for _, name := range sortedKeys(i.files) {
		one := i.files[name]
		if err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: int64(one.mode.Perm()), Size: int64(len(one.content))}); err != nil {
			return nil, err
		}
		if _, err := archive.Write(one.content); err != nil {
			return nil, err
		}
	}
	return text.Bytes(), archive.Close()
}

// folders gives every folder above a file, and /tmp, outermost first.
func (i image) folders() []string {
	seen := map[string]bool{"tmp": true}
	for name := range i.files {
		for folder := path.Dir(name); folder != "."; folder = path.Dir(folder) {
			seen[folder] = true
		}
	}
	return sortedKeys(seen)
}

// write puts the image out as a "docker archive", with a tag that follows the
// content beside the given one. It gives the content's digest.
func (i image) write(to io.Writer) (string, error) {
	layer, err := i.layer()
	if err != nil {
		return "", err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, // A program of this machine.
		"os":           "linux",
		"config": map[string]any{
			"User":       fmt.Sprintf("%d:%d", nonroot, nonroot),
			"Entrypoint": append([]string{i.entry}, i.args...),
			"WorkingDir": "/",
			"Env":        []string{"PATH=/usr/local/bin:/usr/bin:/bin", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"},
		},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{digest(layer)}},
	})
	if err != nil {
		return "", err
	}
	id := digest(config)
	short := strings.TrimPrefix(id, "sha256:")
	base := i.name[:strings.LastIndex(i.name, ":")] // The last, as a registry may have a port.
	manifest, err := json.Marshal([]map[string]any{{
		"Config":   short + ".json",
		"RepoTags": []string{i.name, base + ":" + short[:12]},
		"Layers":   []string{"layer.tar"},
	}})
	if err != nil {
		return "", err
	}
	archive := tar.NewWriter(to)
	for _, part := range []struct {
		name    string
		content []byte
	}{{"layer.tar", layer}, {short + ".json", config}, {"manifest.json", manifest}} {
		if err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: part.name, Mode: 0o644, Size: int64(len(part.content))}); err != nil {
			return "", err
		}
		if _, err := archive.Write(part.content); err != nil {
			return "", err
		}
	}
	return id, archive.Close()
}

func digest(text []byte) string {
	sum := sha256.Sum256(text)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func sortedKeys[V any](all map[string]V) []string {
	keys := make([]string, 0, len(all))
	for key := range all {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	return keys
}
