package gateway

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"creto.dev/fault"
)

// dialTimeout bounds the making of one connection.
const dialTimeout = 10 * time.Second

// dialer connects to hosts that agents name. The guard looks at the address
// that is really dialled, after resolution, so that no name can lead inside.
type dialer struct {
	hosts   map[string]string
	guarded net.Dialer
	exempt  net.Dialer
}

func newDialer(hosts map[string]string) *dialer {
	lower := make(map[string]string, len(hosts))
	for name, address := range hosts {
		lower[strings.ToLower(name)] = address
	}
	return &dialer{
		hosts:   lower,
		guarded: net.Dialer{Timeout: dialTimeout, Control: guard},
		exempt:  net.Dialer{Timeout: dialTimeout},
	}
}

// dial connects to address, which canonicalHost has written.
func (d *dialer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	const op fault.Op = "gateway.dial"
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fault.WrapAs(op, fault.InvalidArgument, err, "%q is no host and port", address)
	}
	dial, target := d.guarded.DialContext, address
	for _, name := range []string{address, host} {
		if mapped, ok := d.hosts[name]; ok {
			dial, target = d.exempt.DialContext, mapped
			break
		}
	}
	conn, err := dial(ctx, network, target)
	if err != nil {
		return nil, upstream(op, err, address+" cannot be reached")
	}
	return conn, nil
}

// special are the ranges that are not on the public internet beside those that
// netip knows (IANA's special-purpose registries, RFC 6890), and the ways to
// write an IPv4 address in IPv6: compatible, NAT64, Teredo, 6to4.
var special = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("192.88.99.0/24"), netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("::/96"), netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("64:ff9b:1::/48"),
	netip.MustParsePrefix("100::/64"), netip.MustParsePrefix("2001::/23"), netip.MustParsePrefix("2001:db8::/32"),
	netip.MustParsePrefix("2002::/16"), netip.MustParsePrefix("3fff::/20"), netip.MustParsePrefix("5f00::/16"), netip.MustParsePrefix("fec0::/10"),
}

// guard refuses addresses inside (R-EXT-10).
func guard(_, address string, _ syscall.RawConn) error {
	const op fault.Op = "gateway.guard"
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return fault.WrapAs(op, fault.PermissionDenied, err, "the address is not allowed")
	}
	ip := at.Addr().WithZone("").Unmap() // a zone would keep it out of every prefix
	inside := !ip.IsGlobalUnicast() || ip.IsPrivate() || ip.IsLoopback() || ip.IsLinkLocalUnicast()
	for _, prefix := range special {
		inside = inside || prefix.Contains(ip)
	}
	if inside {
		return fault.New(op, fault.PermissionDenied, "the host is at a private address, which agents may not reach; to allow it, map its name under [egress.hosts]")
	}
	return nil
}
