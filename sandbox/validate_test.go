package sandbox_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/sandbox"
)

func spec(t *testing.T) sandbox.Spec {
	t.Helper()
	return sandbox.Spec{
		ID: "run-1", Agent: creto.ID{TrustDomain: "test", Tenant: creto.DefaultTenant, Kind: creto.KindAgent, Name: "bot"},
		Command: []string{"true"}, Dir: t.TempDir(), GatewayDir: t.TempDir(),
	}
}

func TestResolve(t *testing.T) {
	s := spec(t)
	real := s.Dir
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	b, a := t.TempDir(), t.TempDir()
	s.Dir, s.Write = link, []string{b, a, b}
	got, err := s.Resolve()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{a, b}
	slices.Sort(want)
	if got.Dir != real || !slices.Equal(got.Write, want) {
		t.Errorf("Resolve = %q, %q, want %q, %q", got.Dir, got.Write, real, want)
	}
	if s.Dir != link || s.Write[0] != b {
		t.Errorf("Resolve changed its receiver: %+v", s)
	}
	if l := got.Limits; l.MemoryBytes != sandbox.DefaultMemoryBytes || l.Processes == 0 || l.OpenFiles == 0 || l.DiskBytes == 0 || l.CPUMillis != 0 || l.WallClock != 0 {
		t.Errorf("default limits = %+v", l)
	}
}

func TestValidate(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	mkdir := func(path string) string {
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	symlink := func(target string) string {
		link := filepath.Join(t.TempDir(), "link")
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
		return link
	}
	project := mkdir(filepath.Join(home, "project"))
	data := mkdir(filepath.Join(project, "data"))
	deep := mkdir(filepath.Join(data, "deep"))
	file := filepath.Join(project, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func(*sandbox.Spec)
		reason string // empty if valid
	}{
		{"valid", func(*sandbox.Spec) {}, ""},
		{"project in a home", func(s *sandbox.Spec) { s.Dir = project }, ""},
		{"data in dir", func(s *sandbox.Spec) { s.Dir, s.DataDir = project, data }, ""},
		{"write beside data", func(s *sandbox.Spec) { s.DataDir, s.Write = data, []string{mkdir(project + "/out")} }, ""},
		{"similar name", func(s *sandbox.Spec) { s.DataDir, s.Write = data, []string{mkdir(project + "/data2")} }, ""},
		{"home", func(s *sandbox.Spec) { s.Dir = home }, "home directory"},
		{"above a home", func(s *sandbox.Spec) { s.Dir = filepath.Dir(home) }, "home directory"},
		{"hidden in a home", func(s *sandbox.Spec) { s.Dir = mkdir(home + "/.ssh") }, "hidden"},
		{"below hidden in a home", func(s *sandbox.Spec) { s.Write = []string{mkdir(home + "/.config/autostart")} }, "hidden"},
		{"home by a link", func(s *sandbox.Spec) { s.Dir = symlink(home) }, "home directory"},
		{"write to a home", func(s *sandbox.Spec) { s.Write = []string{home} }, "home directory"},
		{"root", func(s *sandbox.Spec) { s.Dir = "/" }, "choose a project directory"},
		{"etc", func(s *sandbox.Spec) { s.Dir = "/etc" }, "choose a project directory"},
		{"below usr", func(s *sandbox.Spec) { s.Dir = "/usr/share" }, "choose a project directory"},
		{"usr by a link", func(s *sandbox.Spec) { s.Dir = symlink("/usr/share") }, "choose a project directory"},
		{"proc", func(s *sandbox.Spec) { s.Dir = "/proc/self" }, "choose a project directory"},
		{"tmp", func(s *sandbox.Spec) { s.Dir = "/tmp" }, "choose a project directory"},
		{"var", func(s *sandbox.Spec) { s.Dir = "/var/lib" }, "choose a project directory"},
		{"write to the system", func(s *sandbox.Spec) { s.Write = []string{"/usr/local"} }, "choose a project directory"},
		{"dot dot", func(s *sandbox.Spec) { s.Dir = project + "/../../../../../../../../etc" }, "choose a project directory"},
		{"dir is data", func(s *sandbox.Spec) { s.Dir, s.DataDir = data, data }, "lies in the data directory"},
		{"dir in data", func(s *sandbox.Spec) { s.Dir, s.DataDir = deep, data }, "lies in the data directory"},
		{"dir in data by a link", func(s *sandbox.Spec) { s.Dir, s.DataDir = deep, symlink(data) }, "lies in the data directory"},
		{"write is data", func(s *sandbox.Spec) { s.DataDir, s.Write = data, []string{data} }, "overlaps"},
		{"write in data", func(s *sandbox.Spec) { s.DataDir, s.Write = data, []string{deep} }, "overlaps"},
		{"write above data", func(s *sandbox.Spec) { s.DataDir, s.Write = data, []string{project} }, "overlaps"},
		{"write by a link in data", func(s *sandbox.Spec) { s.DataDir, s.Write = data, []string{symlink(deep)} }, "overlaps"},
		{"write over the gateway", func(s *sandbox.Spec) { s.Write = []string{s.GatewayDir} }, "overlaps"},
		{"missing", func(s *sandbox.Spec) { s.Dir = project + "/none" }, "cannot be resolved"},
		{"a file", func(s *sandbox.Spec) { s.Dir = file }, "not a directory"},
		{"relative", func(s *sandbox.Spec) { s.Write = []string{"out"} }, "not an absolute path"},
		{"no gateway", func(s *sandbox.Spec) { s.GatewayDir = "" }, "gateway dir"},
		{"zero byte", func(s *sandbox.Spec) { s.Command = []string{"a\x00b"} }, "zero byte"},
		{"negative grace", func(s *sandbox.Spec) { s.Grace = -1 }, "negative"},
		{"negative limit", func(s *sandbox.Spec) { s.Limits.MemoryBytes = -1 }, "memory_bytes"},
		{"long id", func(s *sandbox.Spec) { s.ID = strings.Repeat("a", 64) }, "id"},
		{"id like a flag", func(s *sandbox.Spec) { s.ID = "-rf" }, "id"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := spec(t)
			c.change(&s)
			err := s.Validate()
			switch {
			case c.reason == "" && err != nil:
				t.Errorf("Validate() = %v, want nil", err)
			case c.reason != "" && (!errors.Is(err, fault.InvalidArgument) || !strings.Contains(fault.Message(err), c.reason)):
				t.Errorf("Validate() = %v, want InvalidArgument with %q", err, c.reason)
			}
		})
	}

	err := sandbox.Spec{}.Validate()
	for _, field := range []string{"id", "agent", "command", "dir", "gateway dir"} {
		if !strings.Contains(fault.Message(err), field+":") {
			t.Errorf("the zero Spec's errors do not name %s: %v", field, err)
		}
	}
}
