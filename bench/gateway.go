package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Who is compared in front of the same upstream.
const (
	directPeer  = "direct"
	reversePeer = "reverseproxy"
)

const (
	// gatewayRounds are how often the contestants take turns, so that none has the
	// quieter part of the run.
	gatewayRounds = 6
	// gatewayWarm are requests that are not counted, before the first turn.
	gatewayWarm = 500
)

// door is where a contestant takes requests.
type door struct {
	who     string
	process *process // nil for who asks the upstream itself
	url     string
	token   string
}

// load is one way to ask.
type load struct {
	name        string
	concurrency int
	model       string
	stream      bool
	requests    int // in each turn
	note        string
}

// benchGateway compares the product, as its users run it, with nothing in between
// and with a proxy that does nothing: each contestant is a process of its own in
// front of the same upstream, which is another. The product authenticates,
// decides, judges prompts, meters and records each request.
func benchGateway(ctx context.Context, r *report) (err error) {
	dir, err := os.MkdirTemp("", "creto-bench-gateway-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	upstream, err := startChild(ctx, "upstream")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, upstream.stop()) }()
	proxy, err := startChild(ctx, "reverseproxy "+upstream.address)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, proxy.stop()) }()
	node, token, err := startNode(ctx, dir, upstream.address)
	if node != nil {
		defer func() { err = errors.Join(err, node.stop()) }()
	}
	if err != nil {
		return err
	}
	doors := []door{
		{who: directPeer, url: upstream.address}, {who: reversePeer, process: proxy, url: proxy.address},
		{who: creto, process: node, url: node.address, token: token},
	}
	for _, l := range []load{
		{name: "added/c=1/0ms", concurrency: 1, model: "gpt-bench", requests: 500, note: "budget: what it adds to direct, at most 1.5 times what reverseproxy adds"},
		{name: "added/c=16/50ms", concurrency: 16, model: "gpt-50ms", requests: 800, note: "the upstream takes 50 ms"},
		{name: "throughput/c=32", concurrency: 32, model: "gpt-bench", requests: 4000, note: "budget 5,000 a second"},
		{name: "streams/c=32", concurrency: 32, model: "gpt-bench", stream: true, requests: 1000, note: fmt.Sprintf("streams of %d events; budget 1,800 a second", streamEvents)},
	} {
		if err := l.compare(ctx, r, doors); err != nil {
			return err
		}
	}
	return nil
}

// compare has each contestant take the load, in turns.
func (l load) compare(ctx context.Context, r *report, doors []door) error {
	samples := make([][]float64, len(doors))
	elapsed, busy := make([]time.Duration, len(doors)), make([]time.Duration, len(doors))
	truncated := make([]atomic.Int64, len(doors))
	for round := range gatewayRounds + 1 {
		for i := range doors {
			d := doors[(i+round)%len(doors)]
			n := (i + round) % len(doors)
			turn := l
			if round == 0 {
				turn.requests = gatewayWarm
			}
			before, err := d.cpu()
			if err != nil {
				return err
			}
			took, all, err := turn.run(ctx, d, &truncated[n])
			if err != nil {
				return fmt.Errorf("%s: %s: %w", l.name, d.who, err)
			}
			after, err := d.cpu()
			if err != nil {
				return err
			}
			if round > 0 {
				samples[n], elapsed[n], busy[n] = append(samples[n], took...), elapsed[n]+all, busy[n]+after-before
			}
		}
	}
	for i, d := range doors {
		slices.Sort(samples[i])
		n := len(samples[i])
		x := row{Case: l.name, Who: d.who, N: n, P50: percentile(samples[i], 0.5), P99: percentile(samples[i], 0.99), PerSecond: ref(float64(n) / elapsed[i].Seconds()), Note: l.note}
		if broken := truncated[i].Load(); broken > 0 {
			x.Note = joined(x.Note, fmt.Sprintf("%d streams broke off and are not counted", broken))
		}
		if d.process != nil {
			peak, err := d.process.peak()
			if err != nil {
				return err
			}
			x.CPU, x.RSS = ref(float64(busy[i])/float64(n)), &peak
		}
		r.add(x)
		if l.stream && d.process != nil {
			r.add(row{Case: "cpu-per-chunk", Who: d.who, N: n * streamEvents, CPU: ref(float64(busy[i]) / float64(n*streamEvents)), Note: "of the contestant's process, an event of streams/c=32; budget 8 µs"})
		}
	}
	return nil
}

func (d door) cpu() (time.Duration, error) {
	if d.process == nil {
		return 0, nil
	}
	return d.process.cpu()
}

// run asks, and returns how long each request and all of them took. It adds to
// truncated what a peer broke off.
func (l load) run(ctx context.Context, d door, truncated *atomic.Int64) (took []float64, all time.Duration, err error) {
	transport := &http.Transport{MaxIdleConns: l.concurrency, MaxIdleConnsPerHost: l.concurrency, DisableCompression: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	body := l.body()
	var (
		next  atomic.Int64
		mu    sync.Mutex
		group sync.WaitGroup
		errs  []error
	)
	begin := time.Now()
	for range l.concurrency {
		group.Go(func() {
			var own []float64
			var failed error
			for failed == nil && next.Add(1) <= int64(l.requests) {
				asked := time.Now()
				failed = l.ask(ctx, client, d, body)
				if d.who == reversePeer && errors.Is(failed, errTruncated) {
					truncated.Add(1)
					failed = nil
					continue
				}
				own = append(own, float64(time.Since(asked)))
			}
			mu.Lock()
			defer mu.Unlock()
			took, errs = append(took, own...), append(errs, failed)
		})
	}
	group.Wait()
	return took, time.Since(begin), errors.Join(errs...)
}

// body is a chat of 1.4 KB.
func (l load) body() []byte {
	history := strings.Repeat("The parcel of order 1007 came open, and one of the two cups in it is broken. ", 8)
	return fmt.Appendf(nil, `{"model":%q,"stream":%v,"temperature":0.2,"max_tokens":400,"messages":[{"role":"system","content":"You answer the mails of a shop's customers, in their language, and refund what came broken."},{"role":"user","content":%q},{"role":"assistant","content":"I am sorry to hear that. May I have the number of the order, and would you like another cup or your money back?"},{"role":"user","content":"It is 1007, and I would like my money back, please. The other cup is fine and I keep it, so half of what I paid will do. My name is as on the order."}],"tools":[{"type":"function","function":{"name":"refund","parameters":{"type":"object","properties":{"order":{"type":"string"},"amount":{"type":"string"}}}}}]}`, l.model, l.stream, history)
}

// errTruncated is a stream that ended too soon. A bare proxy that passes the body
// on while the answer begins breaks some off, which is counted; from the product it
// fails the run.
var errTruncated = errors.New("a stream is not whole")

// ask makes one request and reads its whole answer.
func (l load) ask(ctx context.Context, client *http.Client, d door, body []byte) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, d.url+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	if d.token != "" {
		request.Header.Set("Authorization", "Bearer "+d.token)
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	answer, err := io.ReadAll(response.Body)
	closed := response.Body.Close()
	switch {
	case l.stream && errors.Is(err, io.ErrUnexpectedEOF):
		return errTruncated
	case err != nil || closed != nil:
		return errors.Join(err, closed)
	case response.StatusCode != http.StatusOK:
		return fmt.Errorf("%s: %s", response.Status, answer)
	case l.stream && (bytes.Count(answer, []byte(" word")) != streamEvents || !bytes.HasSuffix(answer, []byte("data: [DONE]\n\n"))):
		return errTruncated
	case !l.stream && !bytes.Contains(answer, []byte("order 1007 was sent")):
		return fmt.Errorf("an answer of %d bytes is not whole: %.200s", len(answer), answer)
	}
	return nil
}
