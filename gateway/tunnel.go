package gateway

import (
	"context"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/gate"
)

// connect is a tunnel to host:port. What goes through it is not seen: it is
// decided by host alone.
func (g *Gateway) connect(w *startedWriter, r *http.Request, v *visit) error {
	target, err := canonicalHost(r.URL.Hostname(), r.URL.Port(), "443")
	if err != nil {
		return err
	}
	id, err := g.gate.Do(r.Context(), v.Caller, creto.Action{
		Name: creto.NetworkEgress, Resource: creto.Resource{Type: "Host", ID: target}, Args: []byte("CONNECT " + target),
		Context: map[string]any{"host": target}, IdempotencyKey: v.key, Sandbox: v.Sandbox, Isolation: v.Isolation,
	}, v.inForce(0, func(ctx context.Context) (gate.Result, error) {
		return g.tunnel(ctx, w, target)
	}))
	recorded(r.Context(), id, err)
	if w.started {
		return nil // the connection is taken over and closed, there is nobody to tell
	}
	return err
}

func (g *Gateway) tunnel(ctx context.Context, w *startedWriter, target string) (gate.Result, error) {
	const op fault.Op = "gateway.tunnel"
	result := gate.Result{Detail: map[string]string{"decided_on": "host only"}}
	out, err := g.dialer.dial(ctx, "tcp", target)
	if err != nil {
		return result, fault.Wrap(op, err)
	}
	defer func() { _ = out.Close() }()
	in, buffered, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return result, fault.WrapAs(op, fault.Internal, err, "")
	}
	w.started = true
	defer func() { _ = in.Close() }()
	// A shutdown, or the end of the caller's authority, ends the tunnel.
	stop := context.AfterFunc(ctx, func() { _ = in.Close(); _ = out.Close() })
	defer stop()
	if _, err := io.WriteString(in, "HTTP/1.1 200 Connection Established\r\n\r\n"); err != nil {
		return result, fault.WrapAs(op, fault.Canceled, err, "the caller went away")
	}
	var up, down int64
	var pumps sync.WaitGroup
	// Only what was read already comes from buffered: behind it is the server's
	// reader, to which a half-close is the caller going away.
	ahead := io.LimitReader(buffered, int64(buffered.Reader.Buffered()))
	pumps.Go(func() { up = pump(out, io.MultiReader(ahead, in), in) })
	pumps.Go(func() { down = pump(in, out, out) })
	pumps.Wait()
	result.Detail["bytes_sent"] = strconv.FormatInt(up, 10)
	result.Detail["bytes_received"] = strconv.FormatInt(down, 10)
	return result, fault.Wrap(op, ctx.Err())
}

// pump copies from one side to the other and passes the end on: a half-close
// for an end, a full close of both for an error.
func pump(to net.Conn, from io.Reader, source net.Conn) int64 {
	n, err := io.Copy(to, from)
	half, ok := to.(interface{ CloseWrite() error })
	if err != nil || !ok {
		_ = to.Close()
		_ = source.Close()
		return n
	}
	_ = half.CloseWrite() // what is wrong with to is its reader's to notice
	return n
}
