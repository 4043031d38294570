package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"
)

func sample() image {
	return image{name: "croft/sample:dev", entry: "/usr/local/bin/sample", files: map[string]file{
		"usr/local/bin/sample": {[]byte("program"), 0o755},
		"etc/passwd":           {[]byte("nobody"), 0o644},
	}}
}

func contents(t *testing.T, archive []byte) (names []string, parts map[string][]byte) {
	t.Helper()
	parts = map[string][]byte{}
	reader := tar.NewReader(bytes.NewReader(archive))
	for {
		header, err := reader.Next()
		if err == io.EOF {
			return names, parts
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, header.Name)
		parts[header.Name], _ = io.ReadAll(reader)
	}
}

func TestEqualFilesGiveEqualImages(t *testing.T) {
	one, two := &bytes.Buffer{}, &bytes.Buffer{}
	first, err := sample().write(one)
	equal(t, err, nil)
	second, err := sample().write(two)
	equal(t, err, nil)
	equal(t, first, second)
	equal(t, bytes.Equal(one.Bytes(), two.Bytes()), true)
	other := sample()
	other.files["etc/passwd"] = file{[]byte("somebody"), 0o644}
	third, err := other.write(&bytes.Buffer{})
	equal(t, err, nil)
	equal(t, third != first, true)
}

func TestALayerHoldsEveryFolderBeforeItsFiles(t *testing.T) {
	layer, err := sample().layer()
	equal(t, err, nil)
	names, _ := contents(t, layer)
	equal(t, names, []string{"etc/", "tmp/", "usr/", "usr/local/", "usr/local/bin/", "etc/passwd", "usr/local/bin/sample"})
}

func TestAnImageRunsAsNobodyAndCarriesBothTags(t *testing.T) {
	archive := &bytes.Buffer{}
	id, err := sample().write(archive)
	equal(t, err, nil)
	_, parts := contents(t, archive.Bytes())
	short := strings.TrimPrefix(id, "sha256:")
	var manifest []struct{ RepoTags []string }
	equal(t, json.Unmarshal(parts["manifest.json"], &manifest), nil)
	equal(t, manifest[0].RepoTags, []string{"croft/sample:dev", "croft/sample:" + short[:12]})
	var config struct {
		Config struct {
			User       string
			Entrypoint []string
		} `json:"config"`
	}
	equal(t, json.Unmarshal(parts[short+".json"], &config), nil)
	equal(t, config.Config.User, "65532:65532")
	equal(t, config.Config.Entrypoint, []string{"/usr/local/bin/sample"})
}
