package sandboxtest

import (
	"bytes"
	"crypto/rand"
	_ "embed"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"creto.dev/sandbox"
)

func rand8() string { return rand.Text()[:8] }

// golden is what is readable inside, on any Debian machine.
//
//go:embed testdata/tree.golden
var golden string

// showsTree compares what is readable with the golden file.
func (s *suite) showsTree(t *testing.T) {
	spec := s.spec(t, "./probe", "tree")
	if err := os.WriteFile(filepath.Join(spec.GatewayDir, sandbox.SocketName), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	got := strings.Split(strings.TrimSpace(s.ok(t, spec)), "\n")
	top := "/" + strings.Split(spec.Dir, "/")[1] + "/" // where the working directory is
	var want, optional []string
	for line := range strings.Lines(golden) {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "? "); ok {
			optional = append(optional, rest)
		} else if line != "" && !strings.HasPrefix(line, "#") {
			want = append(want, line)
		}
	}
	for _, line := range want {
		if !slices.Contains(got, line) {
			t.Errorf("%s is not there", line)
		}
	}
	for _, line := range got {
		known := slices.Contains(want, line) || line == top
		for _, pattern := range optional {
			ok, _ := path.Match(pattern, line) // a malformed pattern matches nothing
			known = known || ok
		}
		if !known {
			t.Errorf("%s is readable and not in the golden file", line)
		}
	}
}

// hidesHost looks for what must not be there.
func (s *suite) hidesHost(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("host-secret-file"), 0o644); err != nil {
		t.Fatal(err)
	}
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("CRETO_TEST_SECRET", "host-secret-environment")
	spec := s.sh(t, "")
	if strings.HasPrefix(spec.Dir, wd) {
		wd = "" // stands inside too, above the working directory
	}
	spec.Command[2] = `
for d in /var /home /root /boot /srv /opt /mnt /media ` + wd + ` /etc/shadow /etc/ssh /etc/sudoers /etc/ssl/private /dev/mem /dev/kvm /dev/vda /dev/sda /dev/nvme0 /dev/fd0 /proc/1/root/etc /proc/` + strconv.Itoa(os.Getpid()) + ` ` + secret + `; do
	[ -e $d ] && echo "there: $d"
done
ls /proc | grep -E '^[0-9]+$' | wc -l
env | grep -i '[s]ecret'
cat /proc/*/environ 2>/dev/null | tr '\0' '\n' | grep -i '[h]ost-secret'
cat /proc/*/cmdline 2>/dev/null | tr '\0' '\n' | grep -i '[s]andboxtest'
hostname
true`
	out := s.ok(t, spec)
	if strings.Contains(out, "there:") || strings.Contains(out, "secret") || strings.Contains(out, "sandboxtest") {
		t.Errorf("the host shows:\n%s", out)
	}
	if !strings.Contains(out, spec.ID) {
		t.Errorf("the host name is not %q:\n%s", spec.ID, out)
	}
	if first := strings.Fields(out)[0]; len(first) > 1 {
		t.Errorf("%s processes are visible inside", first)
	}
}

// runsPrograms runs what agents are written in, where the host has it.
func (s *suite) runsPrograms(t *testing.T) {
	for _, c := range []struct {
		program string
		command []string
		want    string
	}{
		{"/usr/bin/python3", []string{"python3", "-c", "import ssl, json, sqlite3; print(len(ssl.create_default_context().get_ca_certs()) > 0)"}, "True"},
		{"/usr/bin/java", []string{"java", "-version"}, "version"},
		{"/usr/bin/node", []string{"node", "-e", "console.log(6*7)"}, "42"},
		{"/usr/bin/git", []string{"git", "init", "-q", "x"}, ""},
		{"/usr/bin/perl", []string{"perl", "-e", "print 6*7"}, "42"},
	} {
		if _, err := os.Stat(c.program); err != nil {
			continue
		}
		if out := s.ok(t, s.spec(t, c.command...)); !strings.Contains(out, c.want) {
			t.Errorf("Run(%q) prints %q, want %q", c.command, out, c.want)
		}
	}
}

// discardsChanges writes, moves and deletes in the working directory.
func (s *suite) discardsChanges(t *testing.T) {
	spec := s.sh(t, `
set -e
echo new > made; echo changed > old; rm gone; mv dir moved; mkdir dir; echo x > dir/file
ln -s /etc/passwd link; chmod 700 old
cat made old dir/file moved/inner; ls; [ ! -e gone ]`)
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(spec.Dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(spec.Dir, "dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	write("old", "old\n")
	write("gone", "gone\n")
	write("dir/inner", "inner\n")
	before := snapshot(t, spec.Dir)
	out := s.ok(t, spec)
	for _, want := range []string{"new", "changed", "x", "inner", "moved"} {
		if !strings.Contains(out, want) {
			t.Errorf("inside, %q is missing:\n%s", want, out)
		}
	}
	if after := snapshot(t, spec.Dir); after != before {
		t.Errorf("the host's directory changed from\n%s\nto\n%s", before, after)
	}
}

func snapshot(t testing.TB, dir string) string {
	t.Helper()
	var b bytes.Buffer
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		b.WriteString(strings.TrimPrefix(path, dir) + " " + info.Mode().String() + " " + info.ModTime().String() + " " + strconv.Itoa(int(info.Size())) + "\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// keepsChanges writes where changes are kept: beside the working directory, in
// it, and it itself.
func (s *suite) keepsChanges(t *testing.T) {
	beside := t.TempDir()
	spec := s.sh(t, "echo kept > out/file; echo kept > "+beside+"/file; echo gone > file; touch out/later; rm out/later")
	out := filepath.Join(spec.Dir, "out")
	if err := os.Mkdir(out, 0o755); err != nil {
		t.Fatal(err)
	}
	spec.Write = []string{out, beside, out}
	s.ok(t, spec)
	for _, dir := range []string{out, beside} {
		data, err := os.ReadFile(filepath.Join(dir, "file"))
		if err != nil || string(data) != "kept\n" {
			t.Errorf("%s/file holds %q, %v, want it kept", dir, data, err)
		}
	}
	if _, err := os.Stat(filepath.Join(spec.Dir, "file")); err == nil {
		t.Error("a change outside of write was kept")
	}

	spec = s.sh(t, "echo kept > file")
	spec.Write = []string{spec.Dir}
	s.ok(t, spec)
	if _, err := os.Stat(filepath.Join(spec.Dir, "file")); err != nil {
		t.Errorf("a change in the working directory that is kept is lost: %v", err)
	}
}

// masksData has the data directory inside the working directory.
func (s *suite) masksData(t *testing.T) {
	spec := s.sh(t, "cat data/secret data/sub/secret; ls -A data; echo x > data/new; chmod 755 data; umount data; mv data elsewhere; cat data/secret; cat elsewhere/secret; true")
	data := filepath.Join(spec.Dir, "data")
	if err := os.MkdirAll(filepath.Join(data, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"secret", "sub/secret"} {
		if err := os.WriteFile(filepath.Join(data, name), []byte("node-key"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	spec.DataDir = data
	if out := s.ok(t, spec); strings.Contains(out, "node-key") {
		t.Errorf("the data directory is readable:\n%s", out)
	}
	if _, err := os.Stat(filepath.Join(data, "new")); err == nil {
		t.Error("the data directory is writable")
	}
}
