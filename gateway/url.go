package gateway

import (
	"net"
	"net/netip"
	"net/url"
	"path"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"

	"creto.dev/fault"
)

// canonicalURL returns the one form of a URL that policies see and upstreams
// get: what was decided on is what is sent. The query is passed on as it is.
//
// Errors: InvalidArgument (Permanent) for a URL that servers read in different
// ways.
func canonicalURL(u *url.URL) (*url.URL, error) {
	const op fault.Op = "gateway.canonicalURL"
	if u.Scheme != "http" || u.Opaque != "" {
		return nil, fault.New(op, fault.InvalidArgument, "%.200q cannot be proxied; use http://, or https:// through CONNECT", u.Scheme+":")
	}
	if u.User != nil {
		return nil, fault.New(op, fault.InvalidArgument, "a URL with a user name or password is refused")
	}
	host, err := canonicalHost(u.Hostname(), u.Port(), "80")
	if err != nil {
		return nil, err
	}
	if ambiguous(u) {
		return nil, fault.New(op, fault.InvalidArgument, "the path %.200q is ambiguous: encoded slashes and dots, backslashes, semicolons and control characters are refused", u.EscapedPath())
	}
	clean := path.Clean("/" + u.Path)
	if last := u.Path[strings.LastIndexByte(u.Path, '/')+1:]; clean != "/" && (last == "" || last == "." || last == "..") {
		clean += "/" // as RFC 3986, section 5.2.4 has it
	}
	return &url.URL{Scheme: u.Scheme, Host: strings.TrimSuffix(host, ":80"), Path: clean, RawQuery: u.RawQuery}, nil
}

// ambiguous reports whether a path means one thing to some servers and another
// to others, also to those that decode it twice.
func ambiguous(u *url.URL) bool {
	for _, text := range []string{u.EscapedPath(), u.Path} {
		for _, encoded := range []string{"%2f", "%5c", "%2e"} {
			if strings.Contains(strings.ToLower(text), encoded) {
				return true
			}
		}
	}
	return !utf8.ValidString(u.Path) || strings.ContainsAny(u.Path, `\;`) || strings.ContainsFunc(u.Path, unicode.IsControl)
}

// maxHostBytes is what DNS allows (RFC 1035, section 2.3.4).
const maxHostBytes = 253

// canonicalHost returns host:port: names in lower case and ASCII, addresses in
// their one form, ports without zeros.
//
// Errors: InvalidArgument (Permanent).
func canonicalHost(host, port, defaultPort string) (string, error) {
	const op fault.Op = "gateway.canonicalHost"
	if port == "" {
		port = defaultPort
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil || number == 0 {
		return "", fault.New(op, fault.InvalidArgument, "%.200q is no port", port)
	}
	port = strconv.FormatUint(number, 10)
	name := strings.ToLower(host)
	if strings.ContainsFunc(name, func(r rune) bool { return r >= utf8.RuneSelf }) {
		if name, err = idna.Lookup.ToASCII(name); err != nil {
			return "", fault.New(op, fault.InvalidArgument, "%.200q is no host", host)
		}
	}
	name = strings.TrimSuffix(name, ".")
	if ip, err := netip.ParseAddr(name); err == nil && ip.Zone() == "" {
		return net.JoinHostPort(ip.Unmap().String(), port), nil
	}
	// What ends in a number and is no address in the usual form is one to some
	// resolvers: 127.1, 0x7f000001.
	labels := strings.Split(name, ".")
	last := labels[len(labels)-1]
	_, err = strconv.ParseUint(last, 0, 64)
	if len(name) > maxHostBytes || err == nil || strings.Trim(last, "0123456789") == "" {
		return "", fault.New(op, fault.InvalidArgument, "%.200q is no host", host)
	}
	for _, label := range labels {
		if label == "" || strings.ContainsFunc(label, func(r rune) bool {
			return !('a' <= r && r <= 'z' || '0' <= r && r <= '9' || r == '-' || r == '_')
		}) {
			return "", fault.New(op, fault.InvalidArgument, "%.200q is no host", host)
		}
	}
	return net.JoinHostPort(name, port), nil
}
