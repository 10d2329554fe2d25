package node_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/tlog"

	"creto.dev/audit"
	"creto.dev/client"
	"creto.dev/node"
)

// logOf reads the log below /log/ as a stranger over TCP, or as the owner over the
// socket.
func logOf(t *testing.T, base, socket string) func(path string, header ...string) (*http.Response, []byte) {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{DisableCompression: true}}
	if socket != "" {
		c.Transport = &http.Transport{DisableCompression: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}}
	}
	t.Cleanup(c.CloseIdleConnections)
	return func(path string, header ...string) (*http.Response, []byte) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/log/"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		response, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		return response, data
	}
}

// TestPublish: who may read what of the log, in the form of C2SP tlog-tiles.
func TestPublish(t *testing.T) {
	for _, test := range []struct {
		publish        string
		proofs, leaves int
	}{{node.PublishNone, 401, 401}, {node.PublishProofs, 200, 401}, {node.PublishAll, 200, 200}} {
		t.Run(test.publish, func(t *testing.T) {
			o := options(t, t.TempDir())
			o.Config.Audit.Publish = test.publish
			_, c, stop := running(t, o)
			if _, err := c.AddHuman(t.Context(), "bob", nil); err != nil {
				t.Fatal(err)
			}
			stop()
			_, c, stop = running(t, o) // its first head has these records
			defer stop()
			defer c.Close()
			status, err := c.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			stranger := logOf(t, "http://"+status.Listen, "")
			owner := logOf(t, "http://creto", filepath.Join(o.DataDir, client.SocketName))
			_, note := owner("checkpoint")
			head, err := audit.ParseHead(note, "creto.local/log")
			if err != nil {
				t.Fatalf("the checkpoint %q: %v", note, err)
			}
			hashes, entries := fmt.Sprintf("tile/0/000.p/%d", head.Size), fmt.Sprintf("tile/entries/000.p/%d", head.Size)
			for path, want := range map[string]int{"checkpoint": test.proofs, hashes: test.proofs, entries: test.leaves} {
				response, data := stranger(path)
				if response.StatusCode != want {
					t.Errorf("a stranger's %s = %d, want %d", path, response.StatusCode, want)
				}
				if want != 200 && bytes.Contains(data, []byte("node_started")) {
					t.Errorf("what is refused is told: %s", data)
				}
				if cache := response.Header.Get("Cache-Control"); want == 200 && path != "checkpoint" && cache != "public, max-age=31536000, immutable" || want != 200 && strings.Contains(cache, "public") {
					t.Errorf("%s is kept as %q", path, cache)
				}
			}
			response, data := owner(hashes)
			if response.Header.Get("Content-Type") != "application/octet-stream" || len(data) != int(head.Size)*tlog.HashSize {
				t.Errorf("%s = %d bytes of %s", hashes, len(data), response.Header.Get("Content-Type"))
			}
			_, bundle := owner(entries)
			rest := bundle
			for i := range head.Size {
				var leaf []byte
				if leaf, rest, err = torchwood.ReadTileEntry(rest); err != nil {
					t.Fatal(err)
				}
				if got := tlog.RecordHash(leaf); !bytes.Equal(got[:], data[i*tlog.HashSize:][:tlog.HashSize]) {
					t.Errorf("entry %d has another hash than its tile says", i)
				}
			}
			if len(rest) > 0 {
				t.Errorf("%d bytes follow the entries", len(rest))
			}
			response, packed := owner(entries, "Accept-Encoding", "br, gzip")
			z, err := gzip.NewReader(bytes.NewReader(packed))
			if err != nil || response.Header.Get("Content-Encoding") != "gzip" {
				t.Fatalf("gzip: %v, %v", response.Header, err)
			}
			if again, err := io.ReadAll(z); err != nil || !bytes.Equal(again, bundle) {
				t.Errorf("unpacked it is another (%v)", err)
			}
			for _, path := range []string{
				"", "tile", "tile/0", "tile/0/000", "tile/0/001", "tile/1/000", "tile/0/000.p/0", "tile/0/000.p/256", "tile/0/000.p/200", "tile/0/0", "tile/0/x000/000",
				"tile/64/000", "tile/0/000.p/01", "tile/-1/000", "tile/data/000", "tile/entries/000", "checkpoint/", "tile/0/000.p/1/", "tile/0/999999999999999999999",
				"tile/7/x999/x999/x999/x999/999.p/1",
			} {
				if response, _ := owner(path); response.StatusCode != 404 {
					t.Errorf("%s = %d, want 404", path, response.StatusCode)
				}
			}
			if response, _ := owner(fmt.Sprintf("tile/0/000.p/%d", head.Size-1)); response.StatusCode != 200 {
				t.Errorf("a narrower tile = %d", response.StatusCode)
			}
		})
	}
}
