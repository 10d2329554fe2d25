package injection

import (
	_ "embed"
	"encoding/binary"
	"math"
	"math/bits"

	"creto.dev/fault"
)

// Weights are a trained classifier: logistic regression over hashed features, one
// for each source. All that is done with them is whole numbers, so that a text has
// the same risk on every machine.
type Weights struct {
	heads [Sources]head
}

type head struct {
	weights [buckets]int8
	// A window's score is its weights' sum, in 1/256, over the root of how many
	// features it has. middle is the score at risk 500, and spread how far that at
	// 900 is from it.
	middle, spread int64
}

// weightsMagic begins a file of weights, and names its form.
const weightsMagic = "creto/injection/1\n"

//go:embed weights.bin
var embeddedWeights []byte

// MarshalBinary implements encoding.BinaryMarshaler.
func (w *Weights) MarshalBinary() ([]byte, error) {
	data := []byte(weightsMagic)
	for i := range w.heads {
		h := &w.heads[i]
		data = binary.BigEndian.AppendUint64(data, uint64(h.middle))
		data = binary.BigEndian.AppendUint64(data, uint64(h.spread))
		for _, weight := range h.weights {
			data = append(data, byte(weight))
		}
	}
	return data, nil
}

// UnmarshalBinary implements encoding.BinaryUnmarshaler.
//
// Errors: InvalidArgument (Permanent).
func (w *Weights) UnmarshalBinary(data []byte) error {
	const op fault.Op = "injection.UnmarshalBinary"
	const size = 16 + buckets
	if len(data) != len(weightsMagic)+Sources*size || string(data[:len(weightsMagic)]) != weightsMagic {
		return fault.New(op, fault.InvalidArgument, "these are no weights of this version")
	}
	data = data[len(weightsMagic):]
	for i := range w.heads {
		h := &w.heads[i]
		h.middle, h.spread = int64(binary.BigEndian.Uint64(data)), int64(binary.BigEndian.Uint64(data[8:]))
		if h.spread <= 0 || h.spread > math.MaxInt32 || h.middle > math.MaxInt32 || h.middle < -math.MaxInt32 {
			return fault.New(op, fault.InvalidArgument, "the weights' scale is not one")
		}
		for j, b := range data[16:size] {
			h.weights[j] = int8(b)
		}
		data = data[size:]
	}
	return nil
}

// score returns the highest score of a text's windows.
func (h *head) score(f *features, from Source) int64 {
	best := int64(math.MinInt64)
	var seen [buckets / 64]uint64
	f.windows(from, func(hashes []uint16) {
		clear(seen[:])
		sum, n := int64(0), int64(0)
		for _, b := range hashes {
			if seen[b>>6]&(1<<(b&63)) == 0 {
				seen[b>>6] |= 1 << (b & 63)
				sum += int64(h.weights[b])
				n++
			}
		}
		if n > 0 {
			best = max(best, sum*256*256/root(n<<16))
		}
	})
	return best
}

// root returns the whole root of n.
func root(n int64) int64 {
	if n <= 0 {
		return 1
	}
	r := int64(1) << ((bits.Len64(uint64(n)) + 1) / 2)
	for {
		next := (r + n/r) / 2
		if next >= r {
			return r
		}
		r = next
	}
}

// maxClassified is the most that the classifier alone may say.
const maxClassified = 985

// risk returns what a score means.
func (h *head) risk(score int64) Risk {
	if score == math.MinInt64 {
		return 0
	}
	// Steps of a 64th of the logistic function's unit; 900 is at ln 9.
	const step = 64
	x := (score - h.middle) * (step * 2197 / 1000) / h.spread
	if x >= 6*step {
		return maxClassified
	}
	if x <= -8*step {
		return 0
	}
	return min(maxClassified, Risk(logistic[x+8*step]))
}

// logistic holds thousandths of the logistic function from -8 to 6, in steps of a
// 64th.
var logistic = func() (table [14*64 + 1]int16) {
	for i := range table {
		table[i] = int16(math.Round(1000 / (1 + math.Exp(-(float64(i)/64 - 8)))))
	}
	return table
}()
