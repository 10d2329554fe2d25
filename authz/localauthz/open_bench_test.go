package localauthz_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"creto.dev/authz"
)

// BenchmarkOpen is what it takes to read and compile 10,000 policies.
func BenchmarkOpen(b *testing.B) {
	var text strings.Builder
	for team := range 1000 {
		teamPolicies(&text, team, 1000)
	}
	dir := b.TempDir()
	write(b, dir, "teams.cedar", text.String())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := open(b, dir, nil, nil, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSwap is the first check of each of many sessions after 10,000 policies
// were replaced; the longest is reported as well.
func BenchmarkSwap(b *testing.B) {
	c := newCompany(b, 10_000, 3)
	list := c.questions(b, len(c.sessions), false)
	var text strings.Builder
	for team := range c.teams {
		teamPolicies(&text, team, c.teams)
	}
	var first []time.Duration
	for n := 0; b.Loop(); n++ {
		b.StopTimer()
		write(b, c.dir, "teams.cedar", text.String()+fmt.Sprintf("// %d\n", n))
		if err := c.authorizer.Reload(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		for i := range list {
			q := &list[i]
			began := time.Now()
			if d, err := c.authorizer.Check(b.Context(), q.session, q.request); err != nil || d.Kind != authz.Allow {
				b.Fatalf("%+v, %v", d, err)
			}
			first = append(first, time.Since(began))
		}
	}
	slices.Sort(first)
	b.ReportMetric(float64(first[len(first)/2]), "p50-ns/check")
	b.ReportMetric(float64(first[len(first)*99/100]), "p99-ns/check")
	b.ReportMetric(float64(first[len(first)-1]), "max-ns/check")
}

// BenchmarkDeny is a denial, which is explained.
func BenchmarkDeny(b *testing.B) {
	c := newCompany(b, 10_000, 3)
	q := c.questions(b, 1, false)[0]
	q.request.Resource.ID = "secret-0"
	b.ReportAllocs()
	for b.Loop() {
		if d, err := c.authorizer.Check(b.Context(), q.session, q.request); err != nil || d.Kind != authz.Deny {
			b.Fatalf("%+v, %v", d, err)
		}
	}
}
