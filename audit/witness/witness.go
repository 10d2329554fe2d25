// Package witness has the two sides of C2SP tlog-witness: [Witness] cosigns the
// heads of others' logs, each only if it extends the last one, and [Publisher]
// has the heads of this node's log cosigned. Two people who are shown heads that
// one witness cosigned are shown one log: a split view takes a head that no
// witness would cosign (R-AUD-5).
//
// A witness learns sizes and hashes, never a record.
//
// https://c2sp.org/tlog-witness and https://c2sp.org/tlog-cosignature.
package witness

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"

	"creto.dev/fault"
	"creto.dev/internal/durable"
	"creto.dev/internal/logkey"
)

// maxProofLines is how many hashes a request may have (tlog-witness).
const maxProofLines = 63

// maxBodyBytes bounds a request: a head with all the signatures that audit lets
// it have, and the proof.
const maxBodyBytes = 256<<10 + 64*64

// Witness is an http.Handler that cosigns the heads of the logs that it knows.
// Safe for concurrent use.
type Witness struct {
	signer *torchwood.CosignatureSigner
	logs   map[string]*watched // by origin
	log    *slog.Logger
	lock   *os.File
}

// watched is one log.
type watched struct {
	keys []note.Verifier
	path string

	mu   sync.Mutex // guards head; held from its comparison until the next one is on disk
	head tlog.Tree
}

// Open opens a witness whose heads are in dir. vkeys are the Ed25519 verifier
// keys of the logs; one log may have several.
//
// Errors: InvalidArgument (Permanent) for a key that is none; FailedPrecondition
// (Permanent) if another process uses dir; DataLoss (Security) for a head that
// cannot be read, without which nothing may be cosigned; Unavailable (Degraded).
func Open(dir string, signer *torchwood.CosignatureSigner, vkeys []string, log *slog.Logger) (_ *Witness, err error) {
	const op fault.Op = "witness.Open"
	w := &Witness{signer: signer, logs: make(map[string]*watched), log: log}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.WrapAs(op, fault.Unavailable, err, "the witness's directory %s cannot be made", dir)
	}
	if w.lock, err = os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, fault.WrapAs(op, fault.Unavailable, err, "the witness's directory %s cannot be used", dir)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.lock.Close())
		}
	}()
	if err := unix.Flock(int(w.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fault.WrapAs(op, fault.FailedPrecondition, err, "%s is in use by another witness", dir)
	}
	if err := durable.Sweep(dir); err != nil {
		return nil, fault.WrapAs(op, fault.Unavailable, err, "the witness's directory %s cannot be used", dir)
	}
	for _, vkey := range vkeys {
		v, err := note.NewVerifier(vkey)
		if err != nil {
			return nil, fault.New(op, fault.InvalidArgument, "%q is no Ed25519 verifier key of a log; its node prints it: creto audit key", vkey)
		}
		l := w.logs[v.Name()]
		if l == nil {
			name := sha256.Sum256([]byte(v.Name()))
			l = &watched{path: filepath.Join(dir, hex.EncodeToString(name[:])+".head")}
			if l.head, err = readHead(l.path, v.Name()); err != nil {
				return nil, fault.Wrap(op, err)
			}
			w.logs[v.Name()] = l
		}
		l.keys = append(l.keys, v)
	}
	return w, nil
}

// Close lets another process use the directory.
func (w *Witness) Close() error { return w.lock.Close() }

// VKey returns the key that verifies what w cosigns.
func (w *Witness) VKey() string { return w.signer.Verifier().String() }

// readHead reads the last head of a log; the empty tree if there is none.
func readHead(path, origin string) (tlog.Tree, error) {
	const op fault.Op = "witness.readHead"
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return tlog.Tree{}, nil
	}
	if err != nil {
		return tlog.Tree{}, fault.WrapAs(op, fault.Unavailable, err, "%s cannot be read", path)
	}
	c, err := torchwood.ParseCheckpoint(string(text))
	if err != nil || c.Origin != origin {
		return tlog.Tree{}, fault.New(op, fault.DataLoss, "%s is not a head of %q; restore it, or nobody can say what was cosigned", path, origin)
	}
	return c.Tree, nil
}

// Refusal is an answer other than a cosignature: an HTTP status and why; of a
// conflict, the size of the last head.
type Refusal struct {
	Status int
	Reason string
	Known  int64
}

func refuse(status int, format string, args ...any) *Refusal {
	return &Refusal{Status: status, Reason: fmt.Sprintf(format, args...)}
}

// ServeHTTP implements POST /add-checkpoint.
func (w *Witness) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path != "/add-checkpoint":
		http.Error(rw, "there is /add-checkpoint", http.StatusNotFound)
		return
	case r.Method != http.MethodPost:
		rw.Header().Set("Allow", http.MethodPost)
		http.Error(rw, "POST a checkpoint", http.StatusMethodNotAllowed)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, maxBodyBytes))
	if err != nil {
		http.Error(rw, "the request is too large, or was cut", http.StatusRequestEntityTooLarge)
		return
	}
	line, no := w.Cosign(body)
	switch {
	case no == nil:
		rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = rw.Write(line) // a log that left asks again
	case no.Status == http.StatusConflict:
		rw.Header().Set("Content-Type", "text/x.tlog.size")
		rw.WriteHeader(no.Status)
		_, _ = fmt.Fprintf(rw, "%d\n", no.Known)
	default:
		http.Error(rw, no.Reason, no.Status)
	}
	if no != nil {
		w.log.LogAttrs(r.Context(), slog.LevelWarn, "head not cosigned", slog.Int(logkey.Status, no.Status), slog.String(logkey.Error, no.Reason))
	}
}

// request is the body of add-checkpoint.
type request struct {
	old   int64
	proof tlog.TreeProof
	note  []byte
}

func parseRequest(body []byte) (request, bool) {
	var r request
	head, rest, ok := bytes.Cut(body, []byte("\n\n"))
	lines := strings.Split(string(head), "\n")
	old, isOld := strings.CutPrefix(lines[0], "old ")
	if !ok || !isOld || len(lines)-1 > maxProofLines {
		return r, false
	}
	var err error
	if r.old, err = strconv.ParseInt(old, 10, 64); err != nil || r.old < 0 || strconv.FormatInt(r.old, 10) != old {
		return r, false
	}
	for _, line := range lines[1:] {
		h, err := tlog.ParseHash(line)
		if err != nil || h.String() != line {
			return r, false
		}
		r.proof = append(r.proof, h)
	}
	r.note = rest
	return r, true
}

// Cosign takes the body of a request and returns the signature line. When it
// does, the head survives a power cut, so that no other one of its size, and no
// smaller one, is ever cosigned.
func (w *Witness) Cosign(body []byte) ([]byte, *Refusal) {
	r, ok := parseRequest(body)
	if !ok {
		return nil, refuse(http.StatusBadRequest, "the request is not of the form of tlog-witness")
	}
	origin, _, _ := strings.Cut(string(r.note), "\n")
	l := w.logs[origin]
	if l == nil {
		return nil, refuse(http.StatusNotFound, "the log %.200q is not known here", origin)
	}
	n, err := note.Open(r.note, note.VerifierList(l.keys...))
	_, unverified := errors.AsType[*note.UnverifiedNoteError](err)
	_, invalid := errors.AsType[*note.InvalidSignatureError](err)
	switch {
	case unverified || invalid:
		return nil, refuse(http.StatusForbidden, "the checkpoint has no valid signature of the log")
	case err != nil:
		return nil, refuse(http.StatusBadRequest, "the checkpoint is no signed note")
	}
	c, err := torchwood.ParseCheckpoint(n.Text)
	if err != nil || c.Origin != origin || c.String() != n.Text {
		return nil, refuse(http.StatusBadRequest, "the note is no checkpoint")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if no := l.extends(r, c.Tree); no != nil {
		return nil, no
	}
	if c.Tree != l.head { // also a head of the empty tree is one
		if err := durable.Replace(l.path, []byte(torchwood.Checkpoint{Origin: origin, Tree: c.Tree}.String())); err != nil {
			w.log.Error("the head cannot be kept, so nothing is cosigned", slog.Any(logkey.Error, err))
			return nil, refuse(http.StatusInternalServerError, "the head cannot be kept")
		}
		l.head = c.Tree
	}
	signed, err := note.Sign(&note.Note{Text: n.Text}, w.signer)
	if err != nil {
		return nil, refuse(http.StatusInternalServerError, "the head cannot be cosigned")
	}
	return signed[len(n.Text)+1:], nil
}

// extends reports whether the tree next is that of l, with records added or not.
func (l *watched) extends(r request, next tlog.Tree) *Refusal {
	unprovable := refuse(http.StatusUnprocessableEntity, "the checkpoint of size %d does not extend the one of size %d", next.N, r.old)
	switch {
	case r.old > next.N:
		return refuse(http.StatusBadRequest, "the old size %d is larger than the checkpoint's %d", r.old, next.N)
	case r.old != l.head.N:
		return &Refusal{http.StatusConflict, fmt.Sprintf("the last head has size %d, not %d", l.head.N, r.old), l.head.N}
	case next.N == 0 && next.Hash != sha256.Sum256(nil), r.old == 0 && len(r.proof) > 0:
		return unprovable
	case r.old > 0 && tlog.CheckTree(r.proof, next.N, next.Hash, l.head.N, l.head.Hash) != nil:
		return unprovable
	}
	return nil
}
