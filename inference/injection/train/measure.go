package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"creto.dev/inference/injection"
)

// measurement trains and measures at two thresholds.
type measurement struct{ taint, block injection.Risk }

// examples returns what the sets teach, without the groups that skip names.
func examples(sets []*set, skip func(*set, item) bool) []injection.Example {
	var (
		all    []injection.Example
		around []item
	)
	for _, s := range sets {
		if s.name == library {
			around = s.items
		}
	}
	for _, s := range sets {
		if !s.trained {
			continue
		}
		for _, it := range s.items {
			if skip(s, it) {
				continue
			}
			for from := range injection.Source(injection.Sources) {
				weight := 1.0
				switch {
				case s.attack && s.from == injection.Document && from == injection.User:
					continue // a request, if the user says it
				case s.attack && s.from == injection.User && from == injection.Document:
					weight = 0.3
				case s.name == "bipia_text":
					weight = 4 // there are few
				}
				switch {
				case strings.HasPrefix(s.name, "seeds/"):
					weight *= 0.5
				case s.name == library:
					weight = libraryWeight[from]
				}
				all = append(all, injection.Example{Text: it.text, From: from, Attack: s.attack, Weight: weight})
				if s.attack && from == injection.Document && len(around) > 0 {
					all = append(all, injection.Example{Text: within(around[len(all)%len(around)].text, it.text), From: from, Attack: true, Weight: weight / 2})
				}
			}
		}
	}
	return all
}

// libraryWeight is of one piece of the Go distribution, of which there are many: the
// nearest that there is to documents, and hardly what users say.
var libraryWeight = [injection.Sources]float64{injection.User: 0.25, injection.Document: 1}

// within returns an attack inside a harmless document: a few words of it before and
// after, so that one look sees them together.
func within(document, attack string) string {
	words := strings.Fields(document)
	at := len(words) / 2
	return strings.Join(words[max(0, at-20):at], " ") + "\n" + attack + "\n" + strings.Join(words[at:min(len(words), at+20)], " ")
}

// The share of harmless texts that may be above each threshold, by classifier alone.
// That of documents is where the search for it begins.
var (
	taintRate = [injection.Sources]float64{injection.User: 0.005, injection.Document: 0.01}
	blockRate = 0.0005
)

// maxFalse is the share of harmless texts of each kind that may be tainted in a
// document, with what rules say beside the classifier.
const maxFalse = 0.01

// Kinds of harmless texts, by which scores are put on the scale.
const (
	prompts = iota
	documents
	pieces // of the library
	kinds
)

// harmless are the scores of harmless texts that the weights have not seen, by kind,
// and those that stand in documents, by kind and fold.
type harmless struct {
	scores [injection.Sources][kinds][]int64
	texts  [kinds][][]string
}

// kindOf returns the kind of a harmless set, and whether its texts are what stands in
// such a place: a user's text that is made to look risky is none in a document, where
// it would be what is looked for.
func kindOf(s *set, from injection.Source) (kind int, counts bool) {
	switch {
	case s.name == library:
		return pieces, true
	case from == injection.User:
		return prompts, true
	case s.from == injection.Document:
		return documents, true
	}
	return prompts, !strings.HasPrefix(s.name, "seeds/")
}

// scale puts the heads of documents on the scale: as low as maxFalse lets them be.
func (m *measurement) scale(models []*injection.Weights, benign harmless) (rate [injection.Sources]float64) {
	for rate = taintRate; ; rate[injection.Document] *= 0.8 {
		worst := 0.0
		var detectors []*injection.Embedded
		for _, w := range models {
			calibrate(w, benign, rate)
			detectors = append(detectors, injection.NewWith(w))
		}
		for _, folds := range benign.texts {
			n, tainted := 0, 0
			for k, texts := range folds {
				for _, text := range texts {
					if n++; detectors[k].Judge(text, injection.Document).Risk >= m.taint {
						tainted++
					}
				}
			}
			worst = max(worst, float64(tainted)/float64(max(1, n)))
		}
		if worst <= maxFalse || rate[injection.Document] < 1e-4 {
			return rate
		}
	}
}

// calibrate puts the scores of texts that w has not seen on the scale: the kind says
// where that is nearest to attacks.
func calibrate(w *injection.Weights, benign harmless, rate [injection.Sources]float64) {
	for from, kinds := range benign.scores {
		var taint, block, middle int64
		first := true
		for _, scores := range kinds {
			if len(scores) == 0 {
				continue
			}
			slices.Sort(scores)
			at := func(rate float64) int64 {
				return scores[min(len(scores)-1, int(math.Floor(float64(len(scores))*(1-rate))))]
			}
			if t := at(rate[from]); first || t > taint {
				taint, block, middle, first = t, at(blockRate), at(0.5), false
			}
		}
		w.Calibrate(injection.Source(from), taint, taint+max(block-taint, (taint-middle)/4, 1))
	}
}

// fold is what is trained without one part of the groups.
func fold(sets []*set, folds, k int) *injection.Weights {
	return injection.Train(examples(sets, func(_ *set, it item) bool { return k >= 0 && it.group%folds == k }), injection.Training{})
}

// heldOut returns the scores of harmless texts under the weights that have not seen
// their group, and those weights.
func heldOut(sets []*set, folds int) (harmless, []*injection.Weights) {
	var (
		benign harmless
		models []*injection.Weights
	)
	for kind := range kinds {
		benign.texts[kind] = make([][]string, folds)
	}
	for k := range folds {
		w := fold(sets, folds, k)
		models = append(models, w)
		for _, s := range sets {
			for _, it := range s.items {
				if s.trained && !s.attack && it.group%folds == k {
					for from := range injection.Source(injection.Sources) {
						if kind, counts := kindOf(s, from); counts {
							benign.scores[from][kind] = append(benign.scores[from][kind], w.Score(it.text, from))
							if from == injection.Document {
								benign.texts[kind][k] = append(benign.texts[kind][k], it.text)
							}
						}
					}
				}
			}
		}
	}
	return benign, models
}

// train returns the weights that the program is built with.
func (m *measurement) train(sets, seeds []*set, folds int) *injection.Weights {
	all := slices.Concat(sets, seeds)
	group(all)
	benign, models := heldOut(all, folds)
	w := fold(all, folds, -1)
	calibrate(w, benign, m.scale(models, benign))
	return w
}

// tally counts one set, as one source.
type tally struct {
	n, taint, block int
	took            time.Duration
	bytes           int
}

func (t *tally) add(m *measurement, d *injection.Embedded, text string, from injection.Source) {
	start := time.Now()
	f := d.Judge(text, from)
	t.took += time.Since(start)
	t.n++
	t.bytes += len(text)
	if f.Risk >= m.taint {
		t.taint++
	}
	if f.Risk >= m.block {
		t.block++
	}
}

// inside returns the sets of attacks in documents again, each attack on a line of its
// own in the middle of a piece of the library that the same weights have not seen.
func inside(sets []*set, folds int) []*set {
	hosts := make([][]string, folds)
	for _, s := range sets {
		if s.name == library {
			for _, it := range s.items {
				hosts[it.group%folds] = append(hosts[it.group%folds], it.text)
			}
		}
	}
	var more []*set
	for _, s := range sets {
		if !s.attack || s.from != injection.Document {
			continue
		}
		in := &set{name: s.name + ", inside", attack: true, from: s.from, trained: s.trained}
		for i, it := range s.items {
			if list := hosts[it.group%folds]; len(list) > 0 {
				host := list[i*37%len(list)]
				at := len(host)/2 + max(0, strings.IndexByte(host[len(host)/2:], '\n'))
				in.items = append(in.items, item{text: host[:at] + "\n" + it.text + "\n" + host[at:], group: it.group})
			}
		}
		more = append(more, in)
	}
	return more
}

// evaluate prints recall and false positives of each set. What the embedded weights
// have seen is judged by weights that have not: those of the fold that it is in.
func (m *measurement) evaluate(out io.Writer, sets, seeds []*set, folds int) error {
	all := slices.Concat(sets, seeds)
	group(all)
	var detectors []*injection.Embedded
	if slices.ContainsFunc(sets, func(s *set) bool { return s.trained }) {
		benign, models := heldOut(all, folds)
		m.scale(models, benign)
		for _, w := range models {
			detectors = append(detectors, injection.NewWith(w))
		}
	}
	all = append(all, inside(all, folds)...)
	shipped := injection.New()
	fmt.Fprintf(out, "%-24s %-9s %-6s %5s  %-22s %-22s %9s %7s\n", "set", "as", "by", "texts", fmt.Sprintf("at %s (taint)", m.taint), fmt.Sprintf("at %s (block)", m.block), "per text", "MB/s")
	for _, s := range all {
		if len(detectors) == 0 && (s.name == library || strings.HasPrefix(s.name, "seeds/")) {
			continue
		}
		for from := range injection.Source(injection.Sources) {
			var t tally
			by := "built"
			for _, it := range s.items {
				d := shipped
				if s.trained && len(detectors) > 0 {
					d, by = detectors[it.group%folds], "folds"
				}
				t.add(m, d, it.text, from)
			}
			kind := "false+"
			if s.attack {
				kind = "recall"
			}
			_, err := fmt.Fprintf(out, "%-24s %-9s %-6s %5d  %s %-15s %s %-15s %9s %7.1f\n", s.name, from, by, t.n,
				kind, interval(t.taint, t.n), kind, interval(t.block, t.n),
				(t.took / time.Duration(max(1, t.n))).Round(100*time.Nanosecond), float64(t.bytes)/1e6/t.took.Seconds())
			if err != nil {
				return err
			}
		}
	}
	_, err := fmt.Fprintf(out, "\nfolds: %d of groups of near-duplicates, weights trained without the fold; built: the weights in the program.\nIn brackets: Wilson's interval, 95 %%. A set's attacks stand where its name says (bipia, indirect, document: document).\n", folds)
	return err
}

// interval returns a share with its 95 % confidence interval (Wilson).
func interval(k, n int) string {
	if n == 0 {
		return "-"
	}
	const z = 1.96
	p, size := float64(k)/float64(n), float64(n)
	center := (p + z*z/(2*size)) / (1 + z*z/size)
	half := z * math.Sqrt(p*(1-p)/size+z*z/(4*size*size)) / (1 + z*z/size)
	return fmt.Sprintf(".%03d [.%03d-.%03d]", int(p*999.5), int(math.Max(0, center-half)*999.5), int(math.Min(1, center+half)*999.5))
}
