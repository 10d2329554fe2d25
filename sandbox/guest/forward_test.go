package guest_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"creto.dev/sandbox/guest"
)

// setup starts a forwarder in front of a gateway that is not there yet.
type setup struct {
	addr, socket string
	dial         func(context.Context) (net.Conn, error)
}

// each runs test over a plain socket and over a supervisor's link.
func each(t *testing.T, patience time.Duration, test func(*testing.T, setup)) {
	socketDial := func(socket string) func(context.Context) (net.Conn, error) {
		return func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		}
	}
	for _, linked := range []bool{false, true} {
		name := "socket"
		if linked {
			name = "link"
		}
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "forward") //nolint:usetesting // t.TempDir is too long for a socket
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(dir) })
			s := setup{socket: filepath.Join(dir, "gateway.sock")}
			s.dial = socketDial(s.socket)
			if linked {
				outer, inner := socketPair(t)
				served := make(chan struct{})
				dial := s.dial
				go func() {
					defer close(served)
					guest.ServeLink(outer, dial)
				}()
				s.dial = guest.LinkDial(inner)
				t.Cleanup(func() {
					inner.Close()
					<-served
				})
			}
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { ln.Close() })
			s.addr = ln.Addr().String()
			f := &guest.Forwarder{Dial: s.dial, Patience: patience}
			go func() { _ = f.Serve(ln) }()
			test(t, s)
		})
	}
}

func socketPair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	b, err = net.Dial("tcp", ln.Addr().String())
	if err == nil {
		a, err = ln.Accept()
	}
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

// gateway serves handler on the socket until the returned function is called.
func (s setup) gateway(t *testing.T, handler http.HandlerFunc) (stop func()) {
	t.Helper()
	ln, err := net.Listen("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &httptest.Server{Listener: ln, Config: &http.Server{Handler: handler}}
	server.Start()
	stop = sync.OnceFunc(func() {
		server.CloseClientConnections()
		server.Close()
	})
	t.Cleanup(stop)
	return stop
}

// proxied returns a client that uses the forwarder as its proxy.
func (s setup) proxied() *http.Client {
	return &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: s.addr}), DisableKeepAlives: true}}
}

func text(t *testing.T, response *http.Response, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatalf("read the answer: %v", err)
	}
	return fmt.Sprintf("%d %s", response.StatusCode, body)
}

// raw sends bytes and returns the answer's first line and body.
func (s setup) raw(t *testing.T, request string) string {
	t.Helper()
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	return text(t, response, err)
}

func TestForms(t *testing.T) {
	each(t, time.Minute, func(t *testing.T, s setup) {
		s.gateway(t, func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%s %s %s %q %v", r.Method, r.RequestURI, r.Host, body, err)
		})
		for _, c := range []struct{ name, request, want string }{
			{"origin", "POST /v1/x?q=1 HTTP/1.1\r\nHost: 127.0.0.1:8790\r\nContent-Length: 3\r\n\r\nabc", `200 POST /v1/x?q=1 127.0.0.1:8790 "abc" <nil>`},
			{"absolute", "GET http://shop.test/a%2Fb?q=%20 HTTP/1.1\r\nHost: shop.test\r\n\r\n", `200 GET http://shop.test/a%2Fb?q=%20 shop.test "" <nil>`},
			{"absolute wins over host", "GET http://shop.test/ HTTP/1.1\r\nHost: other.test\r\n\r\n", `200 GET http://shop.test/ shop.test "" <nil>`},
			{"absolute to itself", "GET http://" + s.addr + "/v1/models HTTP/1.1\r\nHost: " + s.addr + "\r\n\r\n", `200 GET /v1/models ` + s.addr + ` "" <nil>`},
			{"chunked", "POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", `200 POST /c h "abc" <nil>`},
			{"both lengths", "POST /c HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", `200 POST /c h "abc" <nil>`},
			{"two lengths", "POST /c HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nabc", `400 400 Bad Request`},
			{"https without connect", "GET https://shop.test/ HTTP/1.1\r\nHost: shop.test\r\n\r\n", `400 {`},
			{"expect", "POST /e HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 200-nothing\r\n\r\nabc", `417`},
		} {
			t.Run(c.name, func(t *testing.T) {
				if got := s.raw(t, c.request); !strings.HasPrefix(got, c.want) {
					t.Errorf("%q is answered with %s, want %s", c.request, got, c.want)
				}
			})
		}
	})
}

func TestHeaders(t *testing.T) {
	each(t, time.Minute, func(t *testing.T, s setup) {
		var header http.Header
		s.gateway(t, func(w http.ResponseWriter, r *http.Request) {
			header = r.Header.Clone()
			w.Header().Set("Connection", "X-Hop")
			w.Header().Set("X-Hop", "1")
			w.Header().Set("X-End", "1")
			w.Header().Set("Trailer", "X-Trailer")
			fmt.Fprint(w, "body")
			w.Header().Set("X-Trailer", "last")
		})
		request, err := http.NewRequest(http.MethodGet, "http://shop.test/", nil)
		if err != nil {
			t.Fatal(err)
		}
		for name, value := range map[string]string{
			"Connection": "X-Drop", "X-Drop": "1", "Proxy-Authorization": "Basic eDp5", "Upgrade": "h2c", "Te": "trailers",
			"Authorization": "Bearer x", "X-Keep": "1", guest.IdempotencyHeader: "mine-1",
		} {
			request.Header.Set(name, value)
		}
		response, err := s.proxied().Do(request)
		text(t, response, err)
		for _, name := range []string{"X-Drop", "Proxy-Authorization", "Upgrade", "Te", "Connection"} {
			if header.Get(name) != "" {
				t.Errorf("%s reached the gateway", name)
			}
		}
		if header.Get("Authorization") != "Bearer x" || header.Get("X-Keep") != "1" || header.Get(guest.IdempotencyHeader) != "mine-1" {
			t.Errorf("the gateway got %v", header)
		}
		if response.Header.Get("X-Hop") != "" || response.Header.Get("X-End") != "1" || response.Trailer.Get("X-Trailer") != "last" {
			t.Errorf("the program got %v, trailer %v", response.Header, response.Trailer)
		}
		keys := map[string]bool{}
		for _, own := range []string{"", strings.Repeat("k", 129), "with space", "ünï"} {
			request.Header.Set(guest.IdempotencyHeader, own)
			response, err := s.proxied().Do(request)
			text(t, response, err)
			key := header.Get(guest.IdempotencyHeader)
			if len(key) != 36 || keys[key] {
				t.Errorf("the key %q became %q, want a new UUID", own, key)
			}
			keys[key] = true
		}
	})
}

// TestWaits starts the gateway after the request.
func TestWaits(t *testing.T) {
	each(t, time.Minute, func(t *testing.T, s setup) {
		got := make(chan string)
		go func() {
			response, err := http.Post("http://"+s.addr+"/", "text/plain", strings.NewReader("body"))
			if err != nil {
				got <- err.Error()
				return
			}
			defer response.Body.Close()
			body, err := io.ReadAll(response.Body)
			got <- fmt.Sprint(response.StatusCode, string(body), err)
		}()
		// Until it was refused at least once.
		if conn, err := s.dial(t.Context()); err == nil {
			conn.Close()
			t.Fatal("there is a gateway already")
		}
		s.gateway(t, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(w, r.Body)
		})
		if text := <-got; text != "200body<nil>" {
			t.Errorf("the program got %q", text)
		}
	})
}

func TestPatienceEnds(t *testing.T) {
	each(t, 50*time.Millisecond, func(t *testing.T, s setup) {
		response, err := http.Get("http://" + s.addr + "/")
		if got := text(t, response, err); !strings.HasPrefix(got, "502 ") || !strings.Contains(got, "did not come back") {
			t.Errorf("the program got %s", got)
		}
		if kind := response.Header.Get("Content-Type"); kind != "application/problem+json" {
			t.Errorf("Content-Type = %q", kind)
		}
		if got := s.raw(t, "CONNECT shop.test:443 HTTP/1.1\r\nHost: shop.test:443\r\n\r\n"); !strings.HasPrefix(got, "502 ") {
			t.Errorf("CONNECT is answered with %s", got)
		}
	})
}

// TestSendsAgain loses the connection before the answer, for each form.
func TestSendsAgain(t *testing.T) {
	each(t, time.Minute, func(t *testing.T, s setup) {
		var mu sync.Mutex // guards seen
		var seen []string
		s.gateway(t, func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			mu.Lock()
			seen = append(seen, fmt.Sprint(r.Method, r.RequestURI, r.Header.Get(guest.IdempotencyHeader), len(body), err))
			n := len(seen)
			mu.Unlock()
			if n < 4 {
				panic(http.ErrAbortHandler)
			}
			fmt.Fprint(w, "done")
		})
		for _, request := range []string{
			"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
			"DELETE http://shop.test/x HTTP/1.1\r\nHost: h\r\n\r\n",
			"CONNECT shop.test:443 HTTP/1.1\r\nHost: shop.test:443\r\n\r\n",
		} {
			mu.Lock()
			seen = nil
			mu.Unlock()
			conn, err := net.Dial("tcp", s.addr)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(conn, request); err != nil {
				t.Fatal(err)
			}
			method, _, _ := strings.Cut(request, " ")
			response, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
			if err != nil || response.StatusCode != http.StatusOK {
				t.Fatalf("%s: %v, %v", method, response, err)
			}
			conn.Close()
			mu.Lock()
			if len(seen) != 4 || seen[0] != seen[1] || seen[1] != seen[2] || seen[2] != seen[3] {
				t.Errorf("the gateway saw %q, want one request four times", seen)
			}
			mu.Unlock()
		}
	})
}

// TestLargeBody streams and is sent once.
func TestLargeBody(t *testing.T) {
	each(t, time.Minute, func(t *testing.T, s setup) {
		var tries atomic.Int32
		s.gateway(t, func(w http.ResponseWriter, r *http.Request) {
			tries.Add(1)
			n, err := io.Copy(io.Discard, r.Body)
			if r.URL.Path == "/abort" {
				panic(http.ErrAbortHandler)
			}
			fmt.Fprint(w, n, r.ContentLength, err)
		})
		for _, size := range []int{1 << 20, 1<<20 + 1, 9 << 20} {
			response, err := http.Post("http://"+s.addr+"/", "x/y", bytes.NewReader(make([]byte, size)))
			if got, want := text(t, response, err), fmt.Sprintf("200 %d %d <nil>", size, size); got != want {
				t.Errorf("%d bytes: %s, want %s", size, got, want)
			}
		}
		// A body that is chunked, and larger than any buffer.
		r, w := io.Pipe()
		go func() {
			for range 40 {
				_, _ = w.Write(make([]byte, 100_000))
			}
			w.Close()
		}()
		response, err := http.Post("http://"+s.addr+"/", "x/y", r)
		if got, want := text(t, response, err), "200 4000000 -1 <nil>"; got != want {
			t.Errorf("chunked: %s, want %s", got, want)
		}
		tries.Store(0)
		response, err = http.Post("http://"+s.addr+"/abort", "x/y", bytes.NewReader(make([]byte, 2<<20)))
		if got := text(t, response, err); !strings.HasPrefix(got, "502 ") || tries.Load() != 1 {
			t.Errorf("after %d tries: %s, want 502 after 1", tries.Load(), got)
		}
	})
}

// TestStreams gets each event before the next is sent, and no clean end for a
// cut answer.
func TestStreams(t *testing.T) {
	each(t, time.Minute, func(t *testing.T, s setup) {
		next := make(chan struct{})
		s.gateway(t, func(w http.ResponseWriter, r *http.Request) {
			for i := range 3 {
				fmt.Fprintf(w, "data: %d\n", i)
				_ = http.NewResponseController(w).Flush()
				<-next
			}
			if r.URL.Path == "/cut" {
				panic(http.ErrAbortHandler)
			}
		})
		for _, path := range []string{"/whole", "/cut"} {
			response, err := http.Get("http://" + s.addr + path)
			if err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewReader(response.Body)
			for i := range 3 {
				if line, err := lines.ReadString('\n'); line != fmt.Sprintf("data: %d\n", i) {
					t.Fatalf("event %d is %q, %v", i, line, err)
				}
				next <- struct{}{}
			}
			if _, err := lines.ReadByte(); (err == io.EOF) != (path == "/whole") {
				t.Errorf("%s ends with %v", path, err)
			}
			response.Body.Close()
		}
	})
}

// TestClientGone ends the gateway's request when the program leaves.
func TestClientGone(t *testing.T) {
	each(t, time.Minute, func(t *testing.T, s setup) {
		arrived, gone := make(chan struct{}), make(chan struct{})
		s.gateway(t, func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			close(arrived)
			<-r.Context().Done()
			close(gone)
		})
		ctx, cancel := context.WithCancel(t.Context())
		request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+s.addr+"/", strings.NewReader("body"))
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			<-arrived
			cancel()
		}()
		if response, err := http.DefaultClient.Do(request); err == nil {
			response.Body.Close()
			t.Error("the request succeeded")
		}
		select {
		case <-gone:
		case <-time.After(20 * time.Second):
			t.Error("the gateway's request goes on")
		}
	})
}

// TestStrangeAnswer gives up on what is not HTTP.
func TestStrangeAnswer(t *testing.T) {
	each(t, time.Minute, func(t *testing.T, s setup) {
		ln, err := net.Listen("unix", s.socket)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		go func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				_, _ = conn.Read(make([]byte, 4096))
				fmt.Fprint(conn, "SSH-2.0-OpenSSH\r\n\r\n")
				conn.Close()
			}
		}()
		response, err := http.Get("http://" + s.addr + "/")
		if got := text(t, response, err); !strings.HasPrefix(got, "502 ") || !strings.Contains(got, "gateway_answer") {
			t.Errorf("the program got %s", got)
		}
	})
}

// TestTunnel carries bytes both ways, with half-closes, and what came with the
// request.
func TestTunnel(t *testing.T) {
	each(t, time.Minute, func(t *testing.T, s setup) {
		s.gateway(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Host == "denied.test:443" {
				http.Error(w, "policy says no", http.StatusForbidden)
				return
			}
			conn, buffered, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			fmt.Fprint(conn, "HTTP/1.1 200 OK\r\n\r\nwelcome ")
			data, err := io.ReadAll(buffered)
			fmt.Fprint(conn, len(data), " ", err)
		})
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		payload := strings.Repeat("x", 3<<20)
		fmt.Fprint(conn, "CONNECT shop.test:443 HTTP/1.1\r\nHost: shop.test:443\r\n\r\nearly"+payload)
		_ = conn.(*net.TCPConn).CloseWrite()
		all, err := io.ReadAll(conn)
		if want := fmt.Sprintf("\r\n\r\nwelcome %d <nil>", 5+len(payload)); err != nil || !strings.HasSuffix(string(all), want) {
			t.Errorf("the tunnel gave %q, %v, want it to end in %q", all, err, want)
		}
		if got := s.raw(t, "CONNECT denied.test:443 HTTP/1.1\r\nHost: denied.test:443\r\n\r\n"); got != "403 policy says no\n" {
			t.Errorf("a refused tunnel is answered with %q", got)
		}
	})
}

func TestManyAtOnce(t *testing.T) {
	each(t, time.Minute, func(t *testing.T, s setup) {
		s.gateway(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
		var all sync.WaitGroup
		client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}}
		for i := range 16 {
			all.Go(func() {
				for j := range 50 {
					want := strings.Repeat(fmt.Sprint(i, "-", j, " "), 100)
					response, err := client.Post("http://"+s.addr+"/", "text/plain", strings.NewReader(want))
					if err != nil {
						t.Error(err)
						return
					}
					body, err := io.ReadAll(response.Body)
					response.Body.Close()
					if string(body) != want || err != nil {
						t.Errorf("request %d-%d: %d bytes, %v", i, j, len(body), err)
					}
				}
			})
		}
		all.Wait()
	})
}
