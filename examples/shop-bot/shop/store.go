package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

// order is one line of the order file.
type order struct {
	ID       string `json:"id"`
	Customer string `json:"customer"`
	Email    string `json:"email"`
	Items    string `json:"items"`
	Total    cents  `json:"total"`
	Currency string `json:"currency"`
	Status   string `json:"status"` // packed, shipped or delivered
	Placed   string `json:"placed"` // a date, as in 2026-10-05
}

// ordersHeader is the first line of the order file.
var ordersHeader = []string{"id", "customer", "email", "items", "total", "currency", "status", "placed"}

// loadOrders reads the order file, by id.
func loadOrders(file string) (map[string]order, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines, err := csv.NewReader(f).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if len(lines) == 0 || !slices.Equal(lines[0], ordersHeader) {
		return nil, fmt.Errorf("%s: the first line must name the columns %v", file, ordersHeader)
	}
	orders := make(map[string]order, len(lines)-1)
	for i, l := range lines[1:] {
		total, err := parseCents(l[4])
		if err != nil {
			return nil, fmt.Errorf("%s: order %d: %w", file, i+1, err)
		}
		if _, twice := orders[l[0]]; twice || l[0] == "" {
			return nil, fmt.Errorf("%s: order %d: id %q is empty or taken", file, i+1, l[0])
		}
		orders[l[0]] = order{
			ID: l[0], Customer: l[1], Email: l[2], Items: l[3],
			Total: total, Currency: l[5], Status: l[6], Placed: l[7],
		}
	}
	return orders, nil
}

// journal is an append-only file of JSON lines.
type journal struct {
	mu     sync.Mutex // guards the rest
	file   *os.File
	lines  int
	broken error // set by a failed write, which may have left half a line
}

// openJournal opens or creates the journal dir/name. A last line without its
// end was never acknowledged (the process died while writing it): it is cut.
func openJournal(dir, name string) (*journal, error) {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(f)
	if err == nil {
		whole := bytes.LastIndexByte(content, '\n') + 1
		if whole < len(content) {
			err = f.Truncate(int64(whole))
		}
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &journal{file: f, lines: bytes.Count(content, []byte("\n"))}, nil
}

// syncDir makes the names in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Append writes the entry that build returns for the next number, counted from
// 1. When it returns, the entry survives a power cut. Safe for concurrent use.
func (j *journal) Append(build func(number int) any) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken != nil {
		return j.broken
	}
	line, err := json.Marshal(build(j.lines + 1))
	if err != nil {
		return err
	}
	if _, err := j.file.Write(append(line, '\n')); err != nil {
		j.broken = err
		return err
	}
	if err := j.file.Sync(); err != nil {
		j.broken = err
		return err
	}
	j.lines++
	return nil
}

// Close closes the file.
func (j *journal) Close() error { return j.file.Close() }
