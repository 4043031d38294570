package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
)

type stat struct {
	state   byte
	parent  int
	started uint64 // in clock ticks since the machine started
}

func readStat(pid int) (stat, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	return parseStat(string(text))
}

// parseStat reads the third and the 22nd field. The second is the program's
// name in brackets and may hold spaces and brackets itself, so the fields are
// counted from the last closing one.
func parseStat(text string) (stat, error) {
	end := strings.LastIndexByte(text, ')')
	if end < 0 {
		return stat{}, fmt.Errorf("not a process's stat: %q", text)
	}
	fields := strings.Fields(text[end+1:])
	if len(fields) < 20 {
		return stat{}, fmt.Errorf("a process's stat is cut short: %q", text)
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return stat{}, err
	}
	started, err := strconv.ParseUint(fields[19], 10, 64)
	return stat{state: fields[0][0], parent: parent, started: started}, err
}

// parent gives the process that a process belongs to, 0 if it is gone.
func parent(pid int) int {
	about, _ := readStat(pid)
	return about.parent
}

// marked gives the ids of the processes that carry mark in their environment.
func marked(mark string) []int {
	var found []int
	paths, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // It ended meanwhile.
		}
		for _, variable := range bytes.Split(text, []byte{0}) {
			if string(variable) == mark {
				pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
				found = append(found, pid)
			}
		}
	}
	return found
}

// mountsUnder gives the mount points at or below any of the folders, innermost first.
func mountsUnder(mountinfo string, folders ...string) []string {
	var found []string
	for _, line := range strings.Split(mountinfo, "\n") {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		point := unescape(fields[4])
		for _, folder := range folders {
			if point == folder || strings.HasPrefix(point, folder+"/") {
				found = append(found, point)
				break
			}
		}
	}
	// A later mount may lie on top of an earlier one at the same place.
	sort.SliceStable(found, func(a, b int) bool { return len(found[a]) > len(found[b]) })
	return found
}

// unescape undoes the kernel's \040 for a space and its kin.
func unescape(text string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(text)
}
