package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
)

// Dir is the folder of one run. What a run has to know again lies in Path;
// what is needed to undo a run lies in Short, so that deleting Path by hand
// leaves nothing that can't be cleaned up any more.
type Dir struct {
	Path string
	// Short is a path of a few letters, for sockets: the kernel allows 108 bytes.
	Short string
}

// openDir makes the two folders of the run at path.
func openDir(path string) (Dir, error) {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return Dir{}, err
	}
	sum := sha256.Sum256([]byte(absolute))
	short := "/run/croft-" + hex.EncodeToString(sum[:4])
	if os.Geteuid() != 0 {
		base := os.Getenv("XDG_RUNTIME_DIR")
		if base == "" {
			base = filepath.Join(os.TempDir(), "croft-"+strconv.Itoa(os.Geteuid()))
		}
		short = filepath.Join(base, "croft-"+hex.EncodeToString(sum[:4]))
	}
	d := Dir{Path: absolute, Short: short}
	for _, folder := range []string{d.Path, d.at("logs")} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return Dir{}, err
		}
	}
	return d, nil
}

func (d Dir) at(parts ...string) string {
	return filepath.Join(append([]string{d.Path}, parts...)...)
}

func (d Dir) short(parts ...string) string {
	return filepath.Join(append([]string{d.Short}, parts...)...)
}

// mark is in the environment of every process that a run starts, and is
// inherited by what those start. It finds the ones no record tells of.
func (d Dir) mark() string { return "CROFT_STARTED_IN=" + d.Path }

// lock keeps two commands from changing one run at the same time. It is
// released when the program ends, however it ends.
func (d Dir) lock() (func(), error) {
	for {
		if err := os.MkdirAll(d.short("processes"), 0o755); err != nil {
			return nil, err
		}
		file, err := os.OpenFile(d.short("lock"), os.O_CREATE|os.O_RDWR, 0o600)
		if os.IsNotExist(err) {
			continue // The run was removed between the two.
		}
		if err != nil {
			return nil, err
		}
		if syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
			say("waiting for another command that works on %s", d.Path)
			if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX); err != nil {
				return nil, err
			}
		}
		// The one we waited for may have removed the file: then it locks nobody out.
		ours, err := file.Stat()
		if there, gone := os.Stat(d.short("lock")); err == nil && gone == nil && os.SameFile(ours, there) {
			return func() {
				if !d.inUse() {
					_ = os.RemoveAll(d.Short)
				}
				_ = file.Close()
			}, nil
		}
		_ = file.Close()
	}
}

// inUse says whether the run has anything to undo.
func (d Dir) inUse() bool {
	records, _ := filepath.Glob(d.short("processes", "*.json"))
	return len(records) > 0 || d.ownsNode()
}

// attempts keeps apart the unfinished files of one program.
var attempts atomic.Int64

// writeFile replaces a file in one step: readers see the old text or the new.
func writeFile(path string, text []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	unfinished := fmt.Sprintf("%s.%d-%d.new", path, os.Getpid(), attempts.Add(1))
	if err := os.WriteFile(unfinished, text, mode); err != nil {
		return err
	}
	return os.Rename(unfinished, path)
}
