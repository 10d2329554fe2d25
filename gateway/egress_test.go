package gateway_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/gateway"
)

// seen is what an upstream got.
type seen struct {
	method, uri, host, body string
	header                  http.Header
}

// shop is an upstream that keeps what it gets.
type shop struct {
	*httptest.Server
	mu   sync.Mutex // guards got
	got  []seen
	hook http.HandlerFunc // answers, if not nil
}

func newShop(t testing.TB, hook http.HandlerFunc) *shop {
	s := &shop{hook: hook}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		s.mu.Lock()
		s.got = append(s.got, seen{r.Method, r.RequestURI, r.Host, string(body), r.Header})
		s.mu.Unlock()
		if s.hook != nil {
			s.hook(w, r)
		}
	}))
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s
}

func (s *shop) address() string { return s.Listener.Addr().String() }

func (s *shop) requests() []seen {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]seen(nil), s.got...)
}

// mapped leads shop.test to the upstream.
func (s *shop) mapped() gateway.Config {
	return gateway.Config{Hosts: map[string]string{"Shop.test": s.address()}}
}

const anyURL = "http_request=http://shop.test/*"

func TestProxy(t *testing.T) {
	s := newShop(t, func(w http.ResponseWriter, _ *http.Request) {
		conn, _, _ := http.NewResponseController(w).Hijack()
		_, _ = io.WriteString(conn, "HTTP/1.1 201 Created\r\nConnection: X-Of-This-Connection\r\nX-Of-This-Connection: 1\r\nKeep-Alive: 1\r\nSet-Cookie: a=b\r\nContent-Length: 17\r\n\r\n<html>made</html>")
		_ = conn.Close()
	})
	h := open(t, s.mapped(), nil, anyURL)
	_, reader := h.raw(t, `POST http://SHOP.test.:080/a/./b//%41/../c?q=%2f;x HTTP/1.1
Host: other.test
Content-Type: application/json
Content-Length: 13
Connection: X-Hop
X-Hop: 1
X_Http_Method_Override: DELETE
X-HTTP-Method-Override: DELETE
X-Method-Override: DELETE
X-Original-URL: /admin
X-Forwarded-Host: bank.test
Content_Type: text/plain
Te: trailers
Trailer: X-T
Keep-Alive: 5
Upgrade: websocket
Proxy-Authorization: Basic x
Expect: 100-continue
Authorization: Bearer for-the-shop
Creto-Idempotency-Key: key-1
Accept-Encoding: gzip

{"amount": 1}`)
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode == http.StatusContinue {
		response, err = http.ReadResponse(reader, nil)
	}
	if err != nil || response.StatusCode != http.StatusCreated {
		t.Fatalf("answer %v, %v", response, err)
	}
	body, _ := io.ReadAll(response.Body)
	if string(body) != "<html>made</html>" || response.Header.Get("X-Of-This-Connection")+response.Header.Get("Keep-Alive") != "" || response.Header.Get("Set-Cookie") != "a=b" || response.Header["Content-Type"] != nil {
		t.Errorf("answer %q with %v", body, response.Header)
	}
	got := s.requests()
	if len(got) != 1 {
		t.Fatalf("%d requests arrived", len(got))
	}
	want := seen{"POST", "/a/b/c?q=%2f;x", "shop.test", `{"amount": 1}`, nil}
	header := got[0].header
	if got[0].header = nil; got[0].method != want.method || got[0].uri != want.uri || got[0].host != want.host || got[0].body != want.body {
		t.Errorf("the upstream got %+v, want %+v", got[0], want)
	}
	for name, want := range map[string]string{
		"Content-Type": "application/json", "Authorization": "Bearer for-the-shop", "Idempotency-Key": "key-1", "Accept-Encoding": "gzip", "Content-Length": "13",
	} {
		if got := header.Values(name); len(got) != 1 || got[0] != want {
			t.Errorf("the upstream got %s: %q, want %q", name, got, want)
		}
		header.Del(name)
	}
	header.Del("Connection") // of the gateway's own connection
	if len(header) > 0 {
		t.Errorf("the upstream also got %v", header)
	}
	r := h.records(t, creto.HTTPRequest, 1)[0]
	if r.Resource != "Url::http://shop.test/a/b/c" || r.Outcome != audit.Success || r.Detail["status"] != "201" || r.Detail["decided_on"] != "method, path and body" || r.Sandbox != "run-1" || r.Isolation != "namespaces" {
		t.Errorf("recorded %+v", r)
	}
}

func TestProxyDenies(t *testing.T) {
	s := newShop(t, nil)
	h := open(t, s.mapped(), nil, "http_request=GET http://shop.test/orders/*")
	client := h.proxied(t)
	response, err := client.Get("http://shop.test/customers")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(response.Body)
	_ = response.Body.Close()
	const line = `permit (principal == Creto::Agent::\"bot\", action == Creto::Action::\"http_request\", resource == Creto::Url::\"http://shop.test/customers\") when { context.method == \"GET\" };`
	if response.StatusCode != http.StatusForbidden || response.Header.Get("Content-Type") != "application/problem+json" || !strings.Contains(string(body), line) || codeIn(string(body)) != "authz.denied" {
		t.Errorf("answer %d %s %s", response.StatusCode, response.Header.Get("Content-Type"), body)
	}
	if len(s.requests()) != 0 {
		t.Error("a denied request arrived")
	}
	if r := h.records(t, creto.HTTPRequest, 1)[0]; r.Outcome != audit.Denied {
		t.Errorf("recorded %+v", r)
	}
}

// What two readers could take for two things never gets to a decision.
func TestProxyRefuses(t *testing.T) {
	s := newShop(t, nil)
	h := open(t, s.mapped(), nil, "http_request=*", "network_egress=*")
	post := func(kind, body string) string {
		return "POST http://shop.test/x HTTP/1.1\nHost: a\nContent-Type: " + kind + "\nContent-Length: " + strconv.Itoa(len(body)) + "\n\n" + body
	}
	for _, test := range []struct{ name, request string }{
		{"https in the clear", "GET https://shop.test/ HTTP/1.1\nHost: a\n\n"},
		{"another scheme", "GET ftp://shop.test/ HTTP/1.1\nHost: a\n\n"},
		{"user name", "GET http://u:p@shop.test/ HTTP/1.1\nHost: a\n\n"},
		{"no host", "GET http:///x HTTP/1.1\nHost: a\n\n"},
		{"port zero", "GET http://shop.test:0/ HTTP/1.1\nHost: a\n\n"},
		{"port too large", "GET http://shop.test:65616/ HTTP/1.1\nHost: a\n\n"},
		{"encoded slash", "GET http://shop.test/a%2Fb HTTP/1.1\nHost: a\n\n"},
		{"encoded dot", "GET http://shop.test/%2e%2e/b HTTP/1.1\nHost: a\n\n"},
		{"twice encoded", "GET http://shop.test/%252e%252e/b HTTP/1.1\nHost: a\n\n"},
		{"backslash", "GET http://shop.test/a\\..\\b HTTP/1.1\nHost: a\n\n"},
		{"matrix parameter", "GET http://shop.test/a;b=c HTTP/1.1\nHost: a\n\n"},
		{"encoded control", "GET http://shop.test/a%0d%0aX HTTP/1.1\nHost: a\n\n"},
		{"overlong slash", "GET http://shop.test/a%c0%afb HTTP/1.1\nHost: a\n\n"},
		{"address in another form", "GET http://0x7f.1/ HTTP/1.1\nHost: a\n\n"},
		{"address as one number", "GET http://2130706433/ HTTP/1.1\nHost: a\n\n"},
		{"address with a zone", "GET http://[fe80::1%25lo]/ HTTP/1.1\nHost: a\n\n"},
		{"method in lower case", "get http://shop.test/ HTTP/1.1\nHost: a\n\n"},
		{"duplicate key", post("application/json", `{"a":1,"a":2}`)},
		{"keys that differ by case", post("application/json", `{"amount":1,"Amount":2}`)},
		{"keys that fold together", post("application/json", `{"kind":1,"\u212aind":2}`)},
		{"duplicate key inside", post("application/json", `[{"a":[{"b":1,"b":2}]}]`)},
		{"NUL in a key", post("application/json", `{"a\u0000b":1}`)},
		{"trailing data", post("application/json", `{"a":1} {}`)},
		{"not JSON", post("application/json", `{"a":1,}`)},
		{"deep nesting", post("application/json", strings.Repeat("[", 40)+strings.Repeat("]", 40))},
		{"invalid UTF-8", post("application/json", "{\"a\":\"\xff\"}")},
		{"half a surrogate pair", post("application/json", `{"a":"\ud800x"}`)},
		{"another charset", post("application/json; charset=utf-16", `{"a":1}`)},
		{"two types", "POST http://shop.test/x HTTP/1.1\nHost: a\nContent-Type: text/plain\nContent-Type: application/json\nContent-Length: 2\n\n{}"},
		{"a type that cannot be read", post("application/json; a=1; a=2", `{"a":1}`)},
		{"a bad chunk", "POST http://shop.test/x HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\n\nzz\nx\n0\n\n"},
		{"two transfer encodings", "POST http://shop.test/x HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\nTransfer-Encoding: identity\n\n0\n\n"},
		{"two lengths", "POST http://shop.test/x HTTP/1.1\nHost: a\nContent-Length: 1\nContent-Length: 2\n\nab"},
		{"two hosts", "GET http://shop.test/ HTTP/1.1\nHost: a\nHost: b\n\n"},
		{"an idempotency key of two lines", "GET http://shop.test/ HTTP/1.1\nHost: a\nCreto-Idempotency-Key: a\nCreto-Idempotency-Key: b\n\n"},
		{"a tunnel to nowhere", "CONNECT :443 HTTP/1.1\nHost: a\n\n"},
		{"a tunnel to a path", "CONNECT /x HTTP/1.1\nHost: a\n\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			status, body := h.ask(t, test.request)
			if status != http.StatusBadRequest && status != http.StatusNotImplemented {
				t.Errorf("answer %d %s", status, body)
			}
		})
	}
	if got := s.requests(); len(got) != 0 {
		t.Errorf("arrived nevertheless: %+v", got)
	}
	// Over 64 KiB, compressed, or of another type, a body is not refused but
	// absent, so a permit that reads it does not apply.
	for _, request := range []string{
		post("application/json", `{"a":1,"a":"`+strings.Repeat("x", 64<<10)+`"}`), post("text/plain", `{"a":1,"a":2}`),
		"POST http://shop.test/x HTTP/1.1\nHost: a\nContent-Type: application/json\nContent-Encoding: gzip\nContent-Length: 1\n\n{",
	} {
		if status, body := h.ask(t, request); status != http.StatusOK {
			t.Errorf("answer %d %s", status, body)
		}
	}
	for _, r := range h.records(t, creto.HTTPRequest, 3) {
		if r.Detail["decided_on"] != "method and path" {
			t.Errorf("recorded %+v", r)
		}
	}
}

// A request with both a length and chunks is one request, sent on with one
// length; what hides behind it is another, decided on its own.
func TestProxySmuggling(t *testing.T) {
	s := newShop(t, nil)
	h := open(t, s.mapped(), nil, "http_request=POST http://shop.test/open")
	conn, reader := h.raw(t, "POST http://shop.test/open HTTP/1.1\nHost: a\nContent-Length: 3\nTransfer-Encoding: chunked\n\n5\nhello\n0\nX-Late: 1\n\nGET http://shop.test/closed HTTP/1.1\nHost: a\n\n")
	first, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, first.Body)
	if second, err := http.ReadResponse(reader, nil); err == nil && second.StatusCode != http.StatusForbidden {
		t.Errorf("the second answer is %d", second.StatusCode)
	}
	_ = conn.Close()
	for _, got := range s.requests() {
		if got.uri != "/open" || got.body != "hello" || got.header.Get("Content-Length") != "5" || got.header.Get("X-Late") != "" {
			t.Errorf("the upstream got %+v", got)
		}
	}
}

func TestProxyGuard(t *testing.T) {
	h := open(t, gateway.Config{}, nil, "http_request=*", "network_egress=*")
	// The loopback is the gateway itself to plain requests, and shut to tunnels.
	for _, host := range []string{"127.0.0.2", "localhost", "[::1]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]"} {
		if status, body := h.ask(t, "CONNECT "+host+":443 HTTP/1.1\nHost: a\n\n"); status != http.StatusForbidden {
			t.Errorf("CONNECT %s = %d %s", host, status, body)
		}
	}
	for _, host := range []string{
		"10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "[::]", "[fe80::1]", "[fd00::1]",
		"[::ffff:10.0.0.1]", "[::ffff:169.254.169.254]", "[64:ff9b::a00:1]", "[::10.0.0.1]", "[2002:a00:1::]", "[fec0::1]", "255.255.255.255", "224.0.0.1",
		"localhost.", "ip6-localhost",
	} {
		// A name may be unknown here; nothing else may pass.
		status, body := h.ask(t, "GET http://"+host+"/ HTTP/1.1\nHost: a\n\n")
		unknown := status == http.StatusServiceUnavailable && strings.Contains(host, "localhost")
		if (status != http.StatusForbidden || !strings.Contains(body, "[egress.hosts]")) && !unknown {
			t.Errorf("GET http://%s/ = %d %s", host, status, body)
		}
		status, body = h.ask(t, "CONNECT "+host+":443 HTTP/1.1\nHost: a\n\n")
		if status != http.StatusForbidden && !unknown {
			t.Errorf("CONNECT %s = %d %s", host, status, body)
		}
	}
}

// A server answers when it likes: its redirects, pieces and broken ends are
// passed on as they are.
func TestProxyAnswers(t *testing.T) {
	release := make(chan struct{})
	s := newShop(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/redirect":
			http.Redirect(w, r, "http://shop.test/elsewhere", http.StatusFound)
		case "/slow":
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			<-release
			_, _ = io.WriteString(w, "one")
			_ = http.NewResponseController(w).Flush()
			<-release
			_, _ = io.WriteString(w, "two")
		case "/cut", "/cut-length":
			if r.URL.Path == "/cut-length" {
				w.Header().Set("Content-Length", "100")
			}
			_, _ = io.WriteString(w, "half")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		case "/hangup":
			panic(http.ErrAbortHandler)
		case "/switch":
			conn, _, _ := http.NewResponseController(w).Hijack()
			_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
			_ = conn.Close()
		}
	})
	h := open(t, s.mapped(), nil, anyURL)
	client := h.proxied(t)
	get := func(path string) *http.Response {
		t.Helper()
		response, err := client.Get("http://shop.test" + path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = response.Body.Close() })
		return response
	}
	if response := get("/redirect"); response.StatusCode != http.StatusFound || len(s.requests()) != 1 {
		t.Errorf("a redirect was followed: %d, %+v", response.StatusCode, s.requests())
	}
	response := get("/slow") // returns although no byte of the body came
	release <- struct{}{}
	piece := make([]byte, 3)
	if _, err := io.ReadFull(response.Body, piece); err != nil || string(piece) != "one" {
		t.Errorf("read %q, %v", piece, err)
	}
	release <- struct{}{}
	if rest, err := io.ReadAll(response.Body); err != nil || string(rest) != "two" {
		t.Errorf("read %q, %v", rest, err)
	}
	for _, path := range []string{"/cut", "/cut-length"} {
		body, err := io.ReadAll(get(path).Body)
		if !errors.Is(err, io.ErrUnexpectedEOF) || string(body) != "half" {
			t.Errorf("%s: read %q, %v; want half and ErrUnexpectedEOF", path, body, err)
		}
	}
	for _, path := range []string{"/hangup", "/switch"} {
		if response := get(path); response.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("%s: %d", path, response.StatusCode)
		}
	}
	outcomes := map[audit.Outcome]int{}
	for _, r := range h.records(t, creto.HTTPRequest, 6) {
		outcomes[r.Outcome]++
	}
	if outcomes[audit.Success] != 2 || outcomes[audit.Failure] != 4 {
		t.Errorf("outcomes %v", outcomes)
	}
}

// A request that may have had its effect is never sent a second time, whatever
// its headers promise.
func TestProxySendsOnce(t *testing.T) {
	var connections atomic.Int32
	s := newShop(t, nil)
	s.hook = func(w http.ResponseWriter, r *http.Request) {
		if connections.Add(1) > 1 {
			panic(http.ErrAbortHandler)
		}
	}
	h := open(t, s.mapped(), nil, anyURL)
	for range 3 {
		h.ask(t, "POST http://shop.test/refunds HTTP/1.1\nHost: a\nIdempotency-Key: 1\nContent-Length: 0\n\n")
	}
	if got := s.requests(); len(got) != 3 {
		t.Errorf("3 requests arrived %d times", len(got))
	}
}

func TestProxyCallerLeaves(t *testing.T) {
	arrived, left := make(chan struct{}), make(chan struct{})
	s := newShop(t, func(_ http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done()
		close(left)
	})
	h := open(t, s.mapped(), nil, anyURL)
	conn, _ := h.raw(t, "GET http://shop.test/x HTTP/1.1\nHost: a\n\n")
	<-arrived
	_ = conn.Close()
	<-left
	if r := h.records(t, creto.HTTPRequest, 1)[0]; r.Outcome != audit.Timeout {
		t.Errorf("recorded %+v", r)
	}
}

// Revocation reaches what is under way.
func TestProxyRevoked(t *testing.T) {
	arrived := make(chan struct{})
	s := newShop(t, func(_ http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done()
	})
	h := open(t, s.mapped(), nil, anyURL)
	_, reader := h.raw(t, "GET http://shop.test/x HTTP/1.1\nHost: a\n\n")
	<-arrived
	if err := h.authority.Revoke(t.Context(), h.bot); err != nil {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(reader, nil)
	if err != nil || response.StatusCode < 400 {
		t.Fatalf("answer %v, %v", response, err)
	}
	if r := h.records(t, creto.HTTPRequest, 1)[0]; r.Outcome != audit.Failure {
		t.Errorf("recorded %+v", r)
	}
}

// One agent has a bounded share of the node's memory and attention.
func TestBounds(t *testing.T) {
	release := make(chan struct{})
	s := newShop(t, func(http.ResponseWriter, *http.Request) { <-release })
	h := open(t, s.mapped(), nil, anyURL)
	if status, body := h.ask(t, fmt.Sprintf("POST http://shop.test/x HTTP/1.1\nHost: a\nContent-Length: %d\n\n%s", gateway.MaxBodyBytes+1, strings.Repeat("x", gateway.MaxBodyBytes+1))); status != http.StatusBadRequest {
		t.Errorf("a body that is too large: %d %s", status, body)
	}
	half := fmt.Sprintf("POST http://shop.test/x HTTP/1.1\nHost: a\nContent-Length: %d\n\n%s", gateway.MaxBodyBytes, strings.Repeat("x", gateway.MaxBodyBytes))
	for range 2 {
		h.raw(t, half)
	}
	eventually(t, "two large requests", func() bool { return len(s.requests()) == 2 })
	conn, reader := h.raw(t, "POST http://shop.test/x HTTP/1.1\nHost: a\nContent-Length: 10\n\n0123456789")
	response, err := http.ReadResponse(reader, nil)
	if err != nil || response.StatusCode != http.StatusTooManyRequests || response.Header.Get("Retry-After") != "1" {
		t.Errorf("a third body: %v, %v", response, err)
	}
	_ = conn.Close()
	close(release)
	eventually(t, "room for another", func() bool {
		status, _ := h.ask(t, "POST http://shop.test/x HTTP/1.1\nHost: a\nContent-Length: 10\n\n0123456789")
		return status == http.StatusOK
	})
}

// A human decides about the exact request, and the request waits.
func TestProxyConsent(t *testing.T) {
	s := newShop(t, nil)
	h := open(t, s.mapped(), nil, "ask http_request=POST http://shop.test/refunds")
	request := func(extra, body string) string {
		return "POST http://shop.test/refunds HTTP/1.1\nHost: a\nContent-Type: application/json\nAuthorization: Bearer secret-1\nTraceparent: 00-" + creto.NewUUID().String() + "\n" + extra + "Content-Length: " + strconv.Itoa(len(body)) + "\n\n" + body
	}
	answer := func(text string) chan string {
		out := make(chan string, 1)
		_, reader := h.raw(t, text)
		go func() {
			response, err := http.ReadResponse(reader, nil)
			if err != nil {
				out <- err.Error()
				return
			}
			body, _ := io.ReadAll(response.Body)
			out <- fmt.Sprint(response.StatusCode, " ", string(body))
		}()
		return out
	}

	waiting := answer(request("", `{"amount":50}`))
	r := h.decide(t, true)
	if got := <-waiting; got != "200 " {
		t.Errorf("after an approval: %s", got)
	}
	args := string(r.Args)
	want := "POST http://shop.test/refunds\nAuthorization: *** " + creto.DigestOf([]byte("Bearer secret-1")).String() + "\nContent-Type: application/json\n\n{\"amount\":50}"
	if args != want {
		t.Errorf("shown was\n%s\nwant\n%s", args, want)
	}

	waiting = answer(request("", `{"amount":50}`)) // the approval is spent
	h.decide(t, false)
	if got := <-waiting; !strings.HasPrefix(got, "403 ") || !strings.Contains(got, "denied by bob: because") {
		t.Errorf("after a denial: %s", got)
	}

	// An approval that waits is for one request, not for one with another
	// header; and a caller that comes back finds it.
	conn, _ := h.raw(t, request("", `{"amount":60}`))
	h.decide(t, true)
	eventually(t, "the approved request", func() bool { return len(s.requests()) == 2 })
	_ = conn.Close()
	waiting = answer(request("X-Account: other\n", `{"amount":60}`))
	if r := h.decide(t, false); !strings.Contains(string(r.Args), "X-Account: other") {
		t.Errorf("shown was %s", r.Args)
	}
	<-waiting
	if got := s.requests(); len(got) != 2 || got[0].body != `{"amount":50}` {
		t.Errorf("the upstream got %+v", got)
	}
}

// echo is a server that sends back what it gets, and then how much it was.
func echo(t *testing.T) string {
	l := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				n, _ := io.Copy(conn, conn)
				_, _ = fmt.Fprintf(conn, "%d bytes", n)
			}()
		}
	}()
	return l.Addr().String()
}

func TestTunnel(t *testing.T) {
	h := open(t, gateway.Config{Hosts: map[string]string{"echo.test:443": echo(t)}}, nil, "network_egress=echo.test:443")
	status, body := h.ask(t, "CONNECT other.test:443 HTTP/1.1\nHost: a\n\n")
	if status != http.StatusForbidden || !strings.Contains(body, `resource == Creto::Host::\"other.test:443\"`) {
		t.Errorf("another host: %d %s", status, body)
	}
	// Bytes may follow at once.
	conn, reader := h.raw(t, "CONNECT ECHO.test:443 HTTP/1.1\nHost: a\n\nhello")
	response, err := http.ReadResponse(reader, &http.Request{Method: http.MethodConnect})
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("answer %v, %v", response, err)
	}
	_ = conn.(*net.TCPConn).CloseWrite()
	if rest, err := io.ReadAll(reader); err != nil || string(rest) != "hello5 bytes" {
		t.Errorf("read %q, %v", rest, err)
	}
	records := h.records(t, creto.NetworkEgress, 2)
	if r := records[0]; r.Outcome != audit.Success || r.Resource != "Host::echo.test:443" || r.Detail["bytes_sent"] != "5" || r.Detail["bytes_received"] != "12" || r.Detail["decided_on"] != "host only" {
		t.Errorf("recorded %+v", r)
	}
	if records[1].Outcome != audit.Denied {
		t.Errorf("recorded %+v", records[1])
	}
}

func TestTunnelEnds(t *testing.T) {
	for _, test := range []struct {
		name string
		end  func(*house) error
		want audit.Outcome
	}{
		{"with the node", func(h *house) error { h.stop(); return nil }, audit.Timeout},
		{"with the caller's authority", func(h *house) error { return h.authority.Revoke(t.Context(), h.bot) }, audit.Failure},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := open(t, gateway.Config{Hosts: map[string]string{"echo.test": echo(t)}}, nil, "network_egress=*")
			_, reader := h.raw(t, "CONNECT echo.test:443 HTTP/1.1\nHost: a\n\nx")
			response, err := http.ReadResponse(reader, &http.Request{Method: http.MethodConnect})
			if err != nil || response.StatusCode != http.StatusOK {
				t.Fatalf("answer %v, %v", response, err)
			}
			if _, err := reader.ReadByte(); err != nil {
				t.Fatal(err)
			}
			if err := test.end(h); err != nil {
				t.Fatal(err)
			}
			if _, err := reader.ReadByte(); err == nil {
				t.Error("the tunnel goes on")
			}
			if r := h.records(t, creto.NetworkEgress, 1)[0]; r.Outcome != test.want || r.Detail["bytes_sent"] != "1" {
				t.Errorf("recorded %+v", r)
			}
		})
	}
}
