package secretsource_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/nhi"
	"creto.dev/nhi/secretsource"
)

// canary is a value that must be in no error.
const canary = "canary-41aa"

func check(t *testing.T, source nhi.SecretSource, locator, want string) {
	t.Helper()
	got, err := source.Secret(t.Context(), locator)
	if err != nil || got.Reveal() != want {
		t.Errorf("Secret(%q) = %q, %v; want %q", locator, got.Reveal(), err, want)
	}
}

func refuse(t *testing.T, source nhi.SecretSource, locator string, want fault.Code) {
	t.Helper()
	got, err := source.Secret(t.Context(), locator)
	if !errors.Is(err, want) || !got.IsZero() || strings.Contains(err.Error(), canary) {
		t.Errorf("Secret(%.50q) = %d bytes, %v; want %v", locator, len(got.Reveal()), err, want)
	}
}

func TestParseReference(t *testing.T) {
	for _, text := range []string{"store:shop-key", "env:SHOP_KEY", "file:key", "file:shop/api_key.v2", "vault:kv/shop#api_key", "vault:secret/a/b-c/d#field.1"} {
		if r, err := secretsource.ParseReference(text); err != nil || r.String() != text {
			t.Errorf("ParseReference(%q) = %v, %v", text, r, err)
		}
	}
	for _, text := range []string{
		"", "shop-key", ":x", "store:", "store:A", "store:../x", "env:", "env:1X", "env:A-B", "env:A=B", "file:", "file:/etc/passwd", "file:../x", "file:a/../b", "file:a//b",
		"file:a/", "file:.hidden", "file:a/..", "file:a\x00b", "file:a\\b", "vault:", "vault:kv", "vault:kv/shop", "vault:kv/#x", "vault:kv/shop#", "vault:kv/../sys/x#y", "vault:kv/shop#a#b",
		"vault:/shop#x", "vault:kv/a?version=1#x", "vault:kv/%2e%2e#x", "http://vault/kv#x", "ENV:X", "env:X\n", "file:" + strings.Repeat("x", 2000),
	} {
		if r, err := secretsource.ParseReference(text); !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("ParseReference(%.50q) = %v, %v; want InvalidArgument", text, r, err)
		}
	}
}

// What parses says the same again, and leads nowhere else.
func FuzzParseReference(f *testing.F) {
	for _, seed := range []string{"store:shop-key", "env:SHOP_KEY", "file:shop/key", "vault:kv/shop#api_key", "file:../x", "vault:kv/a?b#c", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := secretsource.ParseReference(text)
		if err != nil {
			if !errors.Is(err, fault.InvalidArgument) {
				t.Errorf("ParseReference(%q) = %v", text, err)
			}
			return
		}
		if r.String() != text {
			t.Errorf("ParseReference(%q) = %q", text, r)
		}
		for part := range strings.SplitSeq(r.Locator, "/") {
			if part == "" || part[0] == '.' || strings.ContainsAny(part, "\\?%& \x00\n") {
				t.Errorf("ParseReference(%q) accepts the part %q", text, part)
			}
		}
	})
}

func TestEnv(t *testing.T) {
	variables := map[string]string{"CRETO_SECRET_A": canary, "CRETO_SECRET_EMPTY": "", "CRETO_SECRET_BIG": strings.Repeat("x", nhi.MaxSecretBytes+1), "HOME": canary, "PATH": canary}
	source, err := secretsource.NewEnv("CRETO_SECRET_", func(name string) (string, bool) { v, ok := variables[name]; return v, ok })
	if err != nil {
		t.Fatal(err)
	}
	check(t, source, "CRETO_SECRET_A", canary)
	refuse(t, source, "CRETO_SECRET_B", fault.NHISecretNotFound)
	refuse(t, source, "CRETO_SECRET_EMPTY", fault.NHISecretNotFound)
	refuse(t, source, "CRETO_SECRET_BIG", fault.FailedPrecondition)
	for _, name := range []string{"HOME", "PATH", "", "creto_secret_A", "CRETO_SECRET_A=", "XCRETO_SECRET_A"} {
		refuse(t, source, name, fault.NHISecretAccessDenied)
	}
	for _, prefix := range []string{"", "1", "A-", "*"} {
		if _, err := secretsource.NewEnv(prefix, os.LookupEnv); !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("NewEnv(%q) = %v, want InvalidArgument", prefix, err)
		}
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	inside := filepath.Join(dir, "secrets")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(path, text string, mode os.FileMode) {
		t.Helper()
		must(os.MkdirAll(filepath.Dir(path), 0o700))
		must(os.WriteFile(path, []byte(text), mode))
		must(os.Chmod(path, mode))
	}
	at := func(name string) string { return filepath.Join(inside, name) }
	write(at("key"), canary+"\n", 0o600)
	write(at("shop/windows"), canary+"\r\n", 0o400)
	write(at("lines"), "a\nb\n\n", 0o640)
	write(at("full"), strings.Repeat("x", nhi.MaxSecretBytes), 0o600)
	write(at("large"), strings.Repeat("x", nhi.MaxSecretBytes+1), 0o600)
	write(at("huge"), strings.Repeat("x", 1<<20), 0o600)
	write(at("empty"), "\n", 0o600)
	write(at("readable"), canary, 0o644)
	write(at("writable"), canary, 0o620)
	write(filepath.Join(dir, "outside"), canary, 0o600)
	must(os.Symlink("key", at("link")))
	must(os.Symlink("../outside", at("escape")))
	must(os.Symlink(filepath.Join(dir, "outside"), at("absolute")))
	must(os.Symlink("..", at("up")))
	must(os.Mkdir(at("folder"), 0o700))
	must(syscall.Mkfifo(at("pipe"), 0o600))

	source, err := secretsource.OpenFiles(inside)
	must(err)
	defer func() { must(source.Close()) }()
	check(t, source, "key", canary)
	check(t, source, "link", canary) // as Kubernetes mounts them
	check(t, source, "shop/windows", canary)
	check(t, source, "lines", "a\nb\n")
	check(t, source, "full", strings.Repeat("x", nhi.MaxSecretBytes))
	for _, name := range []string{"none", "empty", "shop/none", "../outside", "", ".", "..", "/etc/passwd", "shop/../../outside", "a\x00b"} {
		refuse(t, source, name, fault.NHISecretNotFound)
	}
	for _, name := range []string{"escape", "absolute", "up/outside"} {
		refuse(t, source, name, fault.NHISecretAccessDenied)
	}
	for _, name := range []string{"large", "huge", "readable", "writable", "folder", "pipe"} {
		refuse(t, source, name, fault.FailedPrecondition)
	}
	if os.Geteuid() == 0 {
		must(os.Chown(at("key"), 12345, 0))
		refuse(t, source, "key", fault.FailedPrecondition)
		must(os.Chown(at("key"), 0, 0))
	}
	for mode, want := range map[os.FileMode]error{0o777: fault.FailedPrecondition, 0o770: fault.FailedPrecondition, 0o777 | os.ModeSticky: nil, 0o755: nil} {
		must(os.Chmod(inside, mode))
		again, err := secretsource.OpenFiles(inside)
		if !errors.Is(err, want) {
			t.Errorf("OpenFiles of a directory of mode %v = %v, want %v", mode, err, want)
		}
		if err == nil {
			must(again.Close())
		}
	}
	if _, err := secretsource.OpenFiles(filepath.Join(dir, "nowhere")); !errors.Is(err, fault.Unavailable) {
		t.Errorf("OpenFiles of nothing = %v, want Unavailable", err)
	}
}

// counted is a source that counts.
type counted struct {
	calls atomic.Int32
	err   error
}

func (c *counted) Secret(context.Context, string) (creto.Secret, error) {
	c.calls.Add(1)
	return creto.NewSecret(canary), c.err
}

func TestCache(t *testing.T) {
	source := &counted{}
	if got := secretsource.NewCache(source, 0); got != nhi.SecretSource(source) {
		t.Error("without a ttl something is kept")
	}
	for ttl, kept := range map[time.Duration]time.Duration{10 * time.Second: 10 * time.Second, time.Hour: secretsource.MaxCacheTTL} {
		synctest.Test(t, func(t *testing.T) {
			source := &counted{}
			kept := kept - time.Second
			cache := secretsource.NewCache(source, ttl)
			check(t, cache, "a", canary)
			time.Sleep(kept)
			check(t, cache, "a", canary)
			if n := source.calls.Load(); n != 1 {
				t.Errorf("after %v the source was asked %d times, want once", kept, n)
			}
			check(t, cache, "b", canary)
			time.Sleep(2 * time.Second)
			check(t, cache, "a", canary)
			if n := source.calls.Load(); n != 3 {
				t.Errorf("after %v the source was asked %d times, want 3", kept+2*time.Second, n)
			}
			time.Sleep(2 * time.Minute)
		})
	}
	failing := &counted{err: fault.New("test", fault.NHIUnavailable, "down")}
	cache := secretsource.NewCache(failing, time.Second)
	for range 2 {
		refuse(t, cache, "a", fault.NHIUnavailable)
	}
	if n := failing.calls.Load(); n != 2 {
		t.Errorf("an error is kept: %d calls", n)
	}
}
