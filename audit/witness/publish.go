package witness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"creto.dev/audit"
	"creto.dev/fault"
	"creto.dev/health"
	"creto.dev/internal/logkey"
)

// Peer is a witness that is asked to cosign.
type Peer struct {
	// Name is for people. Required, unique.
	Name string `toml:"name"`
	// URL is its submission prefix, without /add-checkpoint. Required.
	URL string `toml:"url"`
	// VKey verifies its cosignatures: cosignature/v1 with Ed25519. Required.
	VKey string `toml:"vkey"`
}

// Config says who watches a log.
type Config struct {
	Witnesses []Peer
	// Quorum is how many of them must have cosigned the published head.
	Quorum int
	// Interval is how often a new head is published. 0 means 5 s.
	Interval time.Duration
	// File, if any, gets a copy of every published head, appended and synced. It
	// belongs on another disk, or another machine's.
	File string
}

// Log is what is published.
type Log interface {
	// Checkpoint and Consistency are those of audit.Log.
	Checkpoint(ctx context.Context) (audit.Checkpoint, error)
	Consistency(ctx context.Context, from, to int64) ([][32]byte, error)
}

// Alarm is proof, or a witness's word, that the log is not the one that was
// published: somebody was shown another, or records were rolled back.
type Alarm struct {
	// By is the witness's name, or the file of heads.
	By string
	// Ours and Theirs are the sizes of the two heads.
	Ours, Theirs int64
	Reason       string
}

// Publisher has the heads of one log cosigned and keeps the newest. Run does it;
// the rest is safe for concurrent use.
type Publisher struct {
	cfg   Config
	log   Log
	peers []*peer
	alarm func(context.Context, Alarm)
	slog  *slog.Logger
	http  *http.Client

	mu        sync.Mutex // guards what follows
	published audit.Checkpoint
	cosigned  int     // how many of the peers cosigned it
	file      trouble // what the file of heads says of the log, for good
	trouble   map[string]trouble
}

// peer is a witness and how far it got.
type peer struct {
	Peer
	verifier *torchwood.CosignatureVerifier
	size     int64 // of the last head that it is known to have; Run's alone
	alarmed  bool  // the present trouble was told; Run's alone
}

// trouble is why a witness did not cosign the last head.
type trouble struct {
	text   string
	forked bool
}

// requestTimeout bounds one question to a witness, and maxAnswerBytes its answer.
const (
	requestTimeout = 5 * time.Second
	maxAnswerBytes = 16 << 10
)

// NewPublisher returns a publisher. alarm is called from Run, once for each
// trouble until it is over.
//
// Errors: InvalidArgument (Permanent).
func NewPublisher(cfg Config, l Log, alarm func(context.Context, Alarm), log *slog.Logger) (*Publisher, error) {
	const op fault.Op = "witness.NewPublisher"
	if cfg.Interval == 0 {
		cfg.Interval = 5 * time.Second
	}
	if problems := cfg.Problems(); len(problems) > 0 {
		return nil, fault.New(op, fault.InvalidArgument, "%s", problems[0])
	}
	p := &Publisher{cfg: cfg, log: l, alarm: alarm, slog: log, trouble: make(map[string]trouble), http: &http.Client{
		Transport:     http.DefaultTransport.(*http.Transport).Clone(),
		Timeout:       requestTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	for _, w := range cfg.Witnesses {
		v, err := torchwood.NewCosignatureVerifier(w.VKey)
		if err != nil {
			return nil, fault.WrapAs(op, fault.InvalidArgument, err, "the vkey of the witness %q is none", w.Name)
		}
		p.peers = append(p.peers, &peer{Peer: w, verifier: v})
		p.trouble[w.Name] = trouble{text: "was not asked yet"}
	}
	return p, nil
}

// Problems returns what is wrong with c, each with its key's name in front.
func (c Config) Problems() []string {
	var found []string
	seen := map[string]bool{}
	for i, w := range c.Witnesses {
		key := fmt.Sprintf("witnesses[%d].", i)
		u, err := url.Parse(w.URL)
		if w.Name == "" || seen[w.Name] {
			found = append(found, key+"name: a name of its own is required")
		}
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			found = append(found, key+"url: not an address such as https://witness.example")
		}
		if v, err := torchwood.NewCosignatureVerifier(w.VKey); err != nil {
			found = append(found, key+"vkey: not a cosignature/v1 key with Ed25519; the witness prints it: creto witness key")
		} else if seen[v.String()] {
			found = append(found, key+"vkey: is there twice; one witness counts once")
		} else {
			seen[v.String()] = true
		}
		seen[w.Name] = true
	}
	if c.Quorum < 0 || c.Quorum > len(c.Witnesses) {
		found = append(found, fmt.Sprintf("witness_quorum: %d of %d witnesses cannot be had", c.Quorum, len(c.Witnesses)))
	}
	return found
}

// Run publishes until ctx ends.
//
// Errors: none that end it; what goes wrong shows in Status.
func (p *Publisher) Run(ctx context.Context) error {
	if err := p.compareFile(ctx); err != nil && ctx.Err() == nil {
		p.mu.Lock()
		p.file = trouble{fault.Message(err), errors.Is(err, fault.SecurityViolation)}
		p.mu.Unlock()
		if errors.Is(err, fault.SecurityViolation) {
			p.raise(ctx, Alarm{By: p.cfg.File, Reason: fault.Message(err)})
		}
	}
	defer p.http.CloseIdleConnections()
	ticker := time.NewTicker(p.cfg.Interval)
	defer ticker.Stop()
	for {
		if err := p.Publish(ctx); err != nil && ctx.Err() == nil {
			p.slog.LogAttrs(ctx, slog.LevelWarn, "the log's head is not published", slog.Any(logkey.Error, err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

func (p *Publisher) raise(ctx context.Context, a Alarm) {
	p.slog.LogAttrs(ctx, slog.LevelError, "split view: the log is not the one that was published", slog.String(logkey.Witness, a.By), slog.String(logkey.Reason, a.Reason))
	p.alarm(ctx, a)
}

// Publish has the newest head cosigned by whoever has not yet, and then makes it
// the one that Checkpoint returns. Run calls it; it is not safe for concurrent
// use.
//
// Errors: those of the log; Unavailable (Degraded) if the file cannot be
// written. A witness's failure is none.
func (p *Publisher) Publish(ctx context.Context) error {
	const op fault.Op = "witness.Publish"
	next, err := p.log.Checkpoint(ctx)
	if err != nil {
		return fault.Wrap(op, err)
	}
	before := p.Checkpoint()
	same := bytes.Equal(next.Note, before.Note)
	lines := make([][]byte, len(p.peers))
	var asked sync.WaitGroup
	for i, w := range p.peers {
		if same {
			if lines[i] = w.lineIn(before); lines[i] != nil {
				continue
			}
		}
		asked.Go(func() { lines[i] = p.ask(ctx, w, next) })
	}
	asked.Wait()
	if err := ctx.Err(); err != nil {
		return fault.WrapAs(op, fault.Unavailable, err, "the node is stopping")
	}
	count := 0
	for _, line := range lines {
		if line != nil {
			next.Others, count = append(next.Others, line...), count+1
		}
	}
	if !same {
		if err := p.remember(next); err != nil {
			return fault.Wrap(op, err)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.published, p.cosigned = next, count
	return nil
}

// Checkpoint returns the newest published head, with its cosignatures as Others.
// It is zero before the first.
func (p *Publisher) Checkpoint() audit.Checkpoint {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.published
}

// Status is Unhealthy if the log is not the one that was published, and Degraded
// if a witness did not cosign the published head. It asks nobody.
func (p *Publisher) Status() health.Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file.forked {
		return health.Status{State: health.Unhealthy, Reason: "Audit log differs from what was published: " + p.file.text}
	}
	var behind []string
	for _, w := range p.cfg.Witnesses {
		switch t := p.trouble[w.Name]; {
		case t.forked:
			return health.Status{State: health.Unhealthy, Reason: "Audit log differs from what was published: " + w.Name + " " + t.text}
		case t.text != "":
			behind = append(behind, w.Name+" "+t.text)
		}
	}
	switch {
	case p.file.text != "":
		return health.Status{State: health.Degraded, Reason: "The file of the log's heads " + p.file.text}
	case len(behind) == 0:
		return health.Status{State: health.Healthy}
	}
	reason := fmt.Sprintf("%d of %d witnesses cosigned the log's head, %d must: %s", p.cosigned, len(p.cfg.Witnesses), p.cfg.Quorum, strings.Join(behind, "; "))
	return health.Status{State: health.Degraded, Reason: reason}
}

// lineIn returns w's line of a checkpoint that it cosigned, or nil.
func (w *peer) lineIn(c audit.Checkpoint) []byte {
	n, err := note.Open(append(bytes.Clone(c.Note), c.Others...), note.VerifierList(w.verifier))
	if err != nil {
		return nil
	}
	s := n.Sigs[0]
	return []byte("— " + s.Name + " " + s.Base64 + "\n")
}

// ask has one witness cosign a head, and returns its line, or nil.
func (p *Publisher) ask(ctx context.Context, w *peer, head audit.Checkpoint) []byte {
	line, wrong := p.cosignature(ctx, w, head)
	var t trouble
	if wrong != nil {
		t = trouble{fault.Message(wrong), errors.Is(wrong, fault.SecurityViolation)}
	}
	p.mu.Lock()
	p.trouble[w.Name] = t
	p.mu.Unlock()
	switch {
	case t.forked && !w.alarmed:
		p.raise(ctx, Alarm{By: w.Name, Ours: head.Size, Theirs: w.size, Reason: t.text})
	case t.text != "" && !t.forked && ctx.Err() == nil:
		p.slog.LogAttrs(ctx, slog.LevelWarn, "a witness did not cosign", slog.String(logkey.Witness, w.Name), slog.String(logkey.Reason, t.text))
	}
	w.alarmed = t.forked || w.alarmed && wrong != nil
	return line
}

// cosignature asks with the size that the witness had last, and once more with
// the one that it says it has.
func (p *Publisher) cosignature(ctx context.Context, w *peer, head audit.Checkpoint) ([]byte, error) {
	const op fault.Op = "witness.cosignature"
	for range 2 {
		if w.size > head.Size {
			return nil, fault.New(op, fault.SecurityViolation, "cosigned a head of size %d, but the log has %d records: they were rolled back, or there is another log of this name", w.size, head.Size)
		}
		status, kind, answer, err := p.post(ctx, w, head)
		if err != nil {
			return nil, err
		}
		switch {
		case status == http.StatusOK:
			cosigned := audit.Checkpoint{Note: head.Note, Others: answer}
			line := w.lineIn(cosigned)
			if line == nil {
				return nil, fault.New(op, fault.FailedPrecondition, "answers with no signature by its vkey")
			}
			w.size = head.Size
			return line, nil
		case status == http.StatusConflict && kind == "text/x.tlog.size":
			size, err := parseSize(answer)
			if err != nil || size == w.size {
				return nil, fault.New(op, fault.FailedPrecondition, "refuses the size that it said it has")
			}
			w.size = size
		case status == http.StatusUnprocessableEntity:
			return nil, fault.New(op, fault.SecurityViolation, "cosigned another head of size %d than the one that this log grew from: there are two logs of one name", w.size)
		case status == http.StatusNotFound:
			return nil, fault.New(op, fault.FailedPrecondition, "does not know this log; give it what this prints: creto audit key")
		case status == http.StatusForbidden:
			return nil, fault.New(op, fault.FailedPrecondition, "does not know the key that signs this log; give it what this prints: creto audit key")
		default:
			return nil, fault.New(op, fault.Unavailable, "answers with the status %d", status)
		}
	}
	return nil, fault.New(op, fault.Unavailable, "is given other heads at the same time")
}

// parseSize reads the body of a conflict.
func parseSize(text []byte) (int64, error) {
	digits, ok := strings.CutSuffix(string(text), "\n")
	size, err := strconv.ParseInt(digits, 10, 64)
	if err == nil && (!ok || size < 0 || strconv.FormatInt(size, 10) != digits) {
		err = errors.New("not a size")
	}
	return size, err
}

// post sends add-checkpoint, with the proof from the size that w has.
func (p *Publisher) post(ctx context.Context, w *peer, head audit.Checkpoint) (status int, kind string, answer []byte, err error) {
	const op fault.Op = "witness.post"
	var body bytes.Buffer
	fmt.Fprintf(&body, "old %d\n", w.size)
	if w.size > 0 && w.size < head.Size {
		proof, err := p.log.Consistency(ctx, w.size, head.Size)
		if err != nil {
			return 0, "", nil, fault.New(op, fault.CodeOf(err), "cannot be given a proof: %s", fault.Message(err))
		}
		for _, h := range proof {
			fmt.Fprintln(&body, tlog.Hash(h))
		}
	}
	body.WriteByte('\n')
	body.Write(head.Note)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(w.URL, "/")+"/add-checkpoint", &body)
	if err != nil {
		return 0, "", nil, fault.WrapAs(op, fault.InvalidArgument, err, "has a URL that is none")
	}
	res, err := p.http.Do(r)
	if err != nil {
		return 0, "", nil, fault.WrapAs(op, fault.Unavailable, err, "cannot be reached")
	}
	defer func() { _ = res.Body.Close() }()
	answer, err = io.ReadAll(io.LimitReader(res.Body, maxAnswerBytes))
	return res.StatusCode, res.Header.Get("Content-Type"), answer, fault.WrapAs(op, fault.Unavailable, err, "breaks off its answer")
}

// remember appends a head to the file.
func (p *Publisher) remember(c audit.Checkpoint) error {
	const op fault.Op = "witness.remember"
	if p.cfg.File == "" {
		return nil
	}
	file, err := os.OpenFile(p.cfg.File, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return fault.WrapAs(op, fault.Unavailable, err, "the file of heads %s cannot be opened", p.cfg.File)
	}
	_, err = file.Write(append(append(bytes.Clone(c.Note), c.Others...), '\n'))
	return fault.WrapAs(op, fault.Unavailable, errors.Join(err, file.Sync(), file.Close()), "the file of heads %s cannot be written", p.cfg.File)
}

// compareFile holds the log to the last head in the file.
//
// Errors: SecurityViolation (Security) if the log does not extend it; those of
// the log.
func (p *Publisher) compareFile(ctx context.Context) error {
	const op fault.Op = "witness.compareFile"
	if p.cfg.File == "" {
		return nil
	}
	text, err := os.ReadFile(p.cfg.File)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.WrapAs(op, fault.Unavailable, err, "cannot be read")
	}
	heads, err := ParseHeads(text) // a power cut may have torn the last
	if len(heads) == 0 {
		return err
	}
	now, err := p.log.Checkpoint(ctx)
	if err != nil {
		return fault.Wrap(op, err)
	}
	return Extends(ctx, p.log, now, heads[len(heads)-1])
}

// Extends reports whether the tree of the head seen is a beginning of the one of
// the head now, which is log's.
//
// Errors: SecurityViolation (Security) if it is none; those of log.
func Extends(ctx context.Context, log Log, now, seen audit.Checkpoint) error {
	const op fault.Op = "witness.Extends"
	switch {
	case seen.Size > now.Size:
		return fault.New(op, fault.SecurityViolation, "a head of %d records was seen; the log has %d: they were rolled back, or there is another log of this name", seen.Size, now.Size)
	case seen.Size == 0:
		return nil
	}
	proof, err := log.Consistency(ctx, seen.Size, now.Size)
	if err != nil {
		return fault.Wrap(op, err)
	}
	return CheckConsistency(proof, now, seen)
}

// CheckConsistency verifies the RFC 6962 consistency proof from the head seen to
// the head now.
//
// Errors: SecurityViolation (Security).
func CheckConsistency(proof [][32]byte, now, seen audit.Checkpoint) error {
	hashes := make(tlog.TreeProof, len(proof))
	for i, h := range proof {
		hashes[i] = h
	}
	err := tlog.CheckTree(hashes, now.Size, now.Root, seen.Size, seen.Root)
	return fault.WrapAs("witness.CheckConsistency", fault.SecurityViolation, err, "the head of %d records that was seen is not of this log: there are two logs of one name", seen.Size)
}

// ParseHeads reads a file of heads, or a single one. Signatures are not verified.
//
// Errors: InvalidArgument (Permanent), naming the place, beside the heads before
// it.
func ParseHeads(text []byte) ([]audit.Checkpoint, error) {
	var heads []audit.Checkpoint
	for len(bytes.TrimSpace(text)) > 0 {
		text = bytes.TrimLeft(text, "\n")
		body, sigs, ok := bytes.Cut(text, []byte("\n\n"))
		lines, rest, _ := bytes.Cut(sigs, []byte("\n\n"))
		origin, _, _ := strings.Cut(string(body), "\n")
		whole := append(append(append(bytes.Clone(body), "\n\n"...), bytes.TrimSuffix(lines, []byte("\n"))...), '\n')
		head, err := audit.ParseHead(whole, origin)
		if !ok || err != nil {
			return heads, fault.New("witness.ParseHeads", fault.InvalidArgument, "holds no head in place %d", len(heads)+1)
		}
		heads, text = append(heads, head), rest
	}
	return heads, nil
}
