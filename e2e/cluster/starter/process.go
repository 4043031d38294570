package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// patience is longer than a program takes to start on a machine that is busy
// with other things, and that may stand still for half a minute at a time.
const patience = 3 * time.Minute

// Process is a program that outlives the command that starts it.
type Process struct {
	Name string
	Args []string
	// Env is added to a bare environment; the caller's own is not passed on,
	// because a stray variable would otherwise change how a component behaves.
	Env  []string
	User *syscall.Credential
	// Files are its configuration. A change in them, or in Args, means a restart.
	Files []string
	// Ready gives nil once the program does its work.
	Ready func() error
	// Within bounds the wait for Ready.
	Within time.Duration
	// Stop is the signal that ends it in good order; SIGTERM unless set.
	Stop syscall.Signal
}

// Record is what is written down about a process, to know it again: process
// ids are given out anew, but never twice with the same start time.
type Record struct {
	PID     int            `json:"pid"`
	Started uint64         `json:"started"`
	Program string         `json:"program"`
	Digest  string         `json:"digest"`
	Stop    syscall.Signal `json:"stop"`
	Order   int64          `json:"order"`
}

// start brings the process to life unless it is there already, unchanged.
// It does not wait; await does.
func (d Dir) start(p Process) error {
	digest := p.digest()
	if old, err := d.record(p.Name); err == nil && old.alive() {
		if old.Digest == digest {
			return nil
		}
		say("%s restarts, its configuration changed", p.Name)
		d.stop(p.Name, 10*time.Second)
	}
	log, err := os.OpenFile(d.log(p.Name), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	command := exec.Command(p.Args[0], p.Args[1:]...)
	command.Dir = d.Short
	command.Stdout, command.Stderr = log, log
	command.Env = append([]string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + d.Short, "LANG=C.UTF-8", d.mark(),
	}, p.Env...)
	// A session of its own, so that Ctrl-C at the terminal doesn't reach it.
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: p.User}
	if err := command.Start(); err != nil {
		return fmt.Errorf("%s does not start: %w", p.Name, err)
	}
	go func() { _ = command.Wait() }() // Or it would stay a zombie, which looks alive.
	stat, err := readStat(command.Process.Pid)
	if err != nil {
		return d.failed(p, errors.New("it ended at once"))
	}
	signal := p.Stop
	if signal == 0 {
		signal = syscall.SIGTERM
	}
	text, err := json.Marshal(Record{
		PID: command.Process.Pid, Started: stat.started, Program: p.Args[0], Digest: digest, Stop: signal, Order: time.Now().UnixNano(),
	})
	if err != nil {
		return err
	}
	return writeFile(d.recordPath(p.Name), text, 0o644)
}

// await waits until the process does its work, for p.Within at most.
func (d Dir) await(p Process) error {
	deadline := time.Now().Add(p.Within)
	for pause := 20 * time.Millisecond; ; pause = min(pause*2, 200*time.Millisecond) {
		old, err := d.record(p.Name)
		if err != nil || !old.alive() {
			return d.failed(p, errors.New("it ended"))
		}
		if err = p.Ready(); err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return d.failed(p, fmt.Errorf("not ready within %s: %w", p.Within, err))
		}
		time.Sleep(pause)
	}
}

// run is start and await.
func (d Dir) run(p Process) error {
	if err := d.start(p); err != nil {
		return err
	}
	return d.await(p)
}

// failed is the one sentence and the log that a person needs.
func (d Dir) failed(p Process, why error) error {
	return fmt.Errorf("%s failed (%w); its log is %s and ends:\n%s", p.Name, why, d.log(p.Name), tail(d.log(p.Name), 12))
}

// stop ends a recorded process, politely at first, and forgets it.
func (d Dir) stop(name string, grace time.Duration) {
	old, err := d.record(name)
	if err != nil {
		return
	}
	if old.alive() {
		_ = syscall.Kill(old.PID, old.Stop)
		for deadline := time.Now().Add(grace); old.alive() && time.Now().Before(deadline); {
			time.Sleep(10 * time.Millisecond)
		}
		if old.alive() {
			say("%s does not end, killing it", name)
			_ = syscall.Kill(old.PID, syscall.SIGKILL)
			for deadline := time.Now().Add(30 * time.Second); old.alive() && time.Now().Before(deadline); {
				time.Sleep(10 * time.Millisecond)
			}
		}
	}
	_ = os.Remove(d.recordPath(name))
}

// stopAll ends several at once.
func (d Dir) stopAll(grace time.Duration, names ...string) {
	var all []func() error
	for _, name := range names {
		all = append(all, func() error { d.stop(name, grace); return nil })
	}
	_ = together(all...)
}

// running says whether the recorded process of that name lives.
func (d Dir) running(name string) bool {
	old, err := d.record(name)
	return err == nil && old.alive()
}

func (d Dir) log(name string) string        { return d.at("logs", name+".log") }
func (d Dir) recordPath(name string) string { return d.short("processes", name+".json") }

func (d Dir) record(name string) (Record, error) {
	var r Record
	text, err := os.ReadFile(d.recordPath(name))
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(text, &r)
}

// alive is careful: the id must belong to the process that was started, by
// its start time and by its command line, before anyone signals it.
func (r Record) alive() bool {
	stat, err := readStat(r.PID)
	if err != nil || stat.state == 'Z' || stat.state == 'X' || stat.started != r.Started {
		return false
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", r.PID))
	// For a moment after its start a process has no command line yet.
	return err == nil && (len(line) == 0 || bytes.Contains(line, []byte(filepath.Base(r.Program))))
}

func (p Process) digest() string {
	sum := sha256.New()
	fmt.Fprintf(sum, "%q %q", p.Args, p.Env)
	for _, path := range p.Files {
		text, _ := os.ReadFile(path) // An unreadable file differs from every readable one.
		fmt.Fprintf(sum, "%d %s", len(text), text)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// output runs a command to its end and gives what it printed.
func output(name string, args ...string) (string, error) {
	text, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return string(text), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(text)))
	}
	return string(text), nil
}
