package serve

import (
	"compress/gzip"
	"context"
	"errors"
	"net/http"
	"strings"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/tlog"

	"creto.dev/fault"
	"creto.dev/fault/faulthttp"
)

// TransparencyLog is what others check the audit log with.
type TransparencyLog interface {
	// Checkpoint returns the published head, with its cosignatures.
	Checkpoint(ctx context.Context) ([]byte, error)
	// Tile returns a tile of height 8: W hashes, or for L = -1 as many entries,
	// each behind its length in two bytes.
	//
	// Errors: a NotFound kind for a tile that the tree does not have, or not as
	// wide.
	Tile(ctx context.Context, t tlog.Tile) ([]byte, error)
}

// logPrefix is where the audit log is served.
const logPrefix = "/log/"

// TileServer serves a log below /log/ as C2SP tlog-tiles has it. mayRead refuses
// whoever may not read it, or not its entries; open says that it never does.
//
// https://c2sp.org/tlog-tiles.
func TileServer(l TransparencyLog, mayRead func(r *http.Request, entries bool) (open bool, err error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		const op fault.Op = "serve.TileServer"
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			faulthttp.Write(w, r, fault.New(op, fault.InvalidArgument, "the log is read with GET"))
			return
		}
		path := strings.TrimPrefix(r.URL.Path, logPrefix)
		tile, err := torchwood.ParseTilePath(path)
		head := path == "checkpoint"
		if err != nil && !head || err == nil && torchwood.TilePath(tile) != path {
			faulthttp.Write(w, r, fault.New(op, fault.NotFound, "there is nothing at %s; a log has checkpoint and tile/", r.URL.Path))
			return
		}
		open, err := mayRead(r, tile.L == -1)
		if err != nil {
			faulthttp.Write(w, r, err)
			return
		}
		var data []byte
		if head {
			data, err = l.Checkpoint(r.Context())
		} else {
			data, err = l.Tile(r.Context(), tile)
		}
		if err != nil {
			faulthttp.Write(w, r, err)
			return
		}
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		if open { // a monitor may be a page
			h.Set("Access-Control-Allow-Origin", "*")
		}
		switch {
		case head:
			h.Set("Content-Type", "text/plain; charset=utf-8")
			h.Set("Cache-Control", "no-cache")
		case open:
			h.Set("Content-Type", "application/octet-stream")
			h.Set("Cache-Control", "public, max-age=31536000, immutable")
		default:
			h.Set("Content-Type", "application/octet-stream")
			h.Set("Cache-Control", "private, max-age=31536000, immutable")
		}
		if tile.L == -1 && !head { // hashes do not get smaller
			h.Set("Vary", "Accept-Encoding")
			if acceptsGzip(r) {
				h.Set("Content-Encoding", "gzip")
				z := gzip.NewWriter(w)
				_, err := z.Write(data)
				_ = errors.Join(err, z.Close()) // a reader who left needs no answer
				return
			}
		}
		_, _ = w.Write(data) // likewise
	})
}

// acceptsGzip reports whether gzip stands in Accept-Encoding and is not refused.
func acceptsGzip(r *http.Request) bool {
	for coding := range strings.SplitSeq(r.Header.Get("Accept-Encoding"), ",") {
		name, q, _ := strings.Cut(strings.TrimSpace(coding), ";")
		if strings.EqualFold(strings.TrimSpace(name), "gzip") {
			q = strings.TrimSpace(q)
			return q != "q=0" && q != "q=0.0" && q != "q=0.00" && q != "q=0.000"
		}
	}
	return false
}
