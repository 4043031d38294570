package main

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

func testDir(t *testing.T) Dir {
	t.Helper()
	d := Dir{Path: t.TempDir(), Short: t.TempDir()}
	for _, folder := range []string{d.at("logs"), d.short("processes")} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

func sleeper(seconds string) Process {
	return Process{Name: "sleeper", Args: []string{"/bin/sleep", seconds}, Ready: func() error { return nil }, Within: time.Minute}
}

func TestAProcessIsStartedOnceAndStopped(t *testing.T) {
	d := testDir(t)
	defer d.stop("sleeper", 0)
	if err := d.run(sleeper("60")); err != nil {
		t.Fatal(err)
	}
	first, _ := d.record("sleeper")
	if err := d.run(sleeper("60")); err != nil {
		t.Fatal(err)
	}
	if second, _ := d.record("sleeper"); second != first {
		t.Errorf("a running process was started again: %v, then %v", first, second)
	}
	d.stop("sleeper", time.Minute)
	if first.alive() || d.running("sleeper") {
		t.Error("it runs after it was stopped")
	}
}

func TestAChangeOfConfigurationRestarts(t *testing.T) {
	d := testDir(t)
	defer d.stop("sleeper", 0)
	if err := d.run(sleeper("60")); err != nil {
		t.Fatal(err)
	}
	first, _ := d.record("sleeper")
	if err := d.run(sleeper("61")); err != nil {
		t.Fatal(err)
	}
	if second, _ := d.record("sleeper"); first.alive() || !second.alive() || second.PID == first.PID {
		t.Errorf("first %v, second %v", first, second)
	}
}

func TestAFailureNamesTheLogAndShowsItsEnd(t *testing.T) {
	d := testDir(t)
	err := d.run(Process{
		Name: "broken", Args: []string{"/bin/sh", "-c", "echo no such luck; exit 3"},
		Ready: func() error { return errors.New("not yet") }, Within: time.Minute,
	})
	if err == nil || !strings.Contains(err.Error(), d.log("broken")) || !strings.Contains(err.Error(), "no such luck") {
		t.Errorf("%v", err)
	}
}

func TestAnotherProcessWithTheSameIdIsNotOurs(t *testing.T) {
	about, err := readStat(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	us := Record{PID: os.Getpid(), Started: about.started, Program: os.Args[0]}
	if !us.alive() {
		t.Error("we are alive")
	}
	us.Started++
	if us.alive() {
		t.Error("it started at another time")
	}
	us.Started--
	us.Program = "/usr/bin/postgres"
	if us.alive() {
		t.Error("it is another program")
	}
}

func TestUnrecordedProcessesAreFoundByTheirMark(t *testing.T) {
	d := testDir(t)
	if err := d.run(sleeper("60")); err != nil {
		t.Fatal(err)
	}
	lost, _ := d.record("sleeper")
	if err := os.Remove(d.recordPath("sleeper")); err != nil {
		t.Fatal(err)
	}
	d.sweep()
	if lost.alive() {
		t.Error("a process without a record survived")
	}
}
