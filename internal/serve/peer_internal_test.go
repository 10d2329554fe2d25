package serve

import (
	"context"
	"crypto/tls"
	"net/netip"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	wiretestv1 "creto.dev/internal/gen/creto/wiretest/v1"
)

// Where a token is believed not to be heard.
func TestPrivate(t *testing.T) {
	at := netip.MustParseAddrPort
	for _, test := range []struct {
		name string
		peer Peer
		want bool
	}{
		{"nothing known", Peer{}, false},
		{"the socket", Peer{Local: true}, true},
		{"TLS from elsewhere", Peer{TLS: &tls.ConnectionState{}, Address: at("192.0.2.1:1")}, true},
		{"IPv4 loopback", Peer{Address: at("127.8.9.1:1")}, true},
		{"IPv6 loopback", Peer{Address: at("[::1]:1")}, true},
		{"IPv4 loopback in IPv6", Peer{Address: at("[::ffff:127.0.0.1]:1")}, true},
		{"from elsewhere", Peer{Address: at("192.0.2.1:1")}, false},
		{"from elsewhere, in IPv6", Peer{Address: at("[::ffff:192.0.2.1]:1")}, false},
		{"a private network", Peer{Address: at("10.0.0.1:1")}, false},
		{"a link", Peer{Address: at("[fe80::1%lo]:1")}, false},
		{"any address", Peer{Address: at("[::]:1")}, false},
	} {
		if got := test.peer.Private(); got != test.want {
			t.Errorf("%s: Private = %v, want %v", test.name, got, test.want)
		}
	}
}

// A call has one token or none: of two, what is in front of the node may have
// looked at the other.
func TestPeerToken(t *testing.T) {
	for _, test := range []struct {
		name   string
		values []string
		want   string
	}{
		{"none", nil, ""}, {"one", []string{"Bearer a"}, "a"}, {"two", []string{"Bearer a", "Bearer b"}, ""},
		{"the scheme in another case", []string{"bearer a"}, "a"}, // RFC 9110, section 11.1
		{"another scheme", []string{"Basic a"}, ""}, {"no scheme", []string{"a"}, ""}, {"nothing behind it", []string{"Bearer "}, ""},
	} {
		md := metadata.MD{"authorization": test.values}
		if got := peerOf(metadata.NewIncomingContext(t.Context(), md)); got.Token.Reveal() != test.want || got.Private() {
			t.Errorf("%s: the token is %q, want %q", test.name, got.Token.Reveal(), test.want)
		}
	}
}

// sparse is a stream whose messages set one field each.
type sparse struct {
	grpc.ServerStream
	from []*wiretestv1.EchoRequest
}

func (s *sparse) RecvMsg(into any) error {
	proto.Merge(into.(proto.Message), s.from[0])
	s.from = s.from[1:]
	return nil
}

func (*sparse) Context() context.Context { return context.Background() }

// What was in a message before it is received is not in it after.
func TestConversationReplaces(t *testing.T) {
	c := &conversation{&sparse{from: []*wiretestv1.EchoRequest{{Text: "one"}, {Data: []byte("two")}}}, make(stopping)}
	var in wiretestv1.EchoRequest
	for _, want := range []*wiretestv1.EchoRequest{{Text: "one"}, {Data: []byte("two")}} {
		if err := c.RecvMsg(&in); err != nil || !proto.Equal(&in, want) {
			t.Errorf("received %v, %v; want %v", &in, err, want)
		}
	}
	if err := c.RecvMsg("no message"); err == nil {
		t.Error("something else than a message is received")
	}
}
