package serve

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// Who sends a body byte by byte, or not at all, holds no connection for ever;
// an answer may take its time.
func TestSlowBody(t *testing.T) {
	for name, test := range map[string]struct {
		handler http.HandlerFunc
		said    string
		want    bool // that there is an answer, an hour later
	}{
		"unread": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }, "Content-Length: 100\r\n\r\nx", false},
		"read": {func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.ReadAll(r.Body)
		}, "Content-Length: 100\r\n\r\nx", false},
		"slow answer": {func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.ReadAll(r.Body)
			select {
			case <-time.After(time.Hour):
				w.WriteHeader(http.StatusNoContent)
			case <-r.Context().Done():
			}
		}, "Content-Length: 1\r\n\r\nx", true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newPipes()
				ctx, stop := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- Serve(ctx, l, test.handler, slog.New(slog.DiscardHandler)) }()
				client := l.dial()
				answer := make(chan string, 1)
				go func() {
					all, _ := io.ReadAll(client) // until it is closed
					answer <- string(all)
				}()
				if _, err := io.WriteString(client, "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"+test.said); err != nil {
					t.Fatal(err)
				}
				time.Sleep(2 * time.Hour)
				select {
				case text := <-answer:
					if test.want && text[:12] != "HTTP/1.1 204" {
						t.Errorf("it is answered %q", text)
					}
				default:
					t.Error("the connection is still open two hours later")
					_ = client.Close()
				}
				stop()
				if err := <-ended; err != nil {
					t.Errorf("Serve = %v", err)
				}
			})
		})
	}
}
