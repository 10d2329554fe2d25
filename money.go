package creto

import (
	"cmp"
	"math/big"
	"strings"

	"creto.dev/fault"
)

// nanoDigits is how many decimals a Money has: a nano-unit is 10⁻⁹ of its
// currency.
const nanoDigits = 9

// maxMoneyBytes bounds the text of an amount: 39 digits hold 128 bits.
const maxMoneyBytes = 64

// maxNanos bounds an amount's nano-units: 127 bits and a sign.
var maxNanos = new(big.Int).Lsh(big.NewInt(1), 127)

// Money is an amount of one currency, exact to a nano-unit. The zero Money is
// no amount of no currency. It is immutable and comparable with ==.
type Money struct {
	currency string // ISO 4217, or "" for the zero Money
	// hi and lo are the nano-units as one number of 128 bits, in two's
	// complement.
	hi int64
	lo uint64
}

// ParseMoney reads an amount such as "49.90 EUR": at most 9 decimals and a
// currency of 3 capital letters (ISO 4217).
//
// Errors: InvalidArgument (Permanent).
func ParseMoney(text string) (Money, error) {
	const op fault.Op = "creto.ParseMoney"
	bad := fault.New(op, fault.InvalidArgument, "%.64q is no amount; write it as 49.90 EUR, with at most %d decimals", text, nanoDigits)
	amount, currency, ok := strings.Cut(text, " ")
	if !ok || len(text) > maxMoneyBytes || len(currency) != 3 || strings.Trim(currency, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
		return Money{}, bad
	}
	digits, negative := strings.CutPrefix(amount, "-")
	whole, fraction, point := strings.Cut(digits, ".")
	if whole == "" || point && fraction == "" || len(fraction) > nanoDigits || strings.Trim(whole+fraction, "0123456789") != "" {
		return Money{}, bad
	}
	nanos, ok := new(big.Int).SetString(whole+fraction+strings.Repeat("0", nanoDigits-len(fraction)), 10)
	if !ok {
		return Money{}, bad
	}
	if negative {
		nanos.Neg(nanos)
	}
	return money(op, nanos, currency)
}

func money(op fault.Op, nanos *big.Int, currency string) (Money, error) {
	if nanos.CmpAbs(maxNanos) >= 0 {
		return Money{}, fault.New(op, fault.InvalidArgument, "an amount of %s is too large to be counted", currency)
	}
	unsigned := nanos
	if nanos.Sign() < 0 {
		unsigned = new(big.Int).Add(nanos, new(big.Int).Lsh(big.NewInt(1), 128))
	}
	low := new(big.Int).And(unsigned, new(big.Int).SetUint64(^uint64(0)))
	return Money{currency: currency, hi: int64(new(big.Int).Rsh(unsigned, 64).Uint64()), lo: low.Uint64()}, nil
}

func (m Money) nanos() *big.Int {
	n := new(big.Int).Lsh(big.NewInt(m.hi), 64)
	return n.Add(n, new(big.Int).SetUint64(m.lo))
}

// Currency returns the ISO 4217 code, "" for the zero Money.
func (m Money) Currency() string { return m.currency }

// IsZero reports whether m is no amount at all; 0 EUR is one.
func (m Money) IsZero() bool { return m == Money{} }

// Sign returns -1, 0 or 1 as the amount is negative, zero or positive.
func (m Money) Sign() int { return m.nanos().Sign() }

// Compare orders two amounts of one currency.
//
// Errors: InvalidArgument (Permanent) for different currencies.
func (m Money) Compare(other Money) (int, error) {
	if m.currency != other.currency {
		return 0, fault.New("creto.Money.Compare", fault.InvalidArgument, "%q and %q are different currencies", m.currency, other.currency)
	}
	return cmp.Or(cmp.Compare(m.hi, other.hi), cmp.Compare(m.lo, other.lo)), nil
}

// Add returns the sum of two amounts of one currency. It never wraps.
//
// Errors: InvalidArgument (Permanent) for different currencies or a sum that
// does not fit.
func (m Money) Add(other Money) (Money, error) {
	const op fault.Op = "creto.Money.Add"
	if _, err := m.Compare(other); err != nil {
		return Money{}, fault.Wrap(op, err)
	}
	return money(op, new(big.Int).Add(m.nanos(), other.nanos()), m.currency)
}

// String returns what [ParseMoney] reads, with at least two decimals; "" for
// the zero Money.
func (m Money) String() string {
	if m.IsZero() {
		return ""
	}
	nanos := m.nanos()
	text := new(big.Int).Abs(nanos).String()
	if pad := nanoDigits + 1 - len(text); pad > 0 {
		text = strings.Repeat("0", pad) + text
	}
	whole, fraction := text[:len(text)-nanoDigits], strings.TrimRight(text[len(text)-nanoDigits:], "0")
	if pad := 2 - len(fraction); pad > 0 {
		fraction += strings.Repeat("0", pad)
	}
	if nanos.Sign() < 0 {
		whole = "-" + whole
	}
	return whole + "." + fraction + " " + m.currency
}

// MarshalText implements encoding.TextMarshaler.
func (m Money) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; it accepts what
// [ParseMoney] accepts, and "" as the zero Money.
func (m *Money) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*m = Money{}
		return nil
	}
	parsed, err := ParseMoney(string(text))
	if err == nil {
		*m = parsed
	}
	return err
}
