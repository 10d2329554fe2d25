package wire_test

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	"creto.dev/fault"
	wiretestv1 "creto.dev/internal/gen/creto/wiretest/v1"
	"creto.dev/internal/wire"
	"creto.dev/internal/wire/wiretest"
)

// black is a connection that, once it is dead, takes what is written and gives nothing: a cable
// that was pulled, a machine that lost its power.
type black struct {
	net.Conn
	dead   *atomic.Bool
	closed <-chan struct{} // by this end
	close  context.CancelFunc
}

func (b black) Write(p []byte) (int, error) {
	if b.dead.Load() {
		return len(p), nil
	}
	return b.Conn.Write(p)
}

func (b black) Read(p []byte) (int, error) {
	n, err := b.Conn.Read(p)
	if b.dead.Load() {
		<-b.closed
		return 0, net.ErrClosed
	}
	return n, err
}

// Close tells the other end nothing, for as long as the test looks.
func (b black) Close() error {
	b.close()
	if b.dead.Load() {
		time.AfterFunc(time.Hour, func() { _ = b.Conn.Close() })
		return nil
	}
	return b.Conn.Close()
}

// hanging never answers.
type hanging struct {
	wiretestv1.UnimplementedEchoServiceServer
	ended chan struct{}
}

func (h hanging) Echo(ctx context.Context, _ *wiretestv1.EchoRequest) (*wiretestv1.EchoResponse, error) {
	<-ctx.Done()
	close(h.ended)
	return nil, ctx.Err()
}

// A connection whose other end is gone without a word is noticed by both sides,
// though the call has no deadline.
func TestHalfOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := bufconn.Listen(1 << 16)
		h := hanging{ended: make(chan struct{})}
		wiretest.Serve(t, l, wire.ServerConfig{}, func(s grpc.ServiceRegistrar) { wiretestv1.RegisterEchoServiceServer(s, h) })
		dead := new(atomic.Bool)
		conn := wiretest.Dial(t, wire.Config{Connect: func(ctx context.Context) (net.Conn, error) {
			if dead.Load() {
				return nil, net.ErrClosed
			}
			c, err := l.DialContext(ctx)
			closed, closing := context.WithCancel(context.WithoutCancel(ctx))
			return black{c, dead, closed.Done(), closing}, err
		}})
		start := time.Now()
		time.AfterFunc(time.Second, func() { dead.Store(true) })
		_, err := wiretestv1.NewEchoServiceClient(conn).Echo(t.Context(), &wiretestv1.EchoRequest{})
		if took := time.Since(start); fault.CodeOf(err) != fault.Unavailable || took > time.Minute {
			t.Errorf("the client: %v after %v", err, took)
		}
		<-h.ended
		if took := time.Since(start); took > time.Minute {
			t.Errorf("the server's handler ended after %v", took)
		}
	})
}
