package main

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

var (
	began     = time.Now()
	sayOneAtA sync.Mutex
)

// say tells the person at the terminal what is going on, with the seconds
// since the start. It goes to stderr, so that answers on stdout stay clean.
func say(format string, values ...any) {
	sayOneAtA.Lock()
	defer sayOneAtA.Unlock()
	fmt.Fprintf(os.Stderr, "%6.1fs  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, values...))
}

// tail gives the last lines of a log, indented, for the end of an error.
func tail(path string, lines int) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	if most := 64 << 10; len(text) > most {
		text = text[len(text)-most:]
	}
	all := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return "    " + strings.Join(all, "\n    ")
}

// together runs all of them at once and waits for all, or for the first
// failure: with one part broken, there is no use in waiting for the others.
func together(all ...func() error) error {
	failures := make(chan error, len(all))
	for _, one := range all {
		go func() { failures <- one() }()
	}
	for range all {
		if err := <-failures; err != nil {
			return err
		}
	}
	return nil
}

// again tries until it succeeds, once more after each of the pauses.
func again(pauses []time.Duration, what string, try func() error) error {
	err := try()
	for _, pause := range pauses {
		if err == nil {
			return nil
		}
		say("%s failed, once more in %s: %v", what, pause, err)
		time.Sleep(pause)
		err = try()
	}
	if err != nil {
		return fmt.Errorf("%s failed %d times, at last with: %w", what, len(pauses)+1, err)
	}
	return nil
}

// inTurn runs them one after the other until one fails.
func inTurn(all ...func() error) error {
	for _, one := range all {
		if err := one(); err != nil {
			return err
		}
	}
	return nil
}
