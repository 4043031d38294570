package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestASavedImageIsWhatTheChartRuns(t *testing.T) {
	folder := t.TempDir()
	program := filepath.Join(folder, "croft-front")
	self, err := os.Executable()
	equal(t, err, nil)
	equal(t, os.Symlink(self, program), nil)
	equal(t, saveImages(folder, "registry.example.com:5000/croft", "0.1.0", []string{"front=" + program}), nil)

	archive, err := os.ReadFile(filepath.Join(folder, "front.tar"))
	equal(t, err, nil)
	_, parts := contents(t, archive)
	var manifest []struct {
		Config   string
		RepoTags []string
	}
	equal(t, json.Unmarshal(parts["manifest.json"], &manifest), nil)
	equal(t, len(manifest), 1)
	content := strings.TrimSuffix(manifest[0].Config, ".json")[:12]
	equal(t, manifest[0].RepoTags, []string{"registry.example.com:5000/croft/front:0.1.0", "registry.example.com:5000/croft/front:" + content})
	var config struct {
		Config struct {
			User       string
			Entrypoint []string
			Env        []string
		} `json:"config"`
	}
	equal(t, json.Unmarshal(parts[manifest[0].Config], &config), nil)
	// Its arguments are the chart's, and people run it by its name: `kubectl exec … -- croft-front api-key create`.
	equal(t, config.Config.Entrypoint, []string{"/usr/local/bin/croft-front"})
	equal(t, strings.HasPrefix(config.Config.Env[0], "PATH=/usr/local/bin:"), true)
	chart, err := os.ReadFile("../../../charts/croft/templates/_helpers.tpl")
	equal(t, err, nil)
	user, group, _ := strings.Cut(config.Config.User, ":")
	equal(t, strings.Contains(string(chart), "\nrunAsUser: "+user+"\nrunAsGroup: "+group+"\n"), true)

	names, _ := contents(t, parts["layer.tar"])
	holds := map[string]bool{}
	for _, name := range names {
		holds[name] = true
	}
	equal(t, holds["usr/local/bin/croft-front"], true)
	equal(t, holds["tmp/"], true)
}

func TestNothingToSaveIsAMistake(t *testing.T) {
	for _, words := range [][]string{nil, {"front"}, {"=target/release/croft-front"}, {"front=/nowhere/croft-front"}} {
		equal(t, saveImages(t.TempDir(), "croft", "dev", words) != nil, true)
	}
}
