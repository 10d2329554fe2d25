package gateway_test

import (
	"net/http"
	"testing"

	"creto.dev/gateway"
)

// TestAccessToken: a token is taken from one place, and never guessed.
func TestAccessToken(t *testing.T) {
	for name, test := range map[string]struct {
		header http.Header
		want   string
	}{
		"none":               {http.Header{}, ""},
		"bearer":             {http.Header{"Authorization": {"Bearer a.b.c"}}, "a.b.c"},
		"any case":           {http.Header{"Authorization": {"bEARER a.b.c"}}, "a.b.c"},
		"DPoP":               {http.Header{"Authorization": {"DPoP a.b.c"}}, "a.b.c"},
		"another scheme":     {http.Header{"Authorization": {"Basic a.b.c"}}, ""},
		"no scheme":          {http.Header{"Authorization": {"a.b.c"}}, ""},
		"x-api-key":          {http.Header{"X-Api-Key": {"a.b.c"}}, "a.b.c"},
		"both":               {http.Header{"Authorization": {"Bearer a.b.c"}, "X-Api-Key": {"d.e.f"}}, "a.b.c"},
		"twice":              {http.Header{"Authorization": {"Bearer a.b.c", "Bearer d.e.f"}}, ""},
		"twice, one in vain": {http.Header{"Authorization": {"Basic x", "Bearer d.e.f"}, "X-Api-Key": {"a.b.c"}}, ""},
		"two keys":           {http.Header{"X-Api-Key": {"a.b.c", "d.e.f"}}, ""},
	} {
		if got := gateway.AccessToken(&http.Request{Header: test.header}); got != test.want {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}
