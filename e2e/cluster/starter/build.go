package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"
)

// cache is where built tools lie: outside the work tree, so that a clean
// checkout on the same machine doesn't build Kubernetes anew.
func cache() string {
	if folder := os.Getenv("CROFT_CACHE"); folder != "" {
		return folder
	}
	home, err := os.UserHomeDir()
	if err != nil {
		home = os.TempDir()
	}
	return filepath.Join(home, ".cache", "croft")
}

// folder names where the tool is or will be. The name changes with the
// module's sources and with how they are built.
func (t tool) folder() (built, error) {
	module := filepath.Join(source(), t.module)
	sum := sha256.New()
	fmt.Fprintf(sum, "%q %q %q\n", t.packages, t.ldflags, t.copies)
	files, err := moduleFiles(module)
	if err != nil {
		return "", err
	}
	for _, path := range files {
		text, err := os.ReadFile(filepath.Join(module, path))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(sum, "%s %d\n%s", path, len(text), text)
	}
	name := t.module
	if name == "." {
		name = "kube"
	}
	return built(filepath.Join(cache(), name+"-"+hex.EncodeToString(sum.Sum(nil))[:16])), nil
}

// moduleFiles lists what a module is made of: its go.mod, go.sum and sources,
// but not those of the modules in folders below it, nor tests.
func moduleFiles(module string) ([]string, error) {
	var files []string
	err := filepath.WalkDir(module, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil && path != module {
				return filepath.SkipDir
			}
			return nil
		}
		name := entry.Name()
		if name == "go.mod" || name == "go.sum" || (strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go")) {
			relative, err := filepath.Rel(module, path)
			files = append(files, relative)
			return err
		}
		return nil
	})
	sort.Strings(files)
	return files, err
}

// build gives the folder with the tool in it, and builds it first if need be.
// A build that is interrupted leaves nothing that could be taken for a result:
// it works in a folder of its own that gets its name at the end.
func build(name string) (built, error) {
	t, known := toolbox[name]
	if !known {
		return "", fmt.Errorf("no tool is called %q; there are %s", name, toolNames())
	}
	result, err := t.folder()
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(string(result)); err == nil {
		return result, nil
	}
	if err := os.MkdirAll(cache(), 0o755); err != nil {
		return "", err
	}
	unlock, err := lockBuild(name)
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(string(result)); err == nil {
		return result, nil // Another one built it while we waited.
	}
	if _, err := exec.LookPath("go"); err != nil {
		return "", fmt.Errorf("%s must be built and there is no Go on PATH", t.what)
	}
	unfinished := filepath.Join(cache(), ".building-"+name)
	if err := os.RemoveAll(unfinished); err != nil {
		return "", err
	}
	if err := os.MkdirAll(unfinished, 0o755); err != nil {
		return "", err
	}
	start := time.Now()
	say("building %s; the first time takes %s on two idle cores", t.what, t.cold)
	if err := t.download(downloadPauses); err != nil {
		return "", err
	}
	if err := t.compile(unfinished, start); err != nil {
		return "", err
	}
	if err := t.copyAlong(unfinished); err != nil {
		return "", err
	}
	if err := os.Rename(unfinished, string(result)); err != nil {
		return "", err
	}
	say("built %s in %s", t.what, time.Since(start).Round(time.Second))
	return result, nil
}

// downloadPauses lie between the tries to fetch a tool's modules: a proxy that
// is out of order for a moment is no reason to build nothing.
var downloadPauses = []time.Duration{5 * time.Second, 20 * time.Second, time.Minute}

// download fetches the modules that the tool is built from, and tries again
// after each of the pauses.
func (t tool) download(pauses []time.Duration) error {
	return again(pauses, "downloading the modules of "+t.what, func() error {
		command := exec.Command("go", "mod", "download")
		command.Dir = filepath.Join(source(), t.module)
		command.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
		command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
		text, err := command.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w:\n%s", err, strings.TrimSpace(string(text)))
		}
		return nil
	})
}

func (t tool) compile(into string, start time.Time) error {
	module := filepath.Join(source(), t.module)
	args := append([]string{"build", "-trimpath", "-buildvcs=false", "-ldflags", strings.TrimSpace("-s -w " + t.ldflags), "-o", into + "/"}, t.packages...)
	command := exec.Command("go", args...)
	command.Dir = module
	command.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
	text := &strings.Builder{}
	command.Stdout, command.Stderr = text, text
	// Ends with us, however we end: nobody would take its result.
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	done := make(chan error, 1)
	go func() { done <- command.Run() }()
	for {
		select {
		case err := <-done:
			if err != nil {
				lines := strings.Split(strings.TrimSpace(text.String()), "\n")
				return fmt.Errorf("building %s failed (%w):\n%s", t.what, err, strings.Join(lines[max(0, len(lines)-20):], "\n"))
			}
			return nil
		case <-time.After(20 * time.Second):
			say("still building %s, %.1f minutes so far", t.what, time.Since(start).Minutes())
		}
	}
}

// copyAlong takes what the programs read at run time out of the modules, so
// that a cached tool works without them.
func (t tool) copyAlong(into string) error {
	for _, one := range t.copies {
		command := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", one[0])
		command.Dir = filepath.Join(source(), t.module)
		command.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
		folder, err := command.Output()
		if err != nil {
			return fmt.Errorf("cannot find the module %s: %w", one[0], err)
		}
		if err := copyFolder(filepath.Join(strings.TrimSpace(string(folder)), one[1]), filepath.Join(into, one[2])); err != nil {
			return err
		}
	}
	return nil
}

// copyFolder copies files and folders, writable, which in a module they aren't.
func copyFolder(from, to string) error {
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, relative)
		if entry.IsDir() {
			return os.MkdirAll(target, 0o755)
		}
		if !entry.Type().IsRegular() {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(target, text, 0o644)
	})
}

// lockBuild lets one build of a tool run at a time; the second one then finds it done.
func lockBuild(name string) (func(), error) {
	file, err := os.OpenFile(filepath.Join(cache(), ".lock-"+name), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		say("waiting for another build of %s", name)
		if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX); err != nil {
			return nil, err
		}
	}
	return func() { _ = file.Close() }, nil
}
