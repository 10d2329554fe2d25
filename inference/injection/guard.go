package injection

import (
	"context"
	"hash/maphash"
	"slices"
	"sync"
)

// Text is one part of what goes to a model.
type Text struct {
	Text string
	From Source
}

// Guard judges all texts of a request, and remembers those that it has judged: a
// conversation sends its past again with each turn. Safe for concurrent use.
type Guard struct {
	detector Detector
	seed     maphash.Seed

	mu      sync.Mutex // guards now and before
	now     map[key]Finding
	before  map[key]Finding // what was remembered before now was full
	maximum int
}

// key names a text. The hash's seed is known to nobody, so that no text can be made
// to be taken for another.
type key struct {
	hash uint64
	size int
	from Source
}

// Texts that are remembered, and how long they must be: short ones are judged anew,
// which costs no more than remembering them.
const (
	maxRemembered = 4096
	minRemembered = 64
)

// NewGuard returns a guard that asks d.
func NewGuard(d Detector) *Guard {
	return &Guard{detector: d, seed: maphash.MakeSeed(), now: make(map[key]Finding), maximum: maxRemembered}
}

// Judge returns the finding of the worst of the texts, with the reasons of all that
// are as bad as min.
//
// Errors: those of the detector.
func (g *Guard) Judge(ctx context.Context, texts []Text, min Risk) (Finding, error) {
	var worst Finding
	var reasons []string
	for _, t := range texts {
		f, err := g.one(ctx, t)
		if err != nil {
			return Finding{}, err
		}
		if f.Risk >= min {
			reasons = append(reasons, f.Reasons...)
		}
		if f.Risk > worst.Risk {
			worst = f
		}
	}
	if len(reasons) > 0 {
		slices.Sort(reasons)
		worst.Reasons = slices.Compact(reasons)
	}
	return worst, nil
}

func (g *Guard) one(ctx context.Context, t Text) (Finding, error) {
	if len(t.Text) < minRemembered {
		return g.detector.Detect(ctx, t.Text, t.From)
	}
	k := key{maphash.String(g.seed, t.Text), len(t.Text), t.From}
	if f, ok := g.recall(k); ok {
		return f, nil
	}
	f, err := g.detector.Detect(ctx, t.Text, t.From)
	if err == nil {
		g.remember(k, f)
	}
	return f, err
}

func (g *Guard) recall(k key) (Finding, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if f, ok := g.now[k]; ok {
		return f, true
	}
	f, ok := g.before[k]
	if ok {
		g.keep(k, f)
	}
	return f, ok
}

func (g *Guard) remember(k key, f Finding) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.keep(k, f)
}

// keep holds f for at least maximum/2 other texts. The caller holds mu.
func (g *Guard) keep(k key, f Finding) {
	if len(g.now) >= g.maximum/2 {
		g.before, g.now = g.now, make(map[key]Finding)
	}
	g.now[k] = f
}
