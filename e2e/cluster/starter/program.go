package main

import (
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// programImage packs a program of this machine, with the libraries it was
// linked against. It keeps its own name, and is on the PATH under it.
func programImage(reference, binary string, args ...string) (image, error) {
	text, err := programText(binary)
	if err != nil {
		return image{}, err
	}
	inside := "usr/local/bin/" + filepath.Base(binary)
	packed := image{name: reference, entry: "/" + inside, args: args, files: map[string]file{
		inside:              {text, 0o755},
		"etc/passwd":        {fmt.Appendf(nil, "root:x:0:0:root:/:/nologin\nnonroot:x:%d:%d:nonroot:/tmp:/nologin\n", nonroot, nonroot), 0o644},
		"etc/group":         {fmt.Appendf(nil, "root:x:0:\nnonroot:x:%d:\n", nonroot), 0o644},
		"etc/nsswitch.conf": {[]byte("passwd: files\ngroup: files\nhosts: files dns\n"), 0o644},
	}}
	const authorities = "etc/ssl/certs/ca-certificates.crt"
	if bundle, err := os.ReadFile("/" + authorities); err == nil {
		packed.files[authorities] = file{bundle, 0o644}
	}
	libraries, err := librariesOf(binary)
	if err != nil {
		return image{}, err
	}
	for _, library := range libraries {
		content, err := os.ReadFile(library) // Follows the links that a library's name usually is.
		if err != nil {
			return image{}, err
		}
		packed.files[strings.TrimPrefix(library, "/")] = file{content, 0o755}
	}
	return packed, nil
}

// debugBytes is the size from which a program's debug information is left out
// of its image. A debug build carries hundreds of megabytes of it, which cost
// seconds to store and unpack at every load. The names of functions stay.
const debugBytes = 32 << 20

func programText(binary string) ([]byte, error) {
	about, err := os.Stat(binary)
	if err != nil {
		return nil, err
	}
	strip, err := exec.LookPath("strip")
	if about.Size() < debugBytes || err != nil {
		return os.ReadFile(binary)
	}
	folder, err := os.MkdirTemp("", "croft-image-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(folder)
	stripped := filepath.Join(folder, "program")
	if _, err := output(strip, "--strip-debug", "-o", stripped, binary); err != nil {
		return os.ReadFile(binary) // An odd format is no reason to refuse it.
	}
	return os.ReadFile(stripped)
}

// librariesOf gives the paths of the shared libraries, the loader among them.
func librariesOf(binary string) ([]string, error) {
	program, err := elf.Open(binary)
	if err != nil {
		return nil, fmt.Errorf("%s is not a program for Linux: %w", binary, err)
	}
	defer program.Close()
	if needed, err := program.ImportedLibraries(); err != nil || len(needed) == 0 {
		return nil, err // Static.
	}
	text, err := output("ldd", binary)
	if err != nil {
		return nil, err
	}
	return parseLdd(text)
}

// parseLdd reads lines such as "libc.so.6 => /lib/libc.so.6 (0x7f…)" and
// "/lib64/ld-linux-x86-64.so.2 (0x7f…)". The kernel's own "linux-vdso" has no path.
func parseLdd(text string) ([]string, error) {
	var paths []string
	for _, line := range strings.Split(text, "\n") {
		if strings.Contains(line, "not found") {
			return nil, fmt.Errorf("a library is missing: %s", strings.TrimSpace(line))
		}
		for _, word := range strings.Fields(line) {
			if strings.HasPrefix(word, "/") {
				paths = append(paths, word)
				break
			}
		}
	}
	return paths, nil
}
