package main

import (
	"fmt"
	"strconv"
	"strings"
)

// cents is an amount of money in hundredths of the order's currency. In JSON it
// is a plain number such as 49.90, never a string and never a binary float.
type cents int64

// maxCents bounds an amount to what a pottery shop may ever see: 1,000,000.00.
const maxCents = 100_000_000

// parseCents reads a decimal with at most two places: "49.90", "49.9" or "50".
func parseCents(text string) (cents, error) {
	whole, fraction, point := strings.Cut(text, ".")
	if len(whole) == 0 || len(fraction) > 2 || point && fraction == "" || !digits(whole) || !digits(fraction) {
		return 0, fmt.Errorf("%q is no amount: write it as in 49.90", text)
	}
	n, err := strconv.ParseInt(whole+(fraction + "00")[:2], 10, 64)
	if err != nil || n > maxCents {
		return 0, fmt.Errorf("amount %s is above %s", text, cents(maxCents))
	}
	return cents(n), nil
}

func digits(s string) bool { return strings.Trim(s, "0123456789") == "" }

// String returns c with two places.
func (c cents) String() string { return fmt.Sprintf("%d.%02d", c/100, c%100) }

// MarshalJSON implements json.Marshaler.
func (c cents) MarshalJSON() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalJSON implements json.Unmarshaler.
func (c *cents) UnmarshalJSON(text []byte) error {
	parsed, err := parseCents(string(text))
	if err == nil {
		*c = parsed
	}
	return err
}
