package kek_test

import (
	"encoding/base64"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/pqc/kek"
	"creto.dev/pqc/localpqc"
)

// A key that everybody may read, or may put another in place of, is none. A group is
// the administrator's to choose.
func TestModes(t *testing.T) {
	for _, mode := range []os.FileMode{0o604, 0o602, 0o644, 0o666} {
		dir := t.TempDir()
		open(t, kek.Config{}, dir)
		path := filepath.Join(dir, "kek")
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		refused(t, kek.Config{}, dir, fault.FailedPrecondition, "chmod 600")
		if err := kek.Rewrap(t.Context(), kek.Config{}, byPassphrase("correct horse battery"), dir, localpqc.New()); !errors.Is(err, fault.FailedPrecondition) {
			t.Errorf("mode %o: Rewrap = %v", mode, err)
		}
		if err := os.Chmod(path, 0o660); err != nil {
			t.Fatal(err)
		}
		open(t, kek.Config{}, dir)
	}
}

// A passphrase file that others may read protects nothing.
func TestPassphraseFileMode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "passphrase")
	if err := os.WriteFile(path, []byte("correct horse battery\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := kek.Config{Source: kek.SourcePassphrase, PassphraseFile: path}
	dir := t.TempDir()
	open(t, cfg, dir)
	for mode, allowed := range map[os.FileMode]bool{0o400: true, 0o440: true, 0o640: true, 0o660: true, 0o644: false, 0o602: false} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, err := kek.Open(t.Context(), cfg, dir, localpqc.New())
		if (err == nil) != allowed || err != nil && !errors.Is(err, fault.FailedPrecondition) {
			t.Errorf("mode %o: Open = %v, allowed %v", mode, err, allowed)
		}
	}
}

// White space makes no passphrase longer.
func TestBlankPassphrase(t *testing.T) {
	for _, text := range []string{strings.Repeat(" ", 40), "\t\n\r " + strings.Repeat("\n", 20), "short" + strings.Repeat(" ", 20)} {
		refused(t, byPassphrase(text), t.TempDir(), fault.InvalidArgument, "at least")
	}
}

// The key in a base64key URL is in no error, however wrong it is.
func TestLocalKeyIsNotQuoted(t *testing.T) {
	for _, text := range []string{"c2hvcnQtYnV0LXNlY3JldA==", "not*base64*but*secret", base64.URLEncoding.EncodeToString(make([]byte, 40))} {
		cfg := kek.Config{Source: kek.SourceKMS, KMSURL: creto.NewSecret("base64key://" + text)}
		_, err := kek.Open(t.Context(), cfg, t.TempDir(), localpqc.New())
		if err == nil || strings.Contains(err.Error(), text[:8]) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// The key and the token go to the vault that was named, and nowhere it leads to:
// behind a vault on this machine that may be another machine, in clear.
func TestVaultRedirect(t *testing.T) {
	v, elsewhere := &vault{}, &vault{}
	other := httptest.NewServer(elsewhere)
	defer other.Close()
	redirecting := true
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if redirecting {
			http.Redirect(w, r, other.URL+r.URL.Path, http.StatusTemporaryRedirect)
			return
		}
		v.ServeHTTP(w, r)
	}))
	defer server.Close()
	t.Setenv("VAULT_ADDR", server.URL)
	t.Setenv("VAULT_TOKEN", "s.token")
	t.Setenv("VAULT_MAX_RETRIES", "0")
	cfg := kek.Config{Source: kek.SourceKMS, KMSURL: creto.NewSecret("hashivault://creto")}
	refused(t, cfg, t.TempDir(), fault.FailedPrecondition, "is not followed")
	dir := t.TempDir()
	redirecting = false
	open(t, cfg, dir)
	redirecting = true
	refused(t, cfg, dir, fault.FailedPrecondition, "is not followed")
	if len(elsewhere.requests) > 0 {
		t.Errorf("another server is asked %q", elsewhere.requests)
	}
}
