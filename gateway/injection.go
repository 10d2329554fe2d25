package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"

	"creto.dev"
	"creto.dev/audit"
	"creto.dev/fault"
	"creto.dev/gate"
	"creto.dev/inference"
	"creto.dev/inference/injection"
)

// Injection is what is done about prompt injection (R-INF-33, R-GAP-13).
type Injection struct {
	// Detector judges what goes to models; nil judges nothing.
	Detector injection.Detector
	// Enforce acts on what the detector says. Otherwise it is only recorded, and
	// told to policies as context.risk.
	Enforce bool
	// Taint is the risk from which a session is tainted, Block that from which a
	// call is refused.
	Taint, Block injection.Risk
	// Canary says whether a token is put into system prompts, and what happens when
	// an answer holds it.
	Canary CanaryMode
}

// CanaryMode is what is done with canaries. They change prompts, so they are off
// unless somebody turns them on.
type CanaryMode string

// The modes.
const (
	CanaryOff CanaryMode = ""
	// CanaryTaint taints the session whose model gives the token away.
	CanaryTaint CanaryMode = "taint"
	// CanaryBlock also breaks the answer off.
	CanaryBlock CanaryMode = "block"
)

// What taints a session, as policies read it in context.taint.
const (
	taintInjection = "prompt_injection"
	taintCanary    = "canary"
)

// What policies and records call what was found.
const (
	riskFact  = "risk"
	rulesFact = "risk_rules"
)

// inspected is what is known of a request before it is decided on.
type inspected struct {
	gateway *Gateway
	visit   *visit
	detail  map[string]string // for the record
	canary  *injection.Canary // nil without one
	leaked  bool
}

// inspect judges what a request would have a model read, tells policies, taints the
// session, and refuses.
//
// Errors: InferencePromptInjection (Security), recorded; those of the detector and of
// gate.Taint: what cannot be judged, or whose taint cannot be kept, does not go out.
func (g *Gateway) inspect(ctx context.Context, v *visit, action creto.Action, texts func() []injection.Text) (*inspected, error) {
	const op fault.Op = "gateway.inspect"
	seen := &inspected{gateway: g, visit: v}
	if g.canaries != nil {
		seen.canary = g.canaries.Of(injection.Session(v.agent, v.Sandbox))
	}
	if g.guard == nil {
		return seen, nil
	}
	cfg := g.cfg.Injection
	found, err := g.guard.Judge(ctx, texts(), cfg.Taint)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	action.Context[riskFact] = int64(found.Risk)
	seen.detail = map[string]string{riskFact: strconv.FormatInt(int64(found.Risk), 10)}
	if found.Risk >= cfg.Taint && len(found.Reasons) > 0 {
		seen.detail[rulesFact] = strings.Join(found.Reasons, " ")
	}
	if !cfg.Enforce || found.Risk < cfg.Taint {
		return seen, nil
	}
	if err := g.gate.Taint(ctx, v.Caller, v.Sandbox, taintInjection, seen.detail); err != nil {
		return nil, fault.Wrap(op, err)
	}
	if found.Risk < cfg.Block {
		return seen, nil
	}
	detail := maps.Clone(seen.detail)
	detail[audit.DetailEvent] = audit.EventPromptInjectionBlocked
	id, err := g.gate.Refuse(ctx, v.Caller, action, fault.New(op, fault.InferencePromptInjection, "the request looks like a prompt injection (risk %s)", found.Risk), detail)
	recorded(ctx, id, err)
	return nil, err
}

// textsOf returns what a model would read that its operator did not write. System
// prompts and earlier answers are not judged; what tools returned, and parts whose
// type is not known here, are documents.
func textsOf(r inference.Request) []injection.Text {
	var texts []injection.Text
	add := func(text string, from injection.Source) {
		if text != "" {
			texts = append(texts, injection.Text{Text: text, From: from})
		}
	}
	for _, m := range r.Messages {
		from := injection.User
		switch m.Role {
		case inference.RoleSystem, inference.RoleDeveloper, inference.RoleAssistant:
			continue
		case inference.RoleTool, "function":
			from = injection.Document
		}
		for _, text := range seams(m.Content) {
			add(text, from)
		}
		for _, p := range m.Content {
			switch {
			case p.IsText():
				add(p.Text, from)
			case p.Image == nil && p.Reasoning == nil:
				add(p.Text, injection.Document)
			}
			for _, raw := range p.Extra {
				eachString(raw, func(text string) { add(text, injection.Document) })
			}
		}
		for _, raw := range m.Extra {
			eachString(raw, func(text string) { add(text, from) })
		}
	}
	for _, t := range r.Tools {
		add(t.Description, injection.User)
	}
	return texts
}

// seamBytes is how much of a part is read again on either side of a seam.
const seamBytes = 256

// seams returns what a model reads where the texts of a message meet, which is judged
// beside each of them: an attack may be in parts of which each is harmless. Of a long
// text only its ends are in it. Where letters meet, nobody knows whether there is a
// blank, and there are two.
func seams(content []inference.Part) []string {
	var close, apart strings.Builder
	n, touching := 0, false
	last := byte(' ')
	for _, p := range content {
		if !p.IsText() || p.Text == "" {
			continue
		}
		text := p.Text
		touching = touching || n > 0 && !isBlank(last) && !isBlank(text[0])
		last = text[len(text)-1]
		head, tail := text, ""
		if len(text) > 2*seamBytes {
			head, tail = strings.ToValidUTF8(text[:seamBytes], ""), strings.ToValidUTF8(text[len(text)-seamBytes:], "")
		}
		for i, b := range []*strings.Builder{&close, &apart} {
			if n > 0 && i == 1 {
				b.WriteByte(' ')
			}
			b.WriteString(head)
			if tail != "" {
				b.WriteString("\n\n")
				b.WriteString(tail)
			}
		}
		n++
	}
	switch {
	case n < 2:
		return nil
	case touching:
		return []string{close.String(), apart.String()}
	}
	return []string{close.String()}
}

func isBlank(c byte) bool { return c == ' ' || c == '\n' || c == '\t' || c == '\r' }

// leastExtra is how long a text must be to be judged, in fields that are not known:
// shorter ones are names, types and ids.
const leastExtra = 16

// eachString calls use with the strings of a JSON value that may be texts.
func eachString(raw json.RawMessage, use func(string)) {
	decoder := json.NewDecoder(bytes.NewReader(raw))
	for {
		token, err := decoder.Token()
		if err != nil {
			return // it was valid when the request was read
		}
		if text, ok := token.(string); ok && len(text) >= leastExtra {
			use(text)
		}
	}
}

// noted returns the result, which also says what was found.
func (s *inspected) noted(r gate.Result) gate.Result {
	maps.Copy(r.Detail, s.detail)
	if s.leaked {
		r.Detail[audit.DetailEvent] = audit.EventCanaryLeaked
	}
	return r
}

// marked returns the request with the canary in its system prompt.
func (s *inspected) marked(r inference.Request) inference.Request {
	if s.canary == nil {
		return r
	}
	r.Messages = slices.Clone(r.Messages)
	for i, m := range r.Messages {
		if m.Role != inference.RoleSystem && m.Role != inference.RoleDeveloper {
			continue
		}
		m.Content = slices.Clone(m.Content)
		if last := len(m.Content) - 1; last >= 0 && m.Content[last].Type == "" && m.Content[last].IsText() {
			m.Content[last].Text += "\n\n" + s.canary.Line()
		} else {
			m.Content = append(m.Content, inference.Part{Type: "text", Text: s.canary.Line()})
		}
		r.Messages[i] = m
		return r
	}
	r.Messages = append([]inference.Message{{Role: inference.RoleSystem, Content: inference.Text(s.canary.Line())}}, r.Messages...)
	return r
}

// watched returns the model, whose answers are searched for the canary.
func (s *inspected) watched(m inference.Model) inference.Model {
	if s.canary == nil {
		return m
	}
	return watchedModel{m, s}
}

// leak taints the session, and says what becomes of the answer.
//
// Errors: InferencePromptInjection (Security) where canaries block; those of
// gate.Taint.
func (s *inspected) leak(ctx context.Context) error {
	const op fault.Op = "gateway.leak"
	if s.leaked {
		return nil
	}
	s.leaked = true
	if err := s.gateway.gate.Taint(ctx, s.visit.Caller, s.visit.Sandbox, taintCanary, nil); err != nil {
		return fault.Wrap(op, err)
	}
	if s.gateway.cfg.Injection.Canary == CanaryBlock {
		return fault.New(op, fault.InferencePromptInjection, "the answer gives away what the system prompt keeps (risk %s)", injection.MaxRisk)
	}
	return nil
}

// watchedModel is a model whose answers are searched.
type watchedModel struct {
	inference.Model
	seen *inspected
}

// Complete implements inference.Model.
func (m watchedModel) Complete(ctx context.Context, r inference.Request) (inference.Response, error) {
	response, err := m.Model.Complete(ctx, r)
	if err != nil {
		return response, err
	}
	w := newAnswerWatch(m.seen.canary)
	for _, c := range response.Choices {
		if w.saw(c.Index, c.Message) {
			if err := m.seen.leak(ctx); err != nil {
				return inference.Response{Usage: response.Usage}, err
			}
		}
	}
	return response, nil
}

// CompleteStream implements inference.Model.
func (m watchedModel) CompleteStream(ctx context.Context, r inference.Request) (inference.Stream, error) {
	s, err := m.Model.CompleteStream(ctx, r)
	if err != nil {
		return nil, err
	}
	return &watchedStream{s, ctx, m.seen, newAnswerWatch(m.seen.canary)}, nil
}

// watchedStream is a stream whose pieces are searched as one text.
type watchedStream struct {
	inference.Stream
	ctx   context.Context //nolint:containedctx // a stream's Next has none
	seen  *inspected
	watch answerWatch
}

// Next implements inference.Stream. The piece that completes the canary is held back
// where canaries block; what came before it has been sent.
func (s *watchedStream) Next() (inference.Chunk, error) {
	chunk, err := s.Stream.Next()
	if err != nil {
		return chunk, err
	}
	for _, c := range chunk.Choices {
		if s.watch.saw(c.Index, c.Message) {
			if err := s.seen.leak(s.ctx); err != nil {
				return inference.Chunk{}, errors.Join(err, s.Close())
			}
		}
	}
	return chunk, nil
}

// answerWatch searches an answer: each of its texts, and each call's arguments.
type answerWatch struct {
	canary *injection.Canary
	of     map[watchKey]*injection.Watch
}

type watchKey struct {
	choice int
	kind   string
	index  int
}

func newAnswerWatch(c *injection.Canary) answerWatch {
	return answerWatch{c, map[watchKey]*injection.Watch{}}
}

func (w answerWatch) saw(choice int, m inference.Message) bool {
	leaked := false
	look := func(kind string, index int, text string) {
		if text == "" {
			return
		}
		k := watchKey{choice, kind, index}
		if w.of[k] == nil {
			watch := w.canary.Watch()
			w.of[k] = &watch
		}
		leaked = w.of[k].Saw(text) || leaked
	}
	for _, p := range m.Content {
		kind := "text"
		if p.Reasoning != nil {
			kind = "reasoning"
		}
		look(kind, 0, p.Text)
		for name, raw := range p.Extra {
			look(name, p.Index, string(raw))
		}
	}
	look("refusal", 0, m.Refusal)
	for i, call := range m.ToolCalls {
		index := call.Index
		if index == 0 {
			index = i
		}
		look("arguments", index, call.Arguments)
		look("name", index, call.Name)
	}
	for name, raw := range m.Extra {
		look(name, 0, string(raw))
	}
	return leaked
}
