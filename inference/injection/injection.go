// Package injection judges how likely a text tries to take a model over: by
// overriding its instructions, by jailbreaking it, or from inside a document that
// it reads (R-GAP-13, R-INF-33). What it says is a risk, one signal among others:
// policies, consent, the sandbox and taint are what holds when it is wrong
// (docs/injection.md).
//
// normalise.go brings text into one form; rules.go and ruletable.go hold the
// rules, behind the automaton of prefilter.go; features.go and classifier.go are
// the trained half; guard.go judges a request's texts and remembers them; canary.go
// finds a token that must not come out.
package injection

import (
	"context"
	"strconv"

	"creto.dev/fault"
)

// Source is where a text stands. The same sentence is a request in a person's own
// turn, and an attack in a mail that was to be summarised.
type Source uint8

// The sources.
const (
	// User is the user's own turn.
	User Source = iota
	// Document is what tools returned and what was fetched, quoted or attached:
	// it is there to be read, not to be obeyed.
	Document
)

// Sources is how many there are.
const Sources = 2

// String returns "user" or "document".
func (s Source) String() string {
	if s == Document {
		return "document"
	}
	return "user"
}

// ParseSource is the inverse of [Source.String].
//
// Errors: InvalidArgument (Permanent).
func ParseSource(text string) (Source, error) {
	switch text {
	case "user":
		return User, nil
	case "document":
		return Document, nil
	}
	return User, fault.New("injection.ParseSource", fault.InvalidArgument, "%q is no source; user and document are", text)
}

// Risk is how likely a text is an attack, in thousandths from 0 to MaxRisk. It is
// an order rather than a probability: of harmless texts one in a hundred or fewer
// is at 500 or above, and nearly none at 900 (docs/injection.md has the figures).
type Risk int64

// MaxRisk is certainty.
const MaxRisk Risk = 1000

// String returns the risk as a decimal with three places, such as 0.875.
func (r Risk) String() string {
	if r >= MaxRisk {
		return "1.000"
	}
	r = max(r, 0)
	return "0." + strconv.FormatInt(int64(MaxRisk+r), 10)[1:]
}

// or returns the risk that one of two independent signs is right. It is never
// certain.
func (r Risk) or(other Risk) Risk {
	return min(MaxRisk-1, MaxRisk-(MaxRisk-r)*(MaxRisk-other)/MaxRisk)
}

// Finding is what a text was found to be.
type Finding struct {
	Risk Risk
	// Reasons are names of rules, sorted; "classifier" where the trained half
	// alone would have tainted; with "base64:" and the like in front where only
	// a decoded form says so. They never quote the text.
	Reasons []string
}

// Detector judges texts. Safe for concurrent use.
//
// Errors: those of whoever is asked. A text that could not be judged is not
// harmless: callers refuse it.
type Detector interface {
	Detect(ctx context.Context, text string, from Source) (Finding, error)
}
