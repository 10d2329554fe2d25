package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// report is one subject's numbers, in the form of docs/architecture.md.
type report struct {
	Subject string    `json:"subject"`
	Commit  string    `json:"commit"`
	CPU     string    `json:"cpu"`
	Cores   int       `json:"cores"`
	Go      string    `json:"go"`
	Started time.Time `json:"started"`
	Rows    []row     `json:"rows"`
}

// row is one case of one contestant. What was not measured is absent; that is
// not the same as zero.
type row struct {
	Case      string   `json:"case"`
	Who       string   `json:"who"` // creto, or the peer
	N         int      `json:"n"`
	P50       *float64 `json:"p50_ns,omitempty"`
	P99       *float64 `json:"p99_ns,omitempty"`
	P999      *float64 `json:"p999_ns,omitempty"`
	PerSecond *float64 `json:"per_second,omitempty"`
	CPU       *float64 `json:"cpu_ns,omitempty"` // of the whole process, an operation
	Allocs    *float64 `json:"allocs,omitempty"` // an operation
	RSS       *int64   `json:"rss_bytes,omitempty"`
	Note      string   `json:"note,omitempty"`
}

// creto is who the subject is; everybody else is a peer.
const creto = "creto"

func newReport(ctx context.Context, subject string) *report {
	return &report{
		Subject: subject, Commit: commit(ctx), CPU: cpu(), Cores: runtime.NumCPU(), Go: runtime.Version(),
		Started: time.Now().UTC().Truncate(time.Second), Rows: []row{},
	}
}

// commit names the source, with "-dirty" if it was changed since.
func commit(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

// cpu names the processor.
func cpu() string {
	file, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	defer func() { _ = file.Close() }()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if key, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

// rss is the process's resident memory.
func rss() *int64 {
	data, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return nil
	}
	fields := strings.Fields(string(data))
	if len(fields) < 2 {
		return nil
	}
	pages, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil {
		return nil
	}
	bytes := pages * int64(os.Getpagesize())
	return &bytes
}

func (r *report) add(rows ...row) { r.Rows = append(r.Rows, rows...) }

// write puts the report into file, whole or not at all.
func (r *report) write(file string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(file+".new", append(data, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// print writes the report for people.
func (r *report) print(w io.Writer) error {
	fmt.Fprintf(w, "%s at %s, %s, %d cores, %s\n\n", r.Subject, r.Commit, r.CPU, r.Cores, r.Go)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "case\twho\tn\tp50\tp99\tp99.9\tper second\tcpu\tallocs\tRSS\t")
	for _, x := range r.Rows {
		fmt.Fprintf(table, "%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", x.Case, x.Who, x.N,
			span(x.P50), span(x.P99), span(x.P999), number(x.PerSecond, 0), span(x.CPU), number(x.Allocs, 1), size(x.RSS))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, x := range r.Rows {
		if x.Note != "" {
			fmt.Fprintf(w, "  %s (%s): %s\n", x.Case, x.Who, x.Note)
		}
	}
	return nil
}

// span prints nanoseconds in a unit that leaves three or four digits.
func span(ns *float64) string {
	switch {
	case ns == nil:
		return "-"
	case *ns < 10e3:
		return strconv.FormatFloat(*ns, 'f', 0, 64) + "ns"
	case *ns < 10e6:
		return strconv.FormatFloat(*ns/1e3, 'f', 1, 64) + "µs"
	}
	return strconv.FormatFloat(*ns/1e6, 'f', 1, 64) + "ms"
}

func number(x *float64, places int) string {
	if x == nil {
		return "-"
	}
	return strconv.FormatFloat(*x, 'f', places, 64)
}

func size(bytes *int64) string {
	if bytes == nil {
		return "-"
	}
	return strconv.FormatInt(*bytes>>20, 10) + "MiB"
}

// percentile returns the smallest of the sorted samples that at least the share
// q of them does not exceed (nearest rank); nil if there are too few for the
// answer to be anything but the maximum.
func percentile(sorted []float64, q float64) *float64 {
	n := len(sorted)
	if n == 0 || !slices.IsSorted(sorted) {
		return nil
	}
	rank := int(math.Ceil(q*float64(n) - 1e-9)) // less what floats add
	if rank > n-1 && n > 1 && q < 1 {
		return nil
	}
	x := sorted[min(max(rank, 1), n)-1]
	return &x
}
