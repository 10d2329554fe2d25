package provider_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"creto.dev/fault"
	"creto.dev/inference"
	"creto.dev/inference/provider"
)

// talk is an upstream of which each connection is served by a function, which hears
// what number it has.
func talk(t *testing.T, serve func(n int, c net.Conn, r *bufio.Reader)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				serve(n, c, bufio.NewReader(c))
			}()
		}
	}()
	return "http://" + l.Addr().String()
}

// heard reads one request.
func heard(r *bufio.Reader) (body string, err error) {
	request, err := http.ReadRequest(r)
	if err != nil {
		return "", err
	}
	data, err := io.ReadAll(request.Body)
	return string(data), err
}

const said = `{"id":"1","choices":[{"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}`

func whole(extra string) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n%s", extra, len(said), said)
}

func client(t *testing.T, url string) *provider.OpenAI {
	t.Helper()
	m, err := provider.NewOpenAI(provider.Config{Name: "p", BaseURL: url, Local: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

func question(text string) inference.Request {
	return inference.Request{Model: "m", Messages: []inference.Message{{Role: inference.RoleUser, Content: inference.Text(text)}}}
}

// Which connections are used again: those whose answer ended as its header says, and
// on which nothing came after it.
func TestConnectionsKept(t *testing.T) {
	for name, test := range map[string]struct {
		answer string
		after  func(net.Conn) // once the answer was sent
		kept   bool
	}{
		"an answer":                  {whole(""), nil, true},
		"one in chunks":              {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(said), said), nil, true},
		"after an interim answer":    {"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + whole(""), nil, true},
		"an error":                   {"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\n{}", nil, true},
		"one that closes":            {whole("Connection: close\r\n"), nil, false},
		"one that only closing ends": {"HTTP/1.1 200 OK\r\n\r\n" + said, func(c net.Conn) { _ = c.Close() }, false},
		"of an old server":           {"HTTP/1.0 200 OK\r\nContent-Length: " + fmt.Sprint(len(said)) + "\r\n\r\n" + said, nil, false},
		"with another behind it":     {whole("") + whole(""), nil, false},
		"which the host then closes": {whole(""), func(c net.Conn) { _ = c.Close() }, false},
		"after which it says more": {whole(""), func(c net.Conn) {
			time.Sleep(5 * time.Millisecond)
			_, _ = c.Write([]byte("HTTP/1.1 408 Request Timeout\r\n\r\n"))
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			var connections atomic.Int64
			url := talk(t, func(_ int, c net.Conn, r *bufio.Reader) {
				connections.Add(1)
				for {
					if _, err := heard(r); err != nil {
						return
					}
					_, _ = io.WriteString(c, test.answer)
					if test.after != nil {
						test.after(c)
					}
				}
			})
			m := client(t, url)
			for range 3 {
				_, err := m.Complete(t.Context(), question("hello"))
				if want := strings.Contains(test.answer, " 500 "); (err != nil) != want {
					t.Fatalf("%v", err)
				}
				time.Sleep(20 * time.Millisecond) // for what comes after
			}
			if want := map[bool]int64{true: 1, false: 3}[test.kept]; connections.Load() != want {
				t.Errorf("three calls took %d connections, want %d", connections.Load(), want)
			}
		})
	}
}

// A request is never sent twice, also not when a connection that was kept breaks
// under it.
func TestSentOnce(t *testing.T) {
	var requests atomic.Int64
	url := talk(t, func(_ int, c net.Conn, r *bufio.Reader) {
		for n := range 2 {
			if _, err := heard(r); err != nil {
				return
			}
			requests.Add(1)
			if n == 0 {
				_, _ = io.WriteString(c, whole(""))
			}
		}
	})
	m := client(t, url)
	if _, err := m.Complete(t.Context(), question("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Complete(t.Context(), question("hello")); !errors.Is(err, fault.InferenceProviderUnavailable) || requests.Load() != 2 {
		t.Errorf("a connection that broke: %v, after %d requests, want 2", err, requests.Load())
	}
}

// An upstream that refuses without reading is heard, also of a large request.
func TestEarlyRefusal(t *testing.T) {
	for _, size := range []int{100, 60_000, 8 << 20} {
		url := talk(t, func(_ int, c net.Conn, r *bufio.Reader) {
			if _, err := http.ReadRequest(r); err == nil {
				_, _ = io.WriteString(c, "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\nRetry-After: 1\r\nConnection: close\r\n\r\n{}")
				_ = c.(*net.TCPConn).CloseWrite()
				time.Sleep(100 * time.Millisecond)
			}
		})
		if _, err := client(t, url).Complete(t.Context(), question(strings.Repeat("x", size))); !errors.Is(err, fault.InferenceRateLimited) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// What waits ends with its context, and what an upstream sends is bounded.
func TestDirectBounds(t *testing.T) {
	for name, test := range map[string]struct {
		answer string
		want   fault.Code
	}{
		"silence":                 {"", fault.InferenceTimeout},
		"half a header":           {"HTTP/1.1 200 OK\r\nConte", fault.InferenceTimeout},
		"half a body":             {whole("")[:len(whole(""))-5], fault.InferenceTimeout},
		"a header without an end": {"HTTP/1.1 200 OK\r\n" + strings.Repeat("X-Y: "+strings.Repeat("z", 1000)+"\r\n", 1000), fault.InferenceProviderUnavailable},
		"interim without an end":  {strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 100), fault.InferenceProviderUnavailable},
		"another protocol":        {"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", fault.InferenceProviderUnavailable},
		"no HTTP":                 {"SSH-2.0-OpenSSH_9.6\r\n", fault.InferenceProviderUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			ended := make(chan struct{})
			url := talk(t, func(_ int, c net.Conn, r *bufio.Reader) {
				defer close(ended)
				if _, err := heard(r); err == nil {
					_, _ = io.WriteString(c, test.answer)
					_, _ = io.Copy(io.Discard, r) // until the client gives it up
				}
			})
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			if _, err := client(t, url).Complete(ctx, question("hello")); fault.CodeOf(err) != test.want {
				t.Errorf("%v, want %v", err, test.want)
			}
			select {
			case <-ended:
			case <-time.After(5 * time.Second):
				t.Error("the connection stays open")
			}
		})
	}
}

// A stream that is closed by another goroutine frees its connection, and whoever
// reads.
func TestDirectStreamClosed(t *testing.T) {
	ended := make(chan struct{})
	url := talk(t, func(_ int, c net.Conn, r *bufio.Reader) {
		defer close(ended)
		if _, err := heard(r); err == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n")
			_, _ = io.Copy(io.Discard, r)
		}
	})
	s, err := client(t, url).CompleteStream(t.Context(), question("hello"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Next(); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(20*time.Millisecond, func() { _ = s.Close() })
	if _, err := s.Next(); !errors.Is(err, fault.Canceled) {
		t.Errorf("a stream that was closed: %v", err)
	}
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("the connection stays open")
	}
}
