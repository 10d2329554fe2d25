package serve_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"creto.dev/fault"
	wiretestv1 "creto.dev/internal/gen/creto/wiretest/v1"
	"creto.dev/internal/wire"
	"creto.dev/internal/wire/wiretest"
)

// bomb is JSON of size bytes, compressed.
func bomb(t *testing.T, size int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := io.WriteString(w, `{"text":"`+strings.Repeat("a", size)+`"}`)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Nobody makes the node unpack more than a message may have, least of all whom it
// does not know.
func TestCompressedRequests(t *testing.T) {
	n := startWith(t, contracts)
	send := func(t *testing.T, path, encoding, token string, body []byte) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+n.address+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Content-Encoding", encoding)
		if path == connectPath {
			r.Header.Set("Connect-Protocol-Version", "1")
		}
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		response, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = response.Body.Close() }()
		text, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, string(text)
	}
	const size = 256 << 20
	huge, small := bomb(t, size), bomb(t, 1000)
	for _, path := range []string{restPath, connectPath} {
		if status, text := send(t, path, "gzip", "admin", small); status != 200 || !strings.Contains(text, "aaa for anna") {
			t.Errorf("%s: a small one: %d %.100s", path, status, text)
		}
		for _, token := range []string{"", "admin"} {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			status, text := send(t, path, "gzip", token, huge)
			runtime.ReadMemStats(&after)
			if status != http.StatusTooManyRequests {
				t.Errorf("%s: %d bytes that unpack to %d: %d %.200s", path, len(huge), size, status, text)
			}
			if used := after.TotalAlloc - before.TotalAlloc; used > size/4 {
				t.Errorf("%s: %d bytes took %d of memory, token %q", path, len(huge), used, token)
			}
		}
		if status, text := send(t, path, "gzip", "admin", []byte("no gzip")); status != http.StatusBadRequest {
			t.Errorf("%s: what is no gzip: %d %.200s", path, status, text)
		}
	}
	_ = n.admin.take()
}

// chat is a conversation that ends when its client does.
func (e echo) Chat(s wiretestv1.EchoService_ChatServer) error {
	for {
		in, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.Send(&wiretestv1.ChatResponse{Text: in.GetText()}); err != nil {
			return err
		}
	}
}

// A conversation has no end to wait for: when the node stops, it is ended at once,
// also while its client is silent, and the client is told to go elsewhere.
func TestConversationsEndWithTheNode(t *testing.T) {
	n := startWith(t, contracts)
	conn := wiretest.Dial(t, wire.Config{Address: "unix:" + n.socket})
	stream, err := wiretestv1.NewEchoServiceClient(conn).Chat(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"one", "two"} {
		if err := stream.Send(&wiretestv1.ChatRequest{Text: text}); err != nil {
			t.Fatal(err)
		}
		if out, err := stream.Recv(); err != nil || out.GetText() != text {
			t.Fatalf("Recv = %v, %v, want %s", out, err, text)
		}
	}
	began := time.Now()
	if err := n.stop(); err != nil {
		t.Errorf("Run = %v", err)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("stopping took %v", took)
	}
	if _, err := stream.Recv(); !errors.Is(err, fault.Unavailable) {
		t.Errorf("the conversation ended with %v", err)
	}
}

// The port leaves half of the process's files to everything else; the socket,
// which only the owner has, is not bounded.
func TestPortIsBounded(t *testing.T) {
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	few := before
	few.Cur = 256
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &few); err != nil {
		t.Skip(err)
	}
	n := start(t)
	n.do(t, "GET", "/health", "", nil) // it runs, with the bound that it found
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	dial := func(network, address string) net.Conn {
		conn, err := net.Dial(network, address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	for range few.Cur / 2 {
		dial("tcp", n.address)
	}
	late := dial("tcp", n.address)
	_ = late.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := late.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one more than the port may have: %v, want that it is closed at once", err)
	}
	for range few.Cur / 2 {
		dial("unix", n.socket)
	}
	if _, err := n.client(t, n.socket, "").Status(t.Context()); err != nil {
		t.Errorf("over the socket: %v", err)
	}
}
