package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	product "creto.dev"
	"creto.dev/authz"
	"creto.dev/authz/localauthz"
)

const (
	// swapRate is how many checks a second go on while policies change.
	swapRate  = 50_000
	swapTime  = 4 * time.Second
	swapEvery = 50 * time.Millisecond // at most; a change of many policies takes longer
	longPause = time.Millisecond
	// manyRules is from how many on all of them are replaced too.
	manyRules = 1000
)

// revised returns an estate's policies, each in words of its own.
func revised(e *estate, revision string) string {
	return strings.ReplaceAll(strings.ReplaceAll(e.cedarText(""), "permit (", fmt.Sprintf("@revision(%q) permit (", revision)), "forbid (", fmt.Sprintf("@revision(%q) forbid (", revision))
}

// benchSwap measures checks, one every 20 µs, while the policies stay, and while they
// are replaced again and again: with one that comes and goes, and, if they are many,
// with all of them other. What the machine itself takes its time for is in each. The
// files are written before, and linked into place: who writes policies is another
// process, and the disk's time is not the authorizer's.
func benchSwap(ctx context.Context, r *report, c *fleet, e *estate) error {
	if e.depth == 0 {
		return nil
	}
	dir, err := os.MkdirTemp(c.house.dir, "authz-")
	if err != nil {
		return err
	}
	texts := map[string][2]string{
		"swap":     {e.cedarText(""), e.cedarText("") + `permit (principal == Creto::Agent::"nobody", action, resource);`},
		"swap-all": {revised(e, "one"), revised(e, "two")},
	}
	for name, two := range texts {
		for i, text := range two {
			if err := os.WriteFile(fmt.Sprintf("%s-%s-%d", dir, name, i), []byte(text), 0o600); err != nil {
				return err
			}
		}
	}
	install := func(name string, n int) error {
		file := filepath.Join(dir, "bench.cedar")
		if err := os.Link(fmt.Sprintf("%s-%s-%d", dir, name, n%2), file+".new"); err != nil {
			return err
		}
		return os.Rename(file+".new", file)
	}
	if err := install("swap", 0); err != nil {
		return err
	}
	a, err := localauthz.Open(dir, product.DefaultTenant, e.groupsOf(), nil, func(context.Context, localauthz.Change) {})
	if err != nil {
		return err
	}
	var sessions []authz.Session
	for _, chain := range c.chains {
		s, err := a.Bind(ctx, chain)
		if err != nil {
			return err
		}
		sessions = append(sessions, s)
	}
	check := func(p probe) error {
		d, err := a.Check(ctx, sessions[p.chain], p.request)
		if err == nil && d.Kind != authz.Allow {
			err = errors.New(d.Reason)
		}
		return err
	}
	for _, name := range []string{"steady", "swap", "swap-all"} {
		if name == "swap-all" && len(e.rules) < manyRules {
			continue
		}
		running, stop := context.WithTimeout(ctx, swapTime)
		swaps := make(chan int, 1)
		var failed error
		go func() {
			ticker := time.NewTicker(swapEvery)
			defer ticker.Stop()
			n := 0
			for name != "steady" && running.Err() == nil && failed == nil {
				n++
				if failed = install(name, n); failed == nil {
					failed = a.Reload(ctx)
				}
				<-ticker.C
			}
			swaps <- n
		}()
		pauses, err := paced(running, e.probes("spread"), check)
		stop()
		n := <-swaps
		if err := errors.Join(err, failed); err != nil {
			return err
		}
		r.add(pauses.row(name+"/"+e.setting(), n))
	}
	return nil
}

// pauses are how long checks took, and how long after they were due they were done.
type pauses struct{ took, late []float64 }

// paced makes checks at swapRate until ctx ends. It waits for their turn without
// sleeping, as a timer is coarser than that, but lets others run, as goroutines that
// serve requests do: one that never does is made to by the runtime, for milliseconds.
func paced(ctx context.Context, probes []probe, check func(probe) error) (pauses, error) {
	total := int(swapTime / (time.Second / swapRate))
	p := pauses{make([]float64, 0, total), make([]float64, 0, total)}
	begin := time.Now()
	for i := range total {
		due := begin.Add(time.Duration(i) * (time.Second / swapRate))
		now := time.Now()
		for ; now.Before(due); now = time.Now() {
			runtime.Gosched()
		}
		if err := check(probes[i%len(probes)]); err != nil {
			return p, err
		}
		end := time.Now()
		p.took, p.late = append(p.took, float64(end.Sub(now))), append(p.late, float64(end.Sub(due)))
		if ctx.Err() != nil {
			break
		}
	}
	return p, nil
}

func (p pauses) row(name string, swaps int) row {
	long := 0
	for _, took := range p.took {
		if took > float64(longPause) {
			long++
		}
	}
	slices.Sort(p.took)
	slices.Sort(p.late)
	last := len(p.took) - 1
	return row{
		Case: name, Who: creto, N: len(p.took), P50: percentile(p.took, 0.5), P99: percentile(p.took, 0.99), P999: percentile(p.took, 0.999),
		Note: fmt.Sprintf("%d changes; the longest check took %v, %d took over 1 ms; the latest was done %v after it was due, 99.9 %% within %v", swaps,
			time.Duration(p.took[last]), long, time.Duration(p.late[last]), time.Duration(*percentile(p.late, 0.999))),
	}
}
