package gateway_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/gateway"
	"creto.dev/inference"
	"creto.dev/inference/inferencetest"
	"creto.dev/inference/provider"
)

// isError reports whether a body is an error of the door's dialect, of a kind.
func isError(t testing.TB, anthropic bool, body, kind string) bool {
	t.Helper()
	if anthropic {
		return typeIn(t, body) == kind
	}
	return strings.Contains(body, `"error":{"code":"`) && strings.Contains(body, `"type":"`+kind+`"`)
}

// running returns how many goroutines there are once a request has gone through, and
// all that is started once is started.
func (h *house) running(t testing.TB) int {
	t.Helper()
	if status, _ := h.ask(t, "GET /v1/models HTTP/1.1\nHost: a\nConnection: close\n\n"); status != http.StatusOK {
		t.Fatalf("models: %d", status)
	}
	n, same := 0, 0
	for ; same < 10; time.Sleep(5 * time.Millisecond) {
		now := runtime.NumGoroutine()
		if same++; now != n {
			n, same = now, 0
		}
	}
	return n
}

// settled waits until there are no more goroutines than before.
func settled(t testing.TB, before int) {
	t.Helper()
	var now int
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if now = runtime.NumGoroutine(); now <= before {
			return
		}
	}
	stacks := make([]byte, 1<<20)
	t.Errorf("%d goroutines, before there were %d:\n%s", now, before, stacks[:runtime.Stack(stacks, true)])
}

// countDoor is where tokens are counted: no answer, and never a stream.
var countDoor = door{"/v1/messages/count_tokens", message, true}

// counting is a model whose provider counts tokens.
type counting struct{ inference.Model }

func (counting) CountTokens(context.Context, inference.Request) (int64, error) { return 42, nil }

// What cannot be read never reaches the gate: it is answered in the dialect, and
// nothing is recorded, because nobody knows what was asked for.
func TestHostileBodies(t *testing.T) {
	h := open(t, gateway.Config{}, []inference.Model{counting{&inferencetest.Fake{}}}, anyModel)
	h.ask(t, post(hello+"}", "/v1/chat/completions")) // what is started once is started
	before := h.running(t)
	all := append(slices.Clone(doors), countDoor)
	for _, door := range all {
		kind, large := "invalid_request_error", "invalid_request_error"
		if door.anthropic {
			large = "request_too_large"
		}
		for _, test := range []struct {
			name, request, kind string
			status              int
		}{
			{"malformed", post(`{"model":`, door.path), kind, 400},
			{"two values", post(door.body+`}{}`, door.path), kind, 400},
			{"not UTF-8", post(strings.Replace(door.body, "hello", "\xff\xfe", 1)+"}", door.path), kind, 400},
			{"nested", post(strings.Repeat("[", 50_000), door.path), kind, 400},
			{"many values", post(door.body+`,"x":[`+strings.Repeat("0,", 200_000)+"0]}", door.path), kind, 400},
			{"another form", post(door.body+"}", door.path, "Content-Type: multipart/form-data; boundary=x"), kind, 415},
			{"a form", post(door.body+"}", door.path, "Content-Type: application/x-www-form-urlencoded"), kind, 415},
			{"a text", post(door.body+"}", door.path, "Content-Type: text/plain"), kind, 415},
			{"no type at all", post(door.body+"}", door.path, "Content-Type: ;;"), kind, 415},
			{"another charset", post(door.body+"}", door.path, "Content-Type: application/json; charset=utf-16"), kind, 415},
			{"compressed", post(door.body+"}", door.path, "Content-Type: application/json", "Content-Encoding: gzip"), kind, 415},
			{"too large", post(strings.Repeat(" ", gateway.MaxBodyBytes+1), door.path), large, 413},
			{"too large by its own word", "POST " + door.path + " HTTP/1.1\nHost: a\nExpect: 100-continue\nContent-Length: 104857600\n\n", large, 413},
			{"cut off", "POST " + door.path + " HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\n\n5\n{\"mod\nZZ\n", kind, 400},
		} {
			status, body := h.ask(t, test.request)
			if status != test.status || !isError(t, door.anthropic, body, test.kind) {
				t.Errorf("%s: %s: answer %d %.300s; want %d %s", door.path, test.name, status, body, test.status, test.kind)
			}
		}
		for _, fine := range []string{"application/json", "application/json; charset=UTF-8", "application/vnd.api+json"} {
			if status, body := h.ask(t, post(door.body+"}", door.path, "Content-Type: "+fine)); status != http.StatusOK {
				t.Errorf("%s: %s: answer %d %s", door.path, fine, status, body)
			}
		}
	}
	h.records(t, creto.CallModel, 1+len(all)*3)
	settled(t, before)
}

// A body of 100 MB takes no more memory than is allowed, however many send one.
func TestHostileMemory(t *testing.T) {
	h := open(t, gateway.Config{}, []inference.Model{&inferencetest.Fake{}}, anyModel)
	h.ask(t, post(hello+"}", "/v1/chat/completions"))
	before := h.running(t)
	var peak atomic.Uint64
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		var m runtime.MemStats
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
				runtime.ReadMemStats(&m)
				peak.Store(max(peak.Load(), m.HeapInuse))
			}
		}
	}()
	var start runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&start)
	const senders, size = 8, 100 << 20
	statuses := make(chan int, senders)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for range senders {
		go func() {
			response, err := client.Post("http://"+h.address+"/v1/chat/completions", "application/json", struct{ io.Reader }{io.LimitReader(spaces{}, size)})
			if err != nil {
				statuses <- 0 // the door was shut in its face
				return
			}
			_ = response.Body.Close()
			statuses <- response.StatusCode
		}()
	}
	for range senders {
		switch status := <-statuses; status {
		case 0, http.StatusRequestEntityTooLarge, http.StatusTooManyRequests:
		case http.StatusRequestTimeout: // where the machine is busy, it does not come in time
		default:
			t.Errorf("answer %d", status)
		}
	}
	close(stop)
	<-stopped
	grown := (int64(peak.Load()) - int64(start.HeapInuse)) >> 20
	t.Logf("%d bodies of %d MB: the heap grew by %d MB", senders, size>>20, grown)
	// The share of one agent is 64 MiB; a slice that grows is copied.
	if grown > 512 {
		t.Errorf("the heap grew by %d MB", grown)
	}
	h.records(t, creto.CallModel, 1)
	settled(t, before)
}

// spaces is endless.
type spaces struct{}

func (spaces) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

// A body that drips in is given up when the listener's patience ends.
func TestHostileSlowBody(t *testing.T) {
	h := open(t, gateway.Config{}, []inference.Model{&inferencetest.Fake{}}, anyModel)
	h.ask(t, post(hello+"}", "/v1/chat/completions"))
	before := h.running(t)
	var conns []net.Conn
	var readers []*bufio.Reader
	for _, door := range doors {
		conn, reader := h.raw(t, "POST "+door.path+" HTTP/1.1\nHost: a\nContent-Length: 1000\n\n{")
		conns, readers = append(conns, conn), append(readers, reader)
	}
	for i, door := range doors {
		response, err := http.ReadResponse(readers[i], nil)
		if err != nil {
			t.Errorf("%s: %v", door.path, err)
			continue
		}
		body, _ := io.ReadAll(response.Body)
		if response.StatusCode != http.StatusRequestTimeout || !isError(t, door.anthropic, string(body), "invalid_request_error") {
			t.Errorf("%s: answer %d %s", door.path, response.StatusCode, body)
		}
		_ = conns[i].Close()
	}
	settled(t, before)
	h.records(t, creto.CallModel, 1)
}

// hostile is what an upstream may do, and what its caller sees.
type hostile struct {
	name    string
	handler http.HandlerFunc
	status  int           // of the answer, 0 if it began
	kinds   [2]string     // of the error, in OpenAI's dialect and in Anthropic's
	outcome audit.Outcome // of the one record
	stream  bool
	said    bool // something of the answer was passed on, and metered
}

const firstPiece = `data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"echo-1","choices":[{"index":0,"delta":{"content":"one two three"},"finish_reason":null}]}` + "\n\n"

func stream(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "text/event-stream")
	_, _ = io.WriteString(w, text)
	_ = http.NewResponseController(w).Flush()
}

func hostiles() []hostile {
	server, gatewayTimeout := [2]string{"server_error", "api_error"}, [2]string{"server_error", "timeout_error"}
	hang := func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}
	return []hostile{
		{"hangs", hang, 504, gatewayTimeout, audit.Timeout, false, false},
		{"hangs before a stream", hang, 504, gatewayTimeout, audit.Timeout, true, false},
		{"hangs in a stream", func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			stream(w, firstPiece)
			<-r.Context().Done()
		}, 0, gatewayTimeout, audit.Timeout, true, true},
		{"closes at once", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 502, server, audit.Failure, false, false},
		{"is cut off", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = io.WriteString(w, `{"choices":[`)
		}, 502, server, audit.Failure, false, false},
		{"ends a stream early", func(w http.ResponseWriter, _ *http.Request) { stream(w, firstPiece) }, 0, server, audit.Failure, true, true},
		{"cuts an event in two", func(w http.ResponseWriter, _ *http.Request) { stream(w, firstPiece+`data: {"id":"1","choices":[{"in`) }, 0, server, audit.Failure, true, true},
		{"streams what is not UTF-8", func(w http.ResponseWriter, _ *http.Request) { stream(w, firstPiece+"data: {\"id\":\"\xff\"}\n\n") }, 0, server, audit.Failure, true, true},
		{"answers what is not UTF-8", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "{\"id\":\"\xff\"}") }, 502, server, audit.Failure, false, false},
		{"answers with a page", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }, 502, server, audit.Failure, false, false},
		{"answers a stream with a page", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }, 502, server, audit.Failure, true, false},
		{"never ends its answer", func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, spaces{}) }, 502, server, audit.Failure, false, false},
		{"never ends its stream", func(w http.ResponseWriter, r *http.Request) {
			stream(w, firstPiece)
			for r.Context().Err() == nil {
				if _, err := io.WriteString(w, firstPiece); err != nil {
					return
				}
			}
		}, 0, server, audit.Failure, true, true},
		{"never ends an event", func(w http.ResponseWriter, _ *http.Request) {
			stream(w, firstPiece+"data: ")
			_, _ = io.Copy(w, spaces{})
		}, 0, server, audit.Failure, true, true},
		{"is overrun", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "120")
			w.WriteHeader(http.StatusTooManyRequests)
			_, _ = io.WriteString(w, `{"error":{"message":"planted","code":"rate_limit_exceeded"}}`)
		}, 429, [2]string{"rate_limit_error", "rate_limit_error"}, audit.Failure, true, false},
	}
}

// Whatever an upstream does, its caller gets an error in its own dialect, one record
// says so, what was delivered is metered, and nothing is left behind.
func TestHostileUpstreams(t *testing.T) {
	for _, x := range hostiles() {
		for _, door := range append(slices.Clone(doors), countDoor) {
			if whole := door.path == "/v1/embeddings" || door == countDoor; !whole || !x.stream {
				t.Run(door.path+" "+x.name, func(t *testing.T) { hostileUpstream(t, x, door.path, door.body, door.anthropic) })
			}
		}
	}
}

func hostileUpstream(t *testing.T, x hostile, path, body string, anthropic bool) {
	server := httptest.NewServer(x.handler)
	cfg := provider.Config{
		Name: "stub", BaseURL: server.URL + "/v1", Timeout: 300 * time.Millisecond, MaxResponseBytes: 1 << 20,
		Capabilities: inference.Capabilities{Streaming: true, Embeddings: true, Models: []string{"echo-1"}},
	}
	var m interface {
		inference.Model
		io.Closer
	}
	if path == countDoor.path {
		m = must[*provider.Anthropic](t)(provider.NewAnthropic(provider.AnthropicConfig{Config: cfg}))
	} else {
		m = must[*provider.OpenAI](t)(provider.NewOpenAI(cfg))
	}
	h := open(t, gateway.Config{}, []inference.Model{m}, anyModel)
	before := h.running(t)
	body += "}"
	if x.stream {
		body = strings.TrimSuffix(body, "}") + `,"stream":true}`
	}
	conn, reader := h.raw(t, post(body, path))
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(response.Body)
	text, kind := string(data), x.kinds[0]
	if anthropic {
		kind = x.kinds[1]
	}
	end := text
	if x.status == 0 {
		events := strings.Split(strings.TrimSuffix(text, "\n\n"), "\n\n")
		_, end, _ = strings.Cut(events[len(events)-1], "data: ")
	}
	switch {
	case strings.Contains(text, "planted"):
		t.Errorf("the answer quotes the upstream: %.300s", text)
	case x.status == 0 && (err == nil || response.StatusCode != http.StatusOK):
		t.Errorf("a broken stream ends like a whole one: %d, %v", response.StatusCode, err)
	case x.status != 0 && (err != nil || response.StatusCode != x.status):
		t.Errorf("answer %d, %v, want %d", response.StatusCode, err, x.status)
	case x.status == 0 && path == "/v1/responses":
		if !strings.Contains(end, `"type":"response.failed"`) || !strings.Contains(end, `"status":"failed"`) {
			t.Errorf("the end is %.300s", end)
		}
	case !isError(t, anthropic, end, kind):
		t.Errorf("the end is %.300s, want %s", end, kind)
	}
	r := h.records(t, creto.CallModel, 1)[0]
	if r.Outcome != x.outcome || x.said != (r.Usage != nil && r.Usage.CompletionTokens > 0 && r.Usage.Estimated) {
		t.Errorf("recorded %+v with usage %+v", r, r.Usage)
	}
	_ = conn.Close()
	_ = m.Close()
	settled(t, before)
	server.CloseClientConnections()
	server.Close()
}

// A caller who leaves ends the call upstream at once, and what was delivered is
// metered, in each dialect.
func TestCallerLeaves(t *testing.T) {
	for _, door := range doors {
		if door.path == "/v1/embeddings" {
			continue
		}
		t.Run(door.path, func(t *testing.T) {
			left := make(chan time.Time, 1)
			m := upstream(t, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				stream(w, firstPiece)
				<-r.Context().Done()
				left <- time.Now()
			})
			h := open(t, gateway.Config{}, []inference.Model{m}, anyModel)
			conn, reader := h.raw(t, post(door.body+`,"stream":true}`, door.path))
			for got := ""; !strings.Contains(got, "one two three"); {
				line, err := reader.ReadString('\n')
				if err != nil {
					t.Fatalf("%q, %v", got, err)
				}
				got += line
			}
			gone := time.Now()
			_ = conn.Close()
			if took := (<-left).Sub(gone); took > time.Second {
				t.Errorf("upstream heard of it after %v", took)
			}
			r := h.records(t, creto.CallModel, 1)[0]
			if r.Outcome != audit.Timeout || r.Usage == nil || !r.Usage.Estimated || r.Usage.CompletionTokens != inference.EstimateTokens(len("one two three")) {
				t.Errorf("recorded %+v with usage %+v", r, r.Usage)
			}
		})
	}
}

// A provider that limits everybody: each caller is told, each call is recorded once,
// and the provider is not asked more often than its limits allow.
func TestHostileStorm(t *testing.T) {
	var asked atomic.Int64
	m := upstream(t, func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.Header().Set("Retry-After", "120")
		w.WriteHeader(http.StatusTooManyRequests)
	})
	h := open(t, gateway.Config{}, []inference.Model{m}, anyModel)
	before := h.running(t)
	const callers = 48
	statuses := make(chan string, callers)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for i := range callers {
		door := doors[[]int{0, 1, 3}[i%3]]
		go func() {
			response, err := client.Post("http://"+h.address+door.path, "application/json", strings.NewReader(door.body+"}"))
			if err != nil {
				statuses <- err.Error()
				return
			}
			_ = response.Body.Close()
			statuses <- response.Status + " " + response.Header.Get("Retry-After")
		}()
	}
	for range callers {
		if status := <-statuses; !strings.HasPrefix(status, "429 ") || strings.HasSuffix(status, " ") {
			t.Errorf("answer %s", status)
		}
	}
	h.records(t, creto.CallModel, callers)
	if n := asked.Load(); n > callers {
		t.Errorf("%d callers asked %d times", callers, n)
	}
	_ = m.(io.Closer).Close()
	settled(t, before)
}
