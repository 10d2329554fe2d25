package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"net/url"
	"path"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"creto.dev/fault"
)

func TestCanonicalURL(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{"http://EXAMPLE.com", "http://example.com/"},
		{"http://example.com.:80/", "http://example.com/"},
		{"http://example.com:0080/", "http://example.com/"},
		{"http://example.com:8080/", "http://example.com:8080/"},
		{"http://example.com/a/../b/./c//d", "http://example.com/b/c/d"},
		{"http://example.com/../../x", "http://example.com/x"},
		{"http://example.com/a/..", "http://example.com/"},
		{"http://example.com/a/b/..", "http://example.com/a/"},
		{"http://example.com/a/.", "http://example.com/a/"},
		{"http://example.com/a/?b=%2F..%2F;c#d", "http://example.com/a/?b=%2F..%2F;c"},
		{"http://example.com/%61%20%3f", "http://example.com/a%20%3F"},
		{"http://bücher.example/", "http://xn--bcher-kva.example/"},
		{"http://ｅｘａｍｐｌｅ.com/", "http://example.com/"},
		{"http://１２７.0.0.1/", "http://127.0.0.1/"},
		{"http://127.0.0.1:80/", "http://127.0.0.1/"},
		{"http://[0:0:0:0:0:0:0:1]:80/", "http://[::1]/"},
		{"http://[::FFFF:169.254.169.254]/", "http://169.254.169.254/"},
		{"http://[2001:DB8::80]:80/x", "http://[2001:db8::80]/x"},
		{"http://r4---sn-x_y.example/", "http://r4---sn-x_y.example/"},
		{"https://example.com/", ""}, {"http://u@example.com/", ""}, {"http:example.com", ""}, {"http:///", ""}, {"http://a..b/", ""},
		{"http://example.com:0/", ""}, {"http://127.1/", ""}, {"http://0177.0.0.1/", ""}, {"http://example.0x1/", ""}, {"http://1.2.3.4.5/", ""},
		{"http://a b.example/", ""}, {"http://[fe80::1%25eth0]/", ""}, {"http://example.com/a%2Fb", ""}, {"http://example.com/%2E./b", ""}, {"http://example.com/a%5Cb", ""},
		{"http://example.com/a%252Fb", ""}, {"http://example.com/a%3Bb", ""}, {"http://example.com/a%00", ""}, {"http://example.com/a%FF", ""},
	} {
		u, err := url.Parse(test.in)
		var got *url.URL
		if err == nil {
			got, err = canonicalURL(u)
		}
		if test.want == "" {
			if err == nil {
				t.Errorf("canonicalURL(%s) = %s, want a refusal", test.in, got)
			}
		} else if err != nil || got.String() != test.want {
			t.Errorf("canonicalURL(%s) = %v, %v, want %s", test.in, got, err, test.want)
		}
	}
}

// FuzzCanonicalURL: what is accepted has one form, which is its own, and which
// every reader takes for the same host and path.
func FuzzCanonicalURL(f *testing.F) {
	for _, seed := range []string{
		"http://EXAMPLE.com:80/a/../b?c#d", "http://[::ffff:10.0.0.1]/", "http://bücher.example./%41", "http://u:p@h/%2e%2e/;x", "http://0x7f.1/%00", "http://h:0099//..//", "http:opaque", "http://１.2.3.4/a%252f",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		u, err := url.Parse(text)
		if err != nil {
			return
		}
		got, err := canonicalURL(u)
		if err != nil {
			if !errors.Is(err, fault.InvalidArgument) {
				t.Fatalf("canonicalURL(%q) = %v, want InvalidArgument", text, err)
			}
			return
		}
		again, err := url.Parse(got.String())
		if err != nil {
			t.Fatalf("%q became %q, which is no URL: %v", text, got, err)
		}
		twice, err := canonicalURL(again)
		if err != nil || twice.String() != got.String() {
			t.Fatalf("%q became %q and then %v, %v", text, got, twice, err)
		}
		if again.Path != got.Path || again.Host != got.Host || again.RawQuery != got.RawQuery {
			t.Fatalf("%q became %#v, which reads as %#v", text, got, again)
		}
		if p := path.Clean(got.Path); p != got.Path && p+"/" != got.Path || strings.ContainsAny(got.Host, "@%ABCDEFGHIJKLMNOPQRSTUVWXYZ \r\n") || !utf8.ValidString(got.String()) {
			t.Fatalf("%q became %q", text, got)
		}
		if ip, err := netip.ParseAddr(got.Hostname()); err == nil && (ip.String() != got.Hostname() || ip.Is4In6()) {
			t.Fatalf("%q has the address %q", text, got.Hostname())
		}
	})
}

// FuzzStrictJSON: what is accepted is the same value to a reader that takes the
// last of two keys, and has no two keys that one could take for the same.
func FuzzStrictJSON(f *testing.F) {
	for _, seed := range []string{
		`{"a":1,"b":[true,null,"x",1.50,-0,1e3]}`, `{"a":1,"a":2}`, `{"k":1,"K":2}`, `{"k":1,"\u212a":2}`, `"\ud83d\ude00"`, `"\ud83d"`, `"\\ud83d"`, `[1,]`, `1 2`, `{"":{"":0}}`, strings.Repeat("[", 13) + strings.Repeat("]", 13), "\xef\xbb\xbf{}", `{"ſ":1,"s":2}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := strictJSON(body)
		if err != nil {
			if !errors.Is(err, fault.InvalidArgument) {
				t.Fatalf("strictJSON(%q) = %v, want InvalidArgument", body, err)
			}
			return
		}
		var want any
		d := json.NewDecoder(bytes.NewReader(body))
		d.UseNumber()
		if err := d.Decode(&want); err != nil || d.More() {
			t.Fatalf("strictJSON accepted %q, another reader says %v", body, err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("strictJSON(%q) = %v, another reader has %v", body, got, want)
		}
		// Written again by another writer, it is accepted again.
		if text, err := json.Marshal(got); err == nil {
			if _, err := strictJSON(text); err != nil {
				t.Fatalf("strictJSON(%q) accepted, but not as %q: %v", body, text, err)
			}
		}
	})
}
