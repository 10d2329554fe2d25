package localaudit_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/audit/audittest"
	"creto.dev/audit/localaudit"
)

func BenchmarkLog(b *testing.B) {
	o := open(b, b.TempDir(), func(c *localaudit.Config) { c.Intake.Journal.RingBytes = 64 << 20; c.Intake.Journal.Slots = 1 << 20 })
	ctx, stop := context.WithCancel(b.Context())
	go func() { _ = o.log.Run(ctx) }()
	defer stop()
	r := audittest.Record(creto.CallModel, 1)
	b.ReportAllocs()
	for b.Loop() {
		r.ID = creto.NewUUID()
		if _, err := o.log.Log(b.Context(), r); err != nil {
			b.Fatal(err)
		}
	}
}

// call is a record of a model call, as the gate makes it.
func call(n int) audit.Record {
	r := audittest.Record(creto.CallModel, n%50)
	r.ID = audit.RecordID{} // the log gives it one
	r.OnBehalfOf = audittest.Human("alice")
	r.Chain, r.Args = chain, args
	r.Decision = &audit.Decision{Kind: "allow", Policies: []audit.PolicyRef{{ID: "agents/bot.cedar#0", Digest: chain}}, Version: args}
	r.Usage = &audit.Usage{PromptTokens: 1200, CompletionTokens: 340}
	r.Sandbox, r.Isolation = "run-0123abcd", "gvisor"
	return r
}

var chain, args = creto.DigestOf([]byte("chain")), creto.DigestOf([]byte("args"))

// BenchmarkDrain is what the tree costs a record, in batches of 1,000, one after the
// other.
func BenchmarkDrain(b *testing.B) {
	o := open(b, b.TempDir(), func(c *localaudit.Config) { c.Intake.Journal.RingBytes = 64 << 20 })
	const batch = 1000
	rs := make([]audit.Record, batch)
	b.ReportAllocs()
	n, busy := 0, cpuTime(b)
	for b.Loop() {
		b.StopTimer()
		for i := range rs {
			rs[i] = call(n)
			n++
		}
		if err := errors.Join(o.log.LogBatch(b.Context(), rs)...); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if _, err := o.log.Entry(b.Context(), rs[batch-1].ID); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*batch), "µs/record")
	b.ReportMetric(float64(cpuTime(b)-busy)/1000/float64(b.N*batch), "cpu-µs/record")
}

// BenchmarkDurable is what a record costs that waits for the disk, a thousand at once,
// while the log is drained beside.
func BenchmarkDurable(b *testing.B) {
	o := open(b, b.TempDir(), func(c *localaudit.Config) { c.Intake.Journal.RingBytes = 0 }) // as a node has it
	running, stop := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- o.log.Run(running) }()
	const batch = 1000
	rs := make([]audit.Record, batch)
	b.ReportAllocs()
	n, busy := 0, cpuTime(b)
	for b.Loop() {
		for i := range rs {
			rs[i] = call(n)
			rs[i].Outcome = audit.Denied
			n++
		}
		if err := errors.Join(o.log.LogBatch(b.Context(), rs)...); err != nil {
			b.Fatal(err)
		}
	}
	stop()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*batch), "µs/record")
	b.ReportMetric(float64(cpuTime(b)-busy)/1000/float64(b.N*batch), "cpu-µs/record")
}

// cpuTime is what the process has used so far, in nanoseconds.
func cpuTime(b *testing.B) int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// BenchmarkQuery is a page of one actor of a thousand in one hour, in a log of a
// million records (budget 1 ms), and of a rare event. Without CRETO_TORTURE=1 the
// log has 20,000.
func BenchmarkQuery(b *testing.B) {
	records := 20_000
	if os.Getenv("CRETO_TORTURE") != "" {
		records = 1_000_000
	}
	o := open(b, b.TempDir(), func(c *localaudit.Config) { c.Intake.Journal.RingBytes = 64 << 20 })
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	rs := make([]audit.Record, 1000)
	for n := 0; n < records; n += len(rs) {
		for i := range rs {
			rs[i] = audittest.Record(creto.CallModel, i%50)
			rs[i].Who.Name = fmt.Sprintf("bot-%d", (n+i)*7919%1000)
			rs[i].OnBehalfOf = audittest.Human(fmt.Sprintf("human-%d", i%100))
			at := begin.Add(time.Duration(n+i) * time.Second)
			rs[i].Stamp = creto.Timestamp{Logical: uint64(n + i + 1), Physical: at.UnixNano(), Source: creto.SourceConsensus, Node: "n"}
			rs[i].ID = creto.NewUUIDAt(at)
		}
		if n == records/2/1000*1000 {
			rs[500].What = audit.EventKeyRotated
		}
		if err := errors.Join(o.log.LogBatch(b.Context(), rs)...); err != nil {
			b.Fatal(err)
		}
		if err := o.log.Flush(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	since := begin.Add(time.Duration(records/3) * time.Second)
	for name, f := range map[string]audit.Filter{
		"actor+time": {Tenant: "default", Actor: "bot-17", Since: since, Until: since.Add(30 * 24 * time.Hour)},
		"actor":      {Tenant: "default", Actor: "bot-17"},
		"human":      {Tenant: "default", Human: "human-3"},
		"rare event": {Tenant: "default", What: audit.EventKeyRotated},
		"newest":     {Tenant: "default"},
	} {
		b.Run(name, func(b *testing.B) {
			found := 0
			for b.Loop() {
				page, err := o.log.Query(b.Context(), f)
				if err != nil {
					b.Fatal(err)
				}
				found = len(page)
			}
			b.ReportMetric(float64(found), "records")
		})
	}
}
