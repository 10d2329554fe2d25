package injection

import (
	"math"
	"math/rand/v2"
)

// Example is a text that the classifier learns from.
type Example struct {
	Text string
	// From is the source whose head learns it.
	From   Source
	Attack bool
	// Weight is how much it counts beside others of its kind; 0 means 1.
	Weight float64
}

// Training is how the classifier learns: AdaGrad over logistic loss, in an order
// that a fixed seed gives, so that the same examples give the same weights.
type Training struct {
	Epochs int     // 0 means 24
	Rate   float64 // 0 means 0.12
	Decay  float64 // of weights that are used, each time; 0 means 2e-5
}

// window is what one look at an example sees.
type window struct {
	hashes []uint16 // each once
	scale  float64
	want   float64
	weight float64
}

// Train returns weights for the heads that examples are of. They are not calibrated.
func Train(examples []Example, t Training) *Weights {
	w := new(Weights)
	for from := range Source(Sources) {
		w.heads[from] = trainHead(examples, from, t)
	}
	return w
}

func trainHead(examples []Example, from Source, t Training) head {
	if t.Epochs == 0 {
		t.Epochs = 24
	}
	if t.Rate == 0 {
		t.Rate = 0.12
	}
	if t.Decay == 0 {
		t.Decay = 2e-5
	}
	all, sums := windowsOf(examples, from)
	order := rand.New(rand.NewPCG(1, uint64(from)))
	weights, squares := make([]float64, buckets), make([]float64, buckets)
	bias, biasSquare := 0.0, 0.0
	for range t.Epochs {
		order.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		for _, x := range all {
			z := 0.0
			for _, h := range x.hashes {
				z += weights[h]
			}
			z = float64(z*x.scale) + bias
			kind := 0
			if x.want > 0 {
				kind = 1
			}
			g := (1/(1+math.Exp(-z)) - x.want) * x.weight / sums[kind] * float64(len(all)) / 2
			step := g * x.scale
			for _, h := range x.hashes {
				squares[h] += float64(step * step)
				weights[h] -= float64(t.Rate*step/(math.Sqrt(squares[h])+1e-6)) + float64(t.Decay*weights[h])
			}
			biasSquare += float64(g * g)
			bias -= float64(t.Rate * g / (math.Sqrt(biasSquare) + 1e-6))
		}
	}
	return quantise(weights, bias)
}

// windowsOf returns what the head sees of its examples, and the weights of benign
// ones and attacks together.
func windowsOf(examples []Example, from Source) ([]window, [2]float64) {
	var all []window
	sums := [2]float64{1e-9, 1e-9}
	var (
		n normalised
		f features
	)
	for _, e := range examples {
		if e.From != from {
			continue
		}
		n.normalise(e.Text)
		f.read(n.text)
		var mine []window
		f.windows(from, func(hashes []uint16) {
			seen := map[uint16]bool{}
			var x window
			for _, h := range hashes {
				if !seen[h] {
					seen[h] = true
					x.hashes = append(x.hashes, h)
				}
			}
			if len(x.hashes) > 0 {
				x.scale = 1 / math.Sqrt(float64(len(x.hashes)))
				mine = append(mine, x)
			}
		})
		kind, weight := 0, e.Weight
		if weight == 0 {
			weight = 1
		}
		for _, x := range mine {
			if e.Attack {
				kind, x.want = 1, 1
			}
			x.weight = weight / float64(len(mine))
			sums[kind] += x.weight
			all = append(all, x)
		}
	}
	return all, sums
}

// quantise makes the weights small whole numbers. The scale of a head is whatever
// comes out, until it is calibrated; the bias goes there.
func quantise(weights []float64, bias float64) head {
	most := 1e-9
	for _, w := range weights {
		most = max(most, math.Abs(w))
	}
	unit := most / 127
	var h head
	for i, w := range weights {
		h.weights[i] = int8(math.Round(w / unit))
	}
	h.middle, h.spread = int64(-bias/unit*256), max(1, int64(math.Log(9)/unit*256))
	return h
}

// Score returns what the classifier says of a text before it is put on the scale of
// risks: comparable with other scores of the same source alone.
func (w *Weights) Score(text string, from Source) int64 {
	var (
		n normalised
		f features
	)
	n.normalise(text)
	f.read(n.text)
	return w.heads[from].score(&f, from)
}

// Calibrate puts a source's scores on the scale of risks: taint is the score that
// is 500, block the one that is 900. block must be the greater.
func (w *Weights) Calibrate(from Source, taint, block int64) {
	w.heads[from].middle, w.heads[from].spread = taint, max(1, block-taint)
}
