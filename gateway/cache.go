package gateway

import (
	"net/http"
	"strings"

	"creto.dev/inference"
)

// noStore reports whether a request asks for an answer that is neither taken from a
// cache nor kept in one (RFC 9111, section 5.2.1). no-cache and max-age=0, which ask
// for the first alone, get both.
func noStore(h http.Header) bool {
	for _, value := range h.Values("Cache-Control") {
		for directive := range strings.SplitSeq(value, ",") {
			switch strings.ToLower(strings.TrimSpace(directive)) {
			case "no-store", "no-cache", "max-age=0":
				return true
			}
		}
	}
	return false
}

// cached tells the caller that it gets an answer that was kept (RFC 9211).
func (w *startedWriter) cached(served *inference.Served) {
	if served.Cache != "" {
		w.Header().Set("Cache-Status", "creto; hit")
	}
}
