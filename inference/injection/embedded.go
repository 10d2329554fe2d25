package injection

import (
	"context"
	"slices"
	"sync"

	"creto.dev/fault"
)

// Embedded is the detector that needs nothing else: rules and classifier, over the
// text and over what is hidden in it. It never fails, reads the whole text, and its
// cost is linear. Safe for concurrent use.
type Embedded struct {
	rules   *rules
	weights *Weights
	scratch sync.Pool
}

var _ Detector = (*Embedded)(nil)

// scratch is the memory of one look.
type scratch struct {
	plain    normalised
	variant  normalised
	decoder  decoder
	features features
	matcher  *matcher
	reasons  []string
}

// New returns the embedded detector with the weights that the program was built
// with. It panics if these are not whole.
func New() *Embedded {
	w := new(Weights)
	if err := w.UnmarshalBinary(embeddedWeights); err != nil {
		panic(err) // the build is broken
	}
	return NewWith(w)
}

// NewWith returns the embedded detector with other weights.
func NewWith(w *Weights) *Embedded {
	e := &Embedded{rules: newRules(ruleTable()), weights: w}
	e.scratch.New = func() any { return &scratch{matcher: e.rules.newMatcher()} }
	return e
}

// Detect implements [Detector]; it returns no error.
func (e *Embedded) Detect(_ context.Context, text string, from Source) (Finding, error) {
	return e.Judge(text, from), nil
}

// encodedRisk is what it says that an attack was hidden: in a code, or from eyes.
const encodedRisk = 400

// classifierName is the reason that no rule gave.
const classifierName = "classifier"

// hiddenName and hiddenRisk are of invisible characters inside words, from
// maxHidden on, which people do not write.
const (
	hiddenName = "hidden_characters"
	hiddenRisk = 350
	maxHidden  = 4
)

// Judge is Detect for those who have an Embedded. The risk is at least that of the
// rules that match, and adding text takes none of these away that is not quotable.
func (e *Embedded) Judge(text string, from Source) Finding {
	s, ok := e.scratch.Get().(*scratch)
	if !ok {
		panic(fault.New("injection.Judge", fault.Internal, "the pool holds something else"))
	}
	defer e.scratch.Put(s)
	s.reasons = s.reasons[:0]
	s.plain.normalise(text)
	risk := e.judge(s, s.plain.text, from, "")
	if s.plain.hidden >= maxHidden {
		risk = risk.or(hiddenRisk)
		s.reasons = append(s.reasons, hiddenName)
	}
	s.decoder.decode(text, &s.plain, func(code string, decoded []byte) {
		known := len(s.reasons)
		s.variant.normalise(string(decoded))
		found := e.judge(s, s.variant.text, from, code+":")
		if found >= DefaultTaint && found > risk {
			risk = max(risk, found.or(encodedRisk))
		} else {
			s.reasons = s.reasons[:known]
		}
	})
	f := Finding{Risk: risk}
	if len(s.reasons) > 0 {
		slices.Sort(s.reasons)
		f.Reasons = slices.Clone(slices.Compact(s.reasons))
	}
	return f
}

// judge returns the risk of one normalised form, and adds its reasons.
func (e *Embedded) judge(s *scratch, text []byte, from Source, code string) Risk {
	risk := e.rules.match(s.matcher, text, from, func(name string) { s.reasons = append(s.reasons, code+name) })
	s.features.read(text)
	h := &e.weights.heads[from]
	trained := h.risk(h.score(&s.features, from))
	if trained >= DefaultTaint {
		s.reasons = append(s.reasons, code+classifierName)
	}
	return risk.or(trained)
}

// The thresholds that the scale is made for.
const (
	DefaultTaint Risk = 500
	DefaultBlock Risk = 900
)
