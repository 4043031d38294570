package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// forget removes files and folders of the run; patterns are allowed.
func (d Dir) forget(patterns ...string) error {
	for _, pattern := range patterns {
		paths, err := filepath.Glob(d.at(pattern))
		if err != nil {
			return err
		}
		for _, path := range paths {
			if err := removeAll(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeAll is os.RemoveAll, again for as long as somebody who was told to end
// still writes there, or a mount is still let go: five seconds at most.
func removeAll(path string) error {
	err := os.RemoveAll(path)
	for try := 1; err != nil && try < 20; try++ {
		time.Sleep(250 * time.Millisecond)
		err = os.RemoveAll(path)
	}
	return err
}

// tidy is the end of every "down": when nothing runs any more, what the parts
// shared goes too. The logs stay, for whoever wants to know what happened.
func (d Dir) tidy() error {
	if d.inUse() {
		return d.writeEnv()
	}
	return d.forget("env", "ports.json")
}

// status prints a line for each process of the run.
func (d Dir) status() error {
	records, _ := filepath.Glob(d.short("processes", "*.json"))
	for _, path := range records {
		name := filepath.Base(path[:len(path)-len(".json")])
		state := "dead, see " + d.log(name)
		if old, err := d.record(name); err == nil && old.alive() {
			state = fmt.Sprintf("running as process %d", old.PID)
		}
		fmt.Printf("%-24s %s\n", name, state)
	}
	return nil
}
