package export_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"creto.dev/audit/export"
	"creto.dev/call"
	"creto.dev/fault"
)

const (
	s3Key    = "test-key"
	s3Secret = "canary-secret-91c2"
)

// versitygw builds the S3 server that tools/s3 pins, once.
var versitygw = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("go", "tool", "-n", "-modfile=../../tools/s3/go.mod", "versitygw").Output()
	return strings.TrimSpace(string(out)), err
})

// s3 starts an S3 server that checks signatures, with one bucket, and returns its
// parameters for a URL.
func s3(t *testing.T) (dir, parameters string) {
	t.Helper()
	program, err := versitygw()
	if err != nil {
		if os.Getenv("CRETO_TEST_REQUIRE") == "1" {
			t.Fatal(err)
		}
		t.Skipf("the S3 server of tools/s3 cannot be built: %v", err)
	}
	dir = t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "records"), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	server := exec.Command(program, "--access", s3Key, "--secret", s3Secret, "--port", address, "--region", "us-east-1", "posix", "--sidecar", t.TempDir(), dir)
	var said bytes.Buffer
	server.Stdout, server.Stderr = &said, &said
	server.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		response, err := http.DefaultClient.Get("http://" + address)
		if err == nil {
			_ = response.Body.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the S3 server does not start: %v\n%s", err, said.String())
		}
	}
	t.Setenv("AWS_ACCESS_KEY_ID", s3Key)
	t.Setenv("AWS_SECRET_ACCESS_KEY", s3Secret)
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_CONFIG_FILE", os.DevNull)
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", os.DevNull)
	return filepath.Join(dir, "records"), "?region=us-east-1&use_path_style=true&endpoint=http://" + address
}

// A batch is one object, and the same one when it is written again.
func TestBucket(t *testing.T) {
	dir, parameters := s3(t)
	d, err := export.NewBucket(t.Context(), export.JSONLines, origin, "s3://records/audit/log"+parameters)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	s := &source{list: entries(0, 25)}
	for range 2 {
		if err := export.Run(t.Context(), s, d, &export.Memory{}, export.Options{Batch: 10}); err != nil {
			t.Fatal(err)
		}
	}
	names, err := filepath.Glob(filepath.Join(dir, "audit/log/*"))
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range names {
		names[i] = filepath.Base(name)
	}
	want := []string{
		"00000000000000000000-00000000000000000009.jsonl.gz", "00000000000000000010-00000000000000000019.jsonl.gz", "00000000000000000020-00000000000000000024.jsonl.gz",
	}
	if !slices.Equal(names, want) {
		t.Fatalf("the bucket has %q, want %q", names, want)
	}
	index := int64(0)
	for _, name := range names {
		f, err := os.Open(filepath.Join(dir, "audit/log", name))
		if err != nil {
			t.Fatal(err)
		}
		zip, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		for lines := bufio.NewScanner(zip); lines.Scan(); index++ {
			var l export.Line
			if err := json.Unmarshal(lines.Bytes(), &l); err != nil || l.Index != index {
				t.Fatalf("line %d of %s is %.40q…, %v", index, name, lines.Text(), err)
			}
		}
		if _, err := io.Copy(io.Discard, zip); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	if index != 25 {
		t.Errorf("%d lines, want 25", index)
	}
}

// Credentials that do not do, and a bucket that is not there, are no matter of
// patience, and said without the secret.
func TestBucketRefuses(t *testing.T) {
	_, parameters := s3(t)
	run := func(where string) error {
		d, err := export.NewBucket(t.Context(), export.JSONLines, origin, where)
		if err != nil {
			return err
		}
		defer func() { _ = d.Close() }()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		return export.Run(ctx, &source{list: entries(0, 1)}, d, &export.Memory{}, export.Options{Policy: call.Policy{Attempts: 1}})
	}
	refused := func(what, where string, code fault.Code, says string) {
		t.Helper()
		err := run(where)
		if fault.CodeOf(err) != code || !strings.Contains(fault.Message(err), says) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s = %v (%q), want %v that says %q", what, err, fault.Message(err), code, says)
		}
	}
	refused("another bucket", "s3://nothing"+parameters, fault.FailedPrecondition, "there is no bucket nothing")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "canary-wrong")
	refused("another secret", "s3://records"+parameters, fault.FailedPrecondition, "does not accept the credentials")
	t.Setenv("AWS_ACCESS_KEY_ID", "nobody")
	refused("another key", "s3://records"+parameters, fault.FailedPrecondition, "does not accept the credentials")
	refused("no server", "s3://records?region=us-east-1&use_path_style=true&endpoint=http://127.0.0.1:1", fault.Unavailable, "cannot be written")
	for _, where := range []string{"s3://", "s3://key:canary@records", "s3://records?nonsense=1"} {
		if err := run(where); !errors.Is(err, fault.InvalidArgument) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s = %v, want InvalidArgument", where, err)
		}
	}
}
