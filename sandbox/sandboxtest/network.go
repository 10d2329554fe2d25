package sandboxtest

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"creto.dev/sandbox"
	"creto.dev/sandbox/guest"
)

// gateway is a fake: an HTTP server on the socket that can be restarted.
type gateway struct {
	path    string
	handler http.Handler
	server  *http.Server
	done    chan struct{}
}

func startGateway(t testing.TB, dir string, handler http.HandlerFunc) *gateway {
	t.Helper()
	g := &gateway{path: filepath.Join(dir, sandbox.SocketName), handler: handler}
	if err := g.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.stop)
	return g
}

func (g *gateway) start() error {
	ln, err := net.Listen("unix", g.path)
	if err != nil {
		return err
	}
	g.server, g.done = &http.Server{Handler: g.handler}, make(chan struct{})
	go func(server *http.Server, done chan struct{}) {
		defer close(done)
		_ = server.Serve(ln)
	}(g.server, g.done)
	return nil
}

// stop breaks every connection off, as a killed server does.
func (g *gateway) stop() {
	g.server.Close()
	<-g.done
}

// hasNoNetwork tries to leave by TCP, UDP and name.
func (s *suite) hasNoNetwork(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	abstract, err := net.Listen("unix", "@sandboxtest-"+rand8())
	if err != nil {
		t.Fatal(err)
	}
	defer abstract.Close()
	for _, c := range [][2]string{
		{"tcp", "1.1.1.1:80"}, {"tcp", ln.Addr().String()}, {"tcp", "[2606:4700::1111]:80"},
		{"udp", "1.1.1.1:53"}, {"tcp", "example.com:80"}, {"unix", abstract.Addr().String()},
	} {
		if out := s.ok(t, s.spec(t, "./probe", "dial", c[0], c[1])); !strings.HasPrefix(out, "no:") {
			t.Errorf("dial %v: %s", c, out)
		}
	}
}

// reachesNoSocket has a listening Unix socket of the host where the sandbox can
// see it: in the working directory, in one that is kept, made before the run
// and during it.
func (s *suite) reachesNoSocket(t *testing.T) {
	kept := t.TempDir()
	spec := s.spec(t, "sh", "-c", `cat go; ./probe dial unix early.sock; ./probe dial unix $PWD/late.sock; ./probe dial unix "$KEPT/s.sock"; ln -s $PWD/early.sock /tmp/l; ./probe dial unix /tmp/l; mv early.sock moved; ./probe dial unix moved; ln late.sock /tmp/hard 2>/dev/null; ./probe unix`)
	spec.Write, spec.Env = []string{kept}, []string{"KEPT=" + kept}
	listen := func(path string) {
		ln, err := net.Listen("unix", path)
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() { ln.Close() })
	}
	listen(filepath.Join(spec.Dir, "early.sock"))
	if err := os.WriteFile(filepath.Join(spec.Dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// A pipe holds the command back until the late sockets are there.
	spec.Command[2] = "read line; " + spec.Command[2]
	in, hold := io.Pipe()
	spec.Stdin = in
	spec.Started = func(sandbox.Started) {
		listen(filepath.Join(spec.Dir, "late.sock"))
		listen(filepath.Join(kept, "s.sock"))
		fmt.Fprintln(hold)
		hold.Close()
	}
	out := s.ok(t, spec)
	if strings.Contains(out, "yes") {
		t.Errorf("a socket of the host answers:\n%s", out)
	}
	if !strings.Contains(out, "own") {
		t.Errorf("a socket between the sandbox's own processes does not work:\n%s", out)
	}
}

// reachesGateway sends requests in origin, absolute and CONNECT form, by real
// programs.
func (s *suite) reachesGateway(t *testing.T) {
	echo := func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s host=%s key=%t bodybytes=%d err=%v\n", r.Method, r.RequestURI, r.Host, r.Header.Get(guest.IdempotencyHeader) != "", len(body), err)
	}
	for _, c := range []struct {
		name    string
		command []string
		want    string
	}{
		{"origin form", []string{"sh", "-c", "NO_PROXY=127.0.0.1 ./probe http POST $OPENAI_BASE_URL/chat/completions 100000"},
			"POST /v1/chat/completions host=127.0.0.1:8790 key=true bodybytes=100000 err=<nil>"},
		{"origin form through the proxy", []string{"sh", "-c", "http_proxy= ./probe http POST $ANTHROPIC_BASE_URL/v1/messages 5"},
			"POST /v1/messages host=127.0.0.1:8790 key=true bodybytes=5 err=<nil>"},
		{"absolute form", []string{"./probe", "http", "GET", "http://shop.test/orders?id=7", "0"},
			"GET http://shop.test/orders?id=7 host=shop.test key=true bodybytes=0 err=<nil>"},
		{"python", []string{"python3", "-c", "import urllib.request as u; print(u.urlopen('http://shop.test/a', b'12345').read().decode())"},
			"POST http://shop.test/a host=shop.test key=true bodybytes=5 err=<nil>"},
		{"python to the model", []string{"python3", "-c", "import os, urllib.request as u; print(u.urlopen(os.environ['OPENAI_BASE_URL'] + '/models').read().decode())"},
			"GET /v1/models host=127.0.0.1:8790 key=true bodybytes=0 err=<nil>"},
		{"curl", []string{"curl", "-sS", "-d", "abc", "http://shop.test/b"},
			"POST http://shop.test/b host=shop.test key=true bodybytes=3 err=<nil>"},
		{"curl to the model", []string{"sh", "-c", "curl -sS $OPENAI_BASE_URL/models"},
			"GET /v1/models host=127.0.0.1:8790 key=true bodybytes=0 err=<nil>"},
		{"curl connect", []string{"sh", "-c", "curl -sS https://shop.test/ 2>&1; true"}, "CONNECT tunnel failed, response 403"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if program := "/usr/bin/" + c.command[0]; !strings.HasPrefix(c.command[0], "./") {
				if c.name == "curl connect" {
					program = "/usr/bin/curl"
				}
				if _, err := os.Stat(program); err != nil {
					Require(t, "needs "+program)
				}
			}
			spec := s.spec(t, c.command...)
			startGateway(t, spec.GatewayDir, func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodConnect {
					w.WriteHeader(http.StatusForbidden)
					return
				}
				echo(w, r)
			})
			if out := s.ok(t, spec); !strings.Contains(out, c.want) {
				t.Errorf("Run(%q) prints\n%s\nwant\n%s", c.command, out, c.want)
			}
		})
	}
}

// sendsAgain restarts the gateway while it holds a request back.
func (s *suite) sendsAgain(t *testing.T) {
	spec := s.spec(t, "./probe", "http", "POST", "http://shop.test/refund", "4000")
	var mu sync.Mutex // guards seen
	var seen []string
	first := make(chan struct{})
	g := startGateway(t, spec.GatewayDir, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		mu.Lock()
		seen = append(seen, fmt.Sprint(r.Header.Get(guest.IdempotencyHeader), " ", len(body), " ", err))
		n := len(seen)
		mu.Unlock()
		if n == 1 {
			close(first)
			<-r.Context().Done()
			return
		}
		fmt.Fprint(w, "refunded")
	})
	var restart sync.WaitGroup
	restart.Go(func() {
		<-first
		g.stop() // removes the socket
		if err := g.start(); err != nil {
			t.Error(err)
		}
	})
	out := s.ok(t, spec)
	restart.Wait()
	if !strings.Contains(out, "200\nrefunded") {
		t.Errorf("the program got:\n%s", out)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(seen) != 2 || seen[0] != seen[1] || !strings.HasSuffix(seen[0], " 4000 <nil>") {
		t.Errorf("the gateway saw %q, want the same request twice", seen)
	}
}

// streams sends one event, and the next once the program showed the first.
func (s *suite) streams(t *testing.T) {
	spec := s.spec(t, "./probe", "http", "POST", "http://model.test/v1/chat", "10")
	var out output
	spec.Stdout, spec.Stderr = &out, &out
	startGateway(t, spec.GatewayDir, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			fmt.Fprintf(w, "data: %d\n\n", i)
			_ = http.NewResponseController(w).Flush()
			out.wait(t, fmt.Sprintf("data: %d\n\n", i))
		}
	})
	s.ok(t, spec)
	if got, want := out.String(), "200\ndata: 0\n\ndata: 1\n\ndata: 2\n\n"; got != want {
		t.Errorf("the program got %q, want %q", got, want)
	}

	spec = s.spec(t, "./probe", "http", "GET", "http://model.test/cut", "0")
	startGateway(t, spec.GatewayDir, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "half")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	if got := s.ok(t, spec); !strings.Contains(got, "cut:") {
		t.Errorf("a cut answer looks complete: %q", got)
	}
}

// largeBodies sends more than the forwarder keeps.
func (s *suite) largeBodies(t *testing.T) {
	const size = 5 << 20
	spec := s.spec(t, "./probe", "http", "PUT", "http://shop.test/upload", fmt.Sprint(size))
	startGateway(t, spec.GatewayDir, func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n, err)
	})
	if out, want := s.ok(t, spec), fmt.Sprintf("200\n%d <nil>", size); out != want {
		t.Errorf("the program got %q, want %q", out, want)
	}

	spec = s.spec(t, "./probe", "http", "PUT", "http://shop.test/upload", fmt.Sprint(size))
	startGateway(t, spec.GatewayDir, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		panic(http.ErrAbortHandler)
	})
	if out := s.ok(t, spec); !strings.HasPrefix(out, "502\n") || !strings.Contains(out, "sent once only") {
		t.Errorf("the program got %q, want a 502 that says why", out)
	}
}

// tunnels opens a CONNECT tunnel with half-closes.
func (s *suite) tunnels(t *testing.T) {
	spec := s.spec(t, "./probe", "connect", "shop.test:443")
	targets := make(chan string, 1)
	startGateway(t, spec.GatewayDir, func(w http.ResponseWriter, r *http.Request) {
		targets <- r.Method + " " + r.RequestURI
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprint(conn, "HTTP/1.1 200 OK\r\n\r\n")
		data, err := io.ReadAll(buffered) // ends with the program's half-close
		fmt.Fprintf(conn, "%s back %v", data, err)
	})
	if out, want := s.ok(t, spec), "200\nhello back <nil>"; out != want {
		t.Errorf("the program got %q, want %q", out, want)
	}
	if got, want := <-targets, "CONNECT shop.test:443"; got != want {
		t.Errorf("the gateway got %q, want %q", got, want)
	}
}
