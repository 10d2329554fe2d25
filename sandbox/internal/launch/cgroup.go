package launch

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"creto.dev/sandbox"
)

// Overhead is what an engine itself needs beside the command.
type Overhead struct {
	Processes   int
	MemoryBytes int64
}

// group is one sandbox's control group, in each hierarchy that it needs and
// this process may write.
type group struct {
	dirs       []string
	unenforced []string
}

// groupPrefix begins the name of each group, before the supervisor's process
// id: a group whose supervisor is gone is swept by the next run.
const groupPrefix = "creto-"

// setting is one limit as a file of a control group.
type setting struct {
	limit, controller string
	v1, v2            [2]string // file and value
}

func settings(limits sandbox.Limits, overhead Overhead) []setting {
	memory := strconv.FormatInt(limits.MemoryBytes+overhead.MemoryBytes, 10)
	pids := strconv.Itoa(limits.Processes + overhead.Processes)
	all := []setting{
		{"memory", "memory", [2]string{"memory.limit_in_bytes", memory}, [2]string{"memory.max", memory}},
		{"processes", "pids", [2]string{"pids.max", pids}, [2]string{"pids.max", pids}},
	}
	if limits.CPUMillis > 0 {
		const period = 100_000 // microseconds, the kernel's default
		quota := strconv.Itoa(limits.CPUMillis * period / 1000)
		all = append(all, setting{"cpu", "cpu", [2]string{"cpu.cfs_quota_us", quota}, [2]string{"cpu.max", quota + " " + strconv.Itoa(period)}})
	}
	return all
}

// newGroup makes a control group with limits. What cannot be had is named in
// unenforced: an unprivileged caller often may not make one.
func newGroup(limits sandbox.Limits, overhead Overhead) *group {
	g := &group{}
	var random [6]byte
	_, _ = rand.Read(random[:]) // never fails
	name := groupPrefix + strconv.Itoa(os.Getpid()) + "-" + hex.EncodeToString(random[:])
	places := hierarchies()
	made := map[string]bool{}
	for _, s := range settings(limits, overhead) {
		if !slices.ContainsFunc(places[s.controller], func(p place) bool { return g.enforce(p, name, s, made) }) {
			if s.limit == "processes" && os.Geteuid() != 0 {
				continue // RLIMIT_NPROC holds, for all but root
			}
			g.unenforced = append(g.unenforced, s.limit)
		}
	}
	slices.Sort(g.unenforced)
	return g
}

// enforce makes the group name at p, if it is not there yet, and sets s.
func (g *group) enforce(p place, name string, s setting, made map[string]bool) bool {
	dir := filepath.Join(p.dir, name)
	if !made[dir] {
		sweep(p.dir)
		if os.Mkdir(dir, 0o755) != nil {
			return false
		}
	}
	file := s.v1
	if p.v2 {
		file = s.v2
	}
	if os.WriteFile(filepath.Join(dir, file[0]), []byte(file[1]), 0o644) != nil {
		if !made[dir] {
			_ = os.Remove(dir)
		}
		return false
	}
	if s.limit == "memory" && p.v2 {
		_ = os.WriteFile(filepath.Join(dir, "memory.swap.max"), []byte("0"), 0o644) // absent without swap
	}
	if !made[dir] {
		made[dir] = true
		g.dirs = append(g.dirs, dir)
	}
	return true
}

// join moves a process into the group.
func (g *group) join(pid int) error {
	for _, dir := range g.dirs {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// kill ends every process still in the group.
func (g *group) kill() {
	for _, dir := range g.dirs {
		if os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0o644) == nil {
			continue
		}
		data, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs")) // none left if unreadable
		for field := range bytes.FieldsSeq(data) {
			if pid, err := strconv.Atoi(string(field)); err == nil && pid > 1 {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
}

// removeTimeout bounds the wait for the kernel to let go of a group.
const removeTimeout = 2 * time.Second

func (g *group) close() {
	for _, dir := range g.dirs {
		for waited := time.Duration(0); waited < removeTimeout; waited += 5 * time.Millisecond {
			if err := os.Remove(dir); err == nil || errors.Is(err, os.ErrNotExist) {
				break
			}
			g.kill()
			<-time.After(5 * time.Millisecond)
		}
	}
	g.dirs = nil
}

// sweep removes the groups in dir whose supervisor died before it could.
func sweep(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), groupPrefix)
		pid, _, _ := strings.Cut(rest, "-")
		if n, err := strconv.Atoi(pid); ok && err == nil && errors.Is(syscall.Kill(n, 0), syscall.ESRCH) {
			_ = os.Remove(filepath.Join(dir, e.Name())) // fails while a process is in it
		}
	}
}

// place is a directory below which a group may be made.
type place struct {
	dir string
	v2  bool
}

// hierarchies returns, for each controller, the places to try, best first.
func hierarchies() map[string][]place {
	own := ownGroups()
	places := map[string][]place{}
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		// proc(5): id parent major:minor root mountpoint options … - type source super-options
		before, after, ok := strings.Cut(lines.Text(), " - ")
		head, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(head) < 5 || len(tail) < 3 {
			continue
		}
		root, at := head[3], head[4]
		switch tail[0] {
		case "cgroup2":
			dir := groupDir(root, at, own[""])
			// A group with processes cannot hand controllers down, except the
			// root: else the new group stands beside our own.
			for _, dir := range []string{dir, filepath.Dir(dir)} {
				if !below(dir, at) {
					continue
				}
				controllers, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
				if err != nil {
					continue
				}
				for controller := range strings.FieldsSeq(string(controllers)) {
					places[controller] = append(places[controller], place{dir, true})
				}
			}
		case "cgroup":
			for controller := range strings.SplitSeq(tail[2], ",") {
				if path, ok := own[controller]; ok {
					places[controller] = append(places[controller], place{groupDir(root, at, path), false})
				}
			}
		}
	}
	return places
}

func groupDir(root, at, own string) string {
	if rest, ok := strings.CutPrefix(own, root); ok {
		return filepath.Join(at, rest)
	}
	return at
}

// ownGroups returns this process's group for each v1 controller, and under ""
// that of v2.
func ownGroups() map[string]string {
	own := map[string]string{}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", os.Getpid()))
	if err != nil {
		return own
	}
	for line := range strings.Lines(string(data)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		for controller := range strings.SplitSeq(parts[1], ",") {
			own[controller] = parts[2]
		}
	}
	return own
}
