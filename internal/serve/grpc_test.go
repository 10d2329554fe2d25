package serve_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/fault/faulthttp"
	wiretestv1 "creto.dev/internal/gen/creto/wiretest/v1"
	"creto.dev/internal/serve"
	"creto.dev/internal/wire"
	"creto.dev/internal/wire/wiretest"
)

// echo says who calls; "wait" and "fail" are as with admin.
type echo struct {
	wiretestv1.UnimplementedEchoServiceServer
	*admin
}

func (e echo) Echo(ctx context.Context, r *wiretestv1.EchoRequest) (*wiretestv1.EchoResponse, error) {
	if err := e.note(ctx, "Echo", r.GetText()); err != nil {
		return nil, err
	}
	return &wiretestv1.EchoResponse{Text: r.GetText() + " for " + creto.CallerOf(ctx).Name, Data: r.GetData()}, nil
}

func (e echo) Count(_ *wiretestv1.CountRequest, s grpc.ServerStreamingServer[wiretestv1.CountResponse]) error {
	if err := s.Send(&wiretestv1.CountResponse{N: 1}); err != nil {
		return err
	}
	return e.note(s.Context(), "Count", "wait")
}

// contracts has a node serve echo, to the owner, to whoever shows a certificate,
// and to who sends the token where nobody hears it.
func contracts(p *serve.Parts) {
	a := p.Admin.(*admin)
	p.Register = func(s grpc.ServiceRegistrar) { wiretestv1.RegisterEchoServiceServer(s, echo{admin: a}) }
	p.Authenticate = func(ctx context.Context, method string, p serve.Peer) (context.Context, error) {
		id := creto.ID{}
		if p.TLS != nil {
			id, _ = wire.PeerID(*p.TLS)
		}
		switch {
		case p.Local:
			id = human("owner")
		case id.IsZero() && p.Token.Reveal() == "admin" && p.Private():
			id = human("anna")
		case id.IsZero():
			return nil, fault.New("test", fault.Unauthenticated, "who are you to call %s?", method)
		}
		return creto.WithCaller(ctx, id), nil
	}
}

func token(text string) func(context.Context) (creto.Secret, error) {
	return func(context.Context) (creto.Secret, error) { return creto.NewSecret(text), nil }
}

// secure has the port speak TLS.
func secure(ca wiretest.CA, t *testing.T) func(*serve.Parts) {
	source := ca.Source(t, wiretest.ID("node"))
	return func(p *serve.Parts) {
		contracts(p)
		p.TLS = source
	}
}

// http1 returns a client of HTTP/1.1 that trusts ca and shows certificate.
func http1(t *testing.T, n *node, ca *wiretest.CA, certificate *tls.Certificate, alpn ...string) *http.Transport {
	t.Helper()
	transport := &http.Transport{ForceAttemptHTTP2: len(alpn) > 1}
	if ca != nil {
		transport.TLSClientConfig = &tls.Config{RootCAs: ca.Roots(), NextProtos: alpn}
		if certificate != nil {
			transport.TLSClientConfig.Certificates = []tls.Certificate{*certificate}
		}
	} else if n != nil {
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", n.socket)
		}
	}
	t.Cleanup(transport.CloseIdleConnections)
	return transport
}

func post(t *testing.T, transport http.RoundTripper, url, body, token string) (status int, header http.Header, text string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "POST", url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	if strings.HasSuffix(url, connectPath) {
		r.Header.Set("Connect-Protocol-Version", "1")
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	all, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, response.Header, string(all)
}

const (
	restPath    = "/creto.wiretest.v1/echo"
	connectPath = "/creto.wiretest.v1.EchoService/Echo"
)

// One port, both protocols, in clear, under TLS and over the socket: the same
// services see the same callers.
func TestContracts(t *testing.T) {
	ca := wiretest.NewCA(t)
	peer := wiretest.ID("peer")
	shown := ca.Issue(t, peer, nil)
	clear, secured := startWith(t, contracts), startWith(t, secure(ca, t))
	anonymous := func() (wire.Credentials, error) { return wire.Credentials{Roots: ca.Roots()}, nil }
	for _, test := range []struct {
		name   string
		config wire.Config
		want   string // "" if nobody is let in
	}{
		{"socket", wire.Config{Address: "unix:" + clear.socket}, "owner"},
		{"socket of a node with TLS", wire.Config{Address: "unix:" + secured.socket}, "owner"},
		{"clear", wire.Config{Address: clear.address}, ""},
		{"clear, a wrong token", wire.Config{Address: clear.address, Token: token("x")}, ""},
		{"clear, a token", wire.Config{Address: clear.address, Token: token("admin")}, "anna"},
		{"TLS", wire.Config{Address: secured.address, Source: anonymous, Peer: wiretest.ID("node")}, ""},
		{"TLS, a token", wire.Config{Address: secured.address, Source: anonymous, Token: token("admin")}, "anna"},
		{"TLS, a certificate", wire.Config{Address: secured.address, Source: ca.Source(t, peer), Peer: wiretest.ID("node")}, "peer"},
	} {
		t.Run("gRPC/"+test.name, func(t *testing.T) {
			conn := wiretest.Dial(t, test.config)
			out, err := wiretestv1.NewEchoServiceClient(conn).Echo(t.Context(), &wiretestv1.EchoRequest{Text: "hi"})
			list, other := grpc_reflection_v1.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
			if other == nil {
				_ = list.Send(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}})
				_, other = list.Recv()
			}
			state, healthErr := grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
			if healthErr != nil || state.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
				t.Errorf("health: %v, %v", state, healthErr)
			}
			switch {
			case test.want == "" && (!errors.Is(err, fault.Unauthenticated) || !errors.Is(other, fault.Unauthenticated)):
				t.Errorf("a stranger: %v, %v and by reflection %v", out, err, other)
			case test.want != "" && (err != nil || out.GetText() != "hi for "+test.want || other != nil):
				t.Errorf("Echo = %v, %v, reflection %v; want it for %s", out, err, other, test.want)
			}
		})
	}
	for _, test := range []struct {
		name      string
		transport http.RoundTripper
		base      string
		token     string
		want      string
	}{
		{"socket", http1(t, clear, nil, nil), "http://x", "", "owner"},
		{"clear", http1(t, nil, nil, nil), "http://" + clear.address, "", ""},
		{"clear, a token", http1(t, nil, nil, nil), "http://" + clear.address, "admin", "anna"},
		{"TLS", http1(t, nil, &ca, nil), "https://" + secured.address, "", ""},
		{"TLS, a token", http1(t, nil, &ca, nil), "https://" + secured.address, "admin", "anna"},
		{"TLS, a certificate", http1(t, nil, &ca, &shown), "https://" + secured.address, "", "peer"},
		{"TLS, offering both", http1(t, nil, &ca, &shown, "h2", "http/1.1"), "https://" + secured.address, "", "peer"},
		{"TLS, no ALPN", http1(t, nil, &ca, &shown), "https://" + secured.address, "", "peer"},
	} {
		t.Run("JSON/"+test.name, func(t *testing.T) {
			for _, path := range []string{restPath, connectPath} {
				status, header, text := post(t, test.transport, test.base+path, `{"text":"hi","data":"AAE="}`, test.token)
				switch {
				case test.want == "" && (status != 401 || path == restPath && header.Get("Content-Type") != faulthttp.MediaType):
					t.Errorf("%s: a stranger gets %d %s", path, status, text)
				case test.want != "" && (status != 200 || !strings.Contains(text, `"hi for `+test.want+`"`) || !strings.Contains(text, `"AAE="`)):
					t.Errorf("%s: %d %s, want it for %s", path, status, text, test.want)
				}
			}
			status, _, text := post(t, test.transport, test.base+"/console", "", "")
			if status != 200 || !strings.HasPrefix(text, "console for") {
				t.Errorf("the console beside it: %d %s", status, text)
			}
		})
	}
	t.Run("clear to TLS", func(t *testing.T) {
		if _, err := wiretestv1.NewEchoServiceClient(wiretest.Dial(t, wire.Config{Address: secured.address, Token: token("admin")})).Echo(t.Context(), &wiretestv1.EchoRequest{}); !errors.Is(err, fault.Unavailable) {
			t.Errorf("gRPC in clear to a port of TLS: %v", err)
		}
		conn, err := net.Dial("tcp", secured.address)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		_, _ = io.WriteString(conn, "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
		if text, _ := io.ReadAll(conn); strings.Contains(string(text), "health") {
			t.Errorf("HTTP in clear to a port of TLS is answered: %q", text)
		}
	})
	t.Run("a stranger's root", func(t *testing.T) {
		stranger := wiretest.NewCA(t)
		c := wire.Credentials{Certificate: stranger.Issue(t, peer, nil), Roots: ca.Roots()}
		conn := wiretest.Dial(t, wire.Config{Address: secured.address, Source: func() (wire.Credentials, error) { return c, nil }})
		if _, err := wiretestv1.NewEchoServiceClient(conn).Echo(t.Context(), &wiretestv1.EchoRequest{}); !errors.Is(err, fault.Unavailable) {
			t.Errorf("a certificate of another root: %v", err)
		}
	})
}

// Without an Authenticate nobody is let in but to health, the owner neither.
func TestContractsClosed(t *testing.T) {
	n := startWith(t, func(p *serve.Parts) {
		contracts(p)
		p.Authenticate = nil
		p.Ready = func(context.Context) bool { return false }
	})
	conn := wiretest.Dial(t, wire.Config{Address: "unix:" + n.socket})
	if _, err := wiretestv1.NewEchoServiceClient(conn).Echo(t.Context(), &wiretestv1.EchoRequest{}); !errors.Is(err, fault.Unauthenticated) {
		t.Errorf("Echo: %v", err)
	}
	health := grpc_health_v1.NewHealthClient(conn)
	for service, want := range map[string]fault.Code{"": fault.OK, "creto.wiretest.v1.EchoService": fault.OK, "creto.NoSuch": fault.NotFound} {
		state, err := health.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: service})
		if fault.CodeOf(err) != want || err == nil && state.GetStatus() != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
			t.Errorf("health of %q = %v, %v", service, state, err)
		}
	}
	if calls := n.take(); len(calls) != 0 {
		t.Errorf("calls %q", calls)
	}
}

// What goes wrong over JSON is a problem, with the fault's own code.
func TestContractProblems(t *testing.T) {
	n := startWith(t, contracts)
	transport := http1(t, n, nil, nil)
	for _, test := range []struct {
		name, path, body string
		status           int
		want             string
	}{
		{"a fault", restPath, `{"text":"fail"}`, 429, `"code":"rate_limited","retryable":true,"retry_after":1.5`},
		{"its message", restPath, `{"text":"fail"}`, 429, `"detail":"slower, please"`},
		{"an unknown field", restPath, `{"txt":"x"}`, 400, `unknown field`},
		{"no JSON", restPath, `{`, 400, `"code":"invalid_argument"`},
		{"too large", restPath, `{"text":"` + strings.Repeat("x", wire.DefaultMaxMessageBytes) + `"}`, 429, `"code":"resource_exhausted"`},
		{"no such service", "/creto.wiretest.v1.NoService/Echo", `{}`, 404, `"code":"not_found"`},
		{"a stream", "/creto.wiretest.v1.EchoService/Chat", `{}`, 0, ``},
	} {
		t.Run(test.name, func(t *testing.T) {
			status, header, text := post(t, transport, "http://x"+test.path, test.body, "")
			if test.status == 0 {
				if status < 400 {
					t.Errorf("%d %s", status, text)
				}
				return
			}
			if status != test.status || header.Get("Content-Type") != faulthttp.MediaType || !strings.Contains(text, test.want) {
				t.Errorf("%d %s %s, want %d with %s", status, header.Get("Content-Type"), text, test.status, test.want)
			}
		})
	}
	// Connect's own clients get Connect's own errors.
	if status, header, text := post(t, transport, "http://x"+connectPath, `{"text":"fail"}`, ""); status != 429 || header.Get("Content-Type") != "application/json" || !strings.Contains(text, `"resource_exhausted"`) {
		t.Errorf("Connect: %d %s %s", status, header.Get("Content-Type"), text)
	}
	r, _ := http.NewRequestWithContext(t.Context(), "POST", "http://x"+restPath, strings.NewReader(`{"text":"x"}`))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Sec-Fetch-Site", "cross-site")
	response, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	if _ = response.Body.Close(); response.StatusCode != 403 {
		t.Errorf("another site's page gets %d", response.StatusCode)
	}
}

// Calls under way are answered, those that wait for ever are ended, and nothing of
// it is left when Run returns.
func TestContractsShutdown(t *testing.T) {
	t.Run("drains", func(t *testing.T) {
		for name, call := range map[string]func(context.Context, *node) error{
			"gRPC": func(ctx context.Context, n *node) error {
				_, err := wiretestv1.NewEchoServiceClient(wiretest.Dial(t, wire.Config{Address: "unix:" + n.socket})).Echo(ctx, &wiretestv1.EchoRequest{Text: "wait"})
				return err
			},
			"JSON": func(_ context.Context, n *node) error {
				if status, _, text := post(t, http1(t, n, nil, nil), "http://x"+restPath, `{"text":"wait"}`, ""); status != 200 {
					return fmt.Errorf("%d %s", status, text)
				}
				return nil
			},
		} {
			t.Run(name, func(t *testing.T) {
				n := startWith(t, contracts)
				done := make(chan error, 1)
				go func() { done <- call(t.Context(), n) }()
				<-n.arrived
				ended := make(chan error, 1)
				go func() { ended <- n.stop() }()
				for { // until nobody new is let in
					conn, err := net.Dial("tcp", n.address)
					if err != nil {
						break
					}
					_ = conn.Close()
				}
				close(n.release)
				if err := <-done; err != nil {
					t.Errorf("the slow call failed: %v", err)
				}
				if err := <-ended; err != nil {
					t.Errorf("Run = %v", err)
				}
			})
		}
	})
	t.Run("cuts", func(t *testing.T) {
		n := startWith(t, contracts)
		conn := wiretest.Dial(t, wire.Config{Address: n.address, Token: token("admin")})
		stream, err := wiretestv1.NewEchoServiceClient(conn).Count(t.Context(), &wiretestv1.CountRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		watch, err := grpc_health_v1.NewHealthClient(conn).Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if state, err := watch.Recv(); err != nil || state.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
			t.Errorf("health: %v, %v", state, err)
		}
		<-n.arrived
		// A client that says nothing, and one that stopped in the middle.
		for _, said := range []string{"", "PRI * HTTP/2.0\r\n"} {
			idle, err := net.Dial("tcp", n.address)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = idle.Close() }()
			_, _ = io.WriteString(idle, said)
		}
		began := time.Now()
		go func() {
			if state, err := watch.Recv(); err != nil || state.GetStatus() != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
				t.Errorf("health of a node that stops: %v, %v", state, err)
			}
		}()
		if err := n.stop(); err != nil || time.Since(began) > patience {
			t.Errorf("Run = %v after %v", err, time.Since(began))
		}
		if _, err := stream.Recv(); !errors.Is(err, fault.Unavailable) {
			t.Errorf("the waiting stream ended with %v", err)
		}
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		for _, left := range []string{"internal/serve.(*splitter)", "internal/serve.Serve", "internal/serve.(*health)"} {
			if strings.Contains(string(stacks), left) {
				t.Errorf("%s still runs:\n%s", left, stacks)
			}
		}
	})
}

// Hijacked connections of the split port are whole: what was sniffed is read, and
// one direction can be ended.
func TestHijack(t *testing.T) {
	n := startWith(t, func(p *serve.Parts) {
		p.Doors = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			conn, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = conn.Close() }()
			text, _ := io.ReadAll(rw)
			_, _ = io.WriteString(conn, "got "+string(text))
			if half, ok := conn.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
				t.Error("one direction cannot be ended")
			}
		})
	})
	conn, err := net.Dial("tcp", n.address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_, _ = io.WriteString(conn, "GET /v1/x HTTP/1.1\r\nHost: x\r\n\r\ntunnelled")
	_ = conn.(*net.TCPConn).CloseWrite()
	if text, err := bufio.NewReader(conn).ReadString('d'); err != nil || text != "got tunnelled" {
		t.Errorf("through the tunnel came %q, %v", text, err)
	}
}
