package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const (
	pauseImage = "croft/pause:dev"
	dnsImage   = "croft/coredns:dev"
)

// loadImages makes an image of each NAME=BINARY and gives it to the node as
// croft/NAME:dev. For each it prints the name, a tag that follows the content,
// and whether anything changed.
func (d Dir) loadImages(words []string) error {
	if len(words) == 0 {
		return fmt.Errorf("images load wants NAME=BINARY at least once")
	}
	if !d.running("containerd") {
		return fmt.Errorf("no node is up in %s to load images into; `cluster.sh up` brings it up", d.Path)
	}
	for _, word := range words {
		name, binary, err := nameAndBinary(word)
		if err != nil {
			return err
		}
		tag, changed, err := d.loadImage(name, binary)
		if err != nil {
			return err
		}
		state := "unchanged"
		if changed {
			state = "changed"
		}
		fmt.Printf("croft/%s:dev\tcroft/%s:%s\t%s\n", name, name, tag, state)
	}
	return nil
}

// saveImages makes an image of each NAME=BINARY and writes it to FOLDER/NAME.tar,
// called REPOSITORY/NAME:TAG. For each it prints the file and the name.
func saveImages(folder, repository, tag string, words []string) error {
	if len(words) == 0 {
		return fmt.Errorf("images save wants NAME=BINARY at least once")
	}
	for _, word := range words {
		name, binary, err := nameAndBinary(word)
		if err != nil {
			return err
		}
		packed, err := programImage(repository+"/"+name+":"+tag, binary)
		if err != nil {
			return fmt.Errorf("cannot make an image of %s: %w", binary, err)
		}
		archive := &bytes.Buffer{}
		if _, err := packed.write(archive); err != nil {
			return err
		}
		path := filepath.Join(folder, name+".tar")
		if err := writeFile(path, archive.Bytes(), 0o644); err != nil {
			return err
		}
		fmt.Printf("%s\t%s\n", path, packed.name)
	}
	return nil
}

func nameAndBinary(word string) (name, binary string, err error) {
	name, binary, ok := strings.Cut(word, "=")
	if !ok || name == "" || binary == "" {
		return "", "", fmt.Errorf("%q is not NAME=BINARY", word)
	}
	return name, binary, nil
}

// loadImage does nothing if the same binary was loaded before. It gives the
// tag that follows the content, and whether the node got something new.
func (d Dir) loadImage(name, binary string) (tag string, changed bool, err error) {
	key, err := fileKey(binary)
	if err != nil {
		return "", false, err
	}
	note := d.at("images", name)
	if text, err := os.ReadFile(note); err == nil {
		if old, tag, ok := strings.Cut(strings.TrimSpace(string(text)), " "); ok && old == key && d.hasImage("croft/"+name+":"+tag) {
			return tag, false, nil
		}
	}
	packed, err := programImage("croft/"+name+":dev", binary)
	if err != nil {
		return "", false, fmt.Errorf("cannot make an image of %s: %w", binary, err)
	}
	archive := &bytes.Buffer{}
	id, err := packed.write(archive)
	if err != nil {
		return "", false, err
	}
	tag = strings.TrimPrefix(id, "sha256:")[:12]
	if err := d.importImage(archive); err != nil {
		return "", false, fmt.Errorf("cannot give croft/%s to containerd: %w", name, err)
	}
	return tag, true, writeFile(note, []byte(key+" "+tag+"\n"), 0o644)
}

func (d Dir) importImage(archive *bytes.Buffer) error {
	command := exec.Command("ctr", "--address", d.containerdSocket(), "--namespace", "k8s.io", "images", "import", "-")
	command.Stdin = archive
	if text, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(text)))
	}
	return nil
}

// hasImage says whether the node has the image.
func (d Dir) hasImage(name string) bool {
	text, err := d.ctr("images", "ls", "-q", "name==docker.io/"+name)
	return err == nil && strings.TrimSpace(text) != ""
}

// fileKey changes whenever the program does.
func fileKey(binary string) (string, error) {
	text, err := os.ReadFile(binary)
	return digest(text), err
}

// loadSystemImages gives the node what it needs for itself: the pause
// container, DNS, and the probe that tests of the network use.
func (d Dir) loadSystemImages(dns built) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	beside := built(filepath.Dir(self))
	for name, binary := range map[string]string{"pause": beside.at("pause"), "coredns": dns.at("coredns"), "probe": beside.at("probe")} {
		if _, _, err := d.loadImage(name, binary); err != nil {
			return err
		}
	}
	return nil
}
