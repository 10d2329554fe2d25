package main_test

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// block is a piece of the tour: commands, and what they print.
type block struct {
	line     int // of the commands, in the README
	commands string
	output   string
	checked  bool
}

// tour collects the blocks of a README that are marked as "sh run", each with the
// block behind it if that is marked as "text output".
func tour(readme string) []block {
	var blocks []block
	var info string
	var text strings.Builder
	lines := bufio.NewScanner(strings.NewReader(readme))
	for number := 1; lines.Scan(); number++ {
		fence, fenced := strings.CutPrefix(lines.Text(), "```")
		switch {
		case !fenced && info != "":
			text.WriteString(lines.Text() + "\n")
		case fenced && info == "":
			info = strings.TrimSpace(fence)
			if info == "" {
				info = "plain"
			}
			text.Reset()
			if info == "sh run" {
				blocks = append(blocks, block{line: number})
			}
		case fenced:
			switch last := len(blocks) - 1; {
			case info == "sh run":
				blocks[last].commands = text.String()
			case info == "text output" && last >= 0 && !blocks[last].checked:
				blocks[last].output, blocks[last].checked = text.String(), true
			}
			info = ""
		}
	}
	return blocks
}

// matches compares output with what a README expects of it, line by line: … in a
// line stands for anything, and a line that is only … for any lines.
func matches(want, got string) error {
	lines := func(text string) []string { return strings.Split(strings.TrimRight(text, "\n"), "\n") }
	anything := func(line string) bool { return strings.TrimSpace(line) == "…" }
	var match func(want, got []string) (int, bool) // and how far it came
	match = func(want, got []string) (int, bool) {
		if len(want) == 0 {
			return 0, len(got) == 0
		}
		if anything(want[0]) {
			far := 0
			for skip := range len(got) + 1 {
				n, ok := match(want[1:], got[skip:])
				if ok {
					return 0, true
				}
				far = max(far, n+1)
			}
			return far, false
		}
		pattern := strings.ReplaceAll(regexp.QuoteMeta(strings.TrimRight(want[0], " ")), "…", ".*")
		if len(got) == 0 || !regexp.MustCompile("^"+pattern+"$").MatchString(strings.TrimRight(got[0], " ")) {
			return 0, false
		}
		n, ok := match(want[1:], got[1:])
		return n + 1, ok
	}
	all := lines(want)
	if far, ok := match(all, lines(got)); !ok {
		next := "the end"
		if far < len(all) {
			next = fmt.Sprintf("%q", all[far])
		}
		return fmt.Errorf("the output does not go on with %s", next)
	}
	return nil
}

func TestMatches(t *testing.T) {
	for _, test := range []struct {
		name, want, got string
		ok              bool
	}{
		{"the same", "a\nb\n", "a\nb\n", true},
		{"part of a line", "a … c\n", "a bb c\n", true},
		{"any lines", "a\n…\nd\n", "a\nb\nc\nd\n", true},
		{"no lines", "a\n…\nd\n", "a\nd\n", true},
		{"any end", "a\n…\n", "a\nb\n", true},
		{"a line too many", "a\n", "a\nb\n", false},
		{"a line too few", "a\nb\n", "a\n", false},
		{"a meta character", "a.c\n", "abc\n", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := matches(test.want, test.got); (err == nil) != test.ok {
				t.Errorf("matches(%q, %q) = %v, want ok %v", test.want, test.got, err, test.ok)
			}
		})
	}
}

// tourPort finds those that the tour's node and its example take.
var tourPort = regexp.MustCompile(`(?:127\.0\.0\.1|localhost):(\d{4,5})`)

// TestTour types the README's tour and compares what comes.
func TestTour(t *testing.T) {
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		skip(t, "there is no README: %v", err)
	}
	blocks := tour(string(readme))
	if len(blocks) == 0 {
		skip(t, "the README has no block marked as \"sh run\"")
	}
	needSandbox(t)
	for _, program := range []string{"bash", "curl", "awk"} {
		if _, err := exec.LookPath(program); err != nil {
			skip(t, "needs %s; install it with: make debian", program)
		}
	}
	if err := buildExample(); err != nil {
		skip(t, "the example cannot be built; run: make build (%v)", err)
	}
	ports := []string{"7300"}
	for _, m := range tourPort.FindAllStringSubmatch(string(readme), -1) {
		ports = append(ports, m[1])
	}
	slices.Sort(ports)
	for _, port := range slices.Compact(ports) {
		l, err := net.Listen("tcp", "localhost:"+port)
		if err != nil {
			skip(t, "the tour's port %s is taken; stop what uses it", port)
		}
		_ = l.Close()
	}

	// What the tour sees of the repository, with the programs of this test: its
	// `make build` has nothing to do.
	home := t.TempDir()
	checkout := filepath.Join(home, "creto")
	err = os.MkdirAll(filepath.Join(checkout, "examples"), 0o755)
	if err == nil {
		err = os.CopyFS(filepath.Join(checkout, "examples", "shop-bot"), os.DirFS(filepath.Join(root, "examples", "shop-bot")))
	}
	if err == nil {
		err = os.Symlink(bin, filepath.Join(checkout, "bin"))
	}
	if err != nil {
		t.Fatal(err)
	}
	const mark = "--- of line"
	var script strings.Builder
	script.WriteString("set -e\nmake() { test \"$*\" = build; }\n")
	for _, b := range blocks {
		fmt.Fprintf(&script, "echo '%s %d'\n%s", mark, b.line, b.commands)
	}
	cmd := exec.CommandContext(t.Context(), "bash", "-c", script.String())
	cmd.Dir, cmd.Env = checkout, environment(home)
	// What a tour that fails leaves running goes with its process group.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	defer func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }()
	p := background(t, cmd)
	<-p.done
	printed := map[string]string{}
	for part := range strings.SplitSeq(p.out.String(), mark+" ") {
		line, text, _ := strings.Cut(part, "\n")
		printed[line] = text
	}
	for _, b := range blocks {
		got, ok := printed[fmt.Sprint(b.line)]
		if !ok {
			t.Errorf("README.md:%d: the tour did not come here", b.line)
			continue
		}
		if b.checked {
			if err := matches(b.output, got); err != nil {
				t.Errorf("README.md:%d: %v. It is:\n%s", b.line, err, got)
			}
		}
	}
	if p.err != nil {
		t.Errorf("the tour ended with %v. Its last words:\n%s", p.err, p.out.String())
	}
}
