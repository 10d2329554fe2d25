package main

import (
	"log/slog"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Only what is private, of this file, and never written is dropped: what a program
// wrote would be lost.
func TestUnwritten(t *testing.T) {
	const file = "/usr/bin/creto"
	for line, want := range map[string]bool{
		"00400000-01ce1000 r-xp 00000000 fe:00 99    /usr/bin/creto":             true,
		"01ce1000-0378c000 r--p 018e1000 fe:00 99    /usr/bin/creto":             true,
		"0378c000-03888000 rw-p 0338c000 fe:00 99    /usr/bin/creto":             false,
		"0378c000-03888000 rwxp 0338c000 fe:00 99    /usr/bin/creto":             false,
		"0378c000-03888000 r--s 0338c000 fe:00 99    /usr/bin/creto":             false,
		"00400000-01ce1000 r-xp 00000000 fe:00 99    /usr/bin/creto2":            false,
		"00400000-01ce1000 r-xp 00000000 fe:00 99    /other/usr/bin/creto":       false,
		"00400000-01ce1000 r-xp 00000000 fe:00 99    /usr/bin/creto (deleted)":   false,
		"7f3e89bbe000-7f3e8a000000 r--p 00000000 00:00 0":                        false,
		"7ffd1000-7ffd2000 r-xp 00000000 00:00 0                         [vdso]": false,
		"01ce1000-00400000 r-xp 00000000 fe:00 99    /usr/bin/creto":             false,
		"x-y r-xp 00000000 fe:00 99    /usr/bin/creto":                           false,
		"": false,
	} {
		begin, end, ok := unwritten(line, file)
		if ok != want || ok && (begin == 0 || end <= begin) {
			t.Errorf("%q: %x-%x, %v, want %v", line, begin, end, ok, want)
		}
	}
}

// The program runs on, with less of its file mapped.
func TestSettle(t *testing.T) {
	before := mapped(t)
	stop := settle(slog.New(slog.DiscardHandler), 0)
	if after := mapped(t); after >= before*3/4 {
		t.Errorf("%d KiB of files are mapped, %d before", after, before)
	}
	stop()
	settle(slog.New(slog.DiscardHandler), time.Hour)() // does not wait for what has not begun
}

// mapped returns how much of files is mapped and resident, in KiB.
func mapped(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "RssFile:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}
