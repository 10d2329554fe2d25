package creto_test

import (
	"errors"
	"strings"
	"testing"

	"creto.dev"
	"creto.dev/fault"
)

func TestMoney(t *testing.T) {
	for text, want := range map[string]string{
		"49.90 EUR": "49.90 EUR", "0 USD": "0.00 USD", "0.000000001 USD": "0.000000001 USD", "-0.5 EUR": "-0.50 EUR", "007 EUR": "7.00 EUR",
		"170141183460469231731687303715.884105727 EUR": "170141183460469231731687303715.884105727 EUR", // 2¹²⁷-1
	} {
		m, err := creto.ParseMoney(text)
		if err != nil || m.String() != want {
			t.Errorf("ParseMoney(%q) = %v, %v; want %s", text, m, err, want)
		}
		if again, err := creto.ParseMoney(m.String()); err != nil || again != m {
			t.Errorf("ParseMoney(%q) = %v, %v; want what it was", m, again, err)
		}
	}
	for _, text := range []string{
		"", "49.90", "EUR", "49.90EUR", "49.90 eur", "49.90 EURO", "49,90 EUR", ".5 EUR", "5. EUR", "1.0000000001 EUR", "+1 EUR", "--1 EUR",
		"1e9 EUR", " 1 EUR", "1  EUR", "170141183460469231731687303715.884105728 EUR", strings.Repeat("9", 100) + " EUR",
	} {
		if m, err := creto.ParseMoney(text); !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("ParseMoney(%q) = %v, %v; want InvalidArgument", text, m, err)
		}
	}
}

func TestMoneyArithmetic(t *testing.T) {
	parse := func(text string) creto.Money {
		m, err := creto.ParseMoney(text)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	most := parse("170141183460469231731687303715.884105727 EUR")
	for _, tt := range []struct{ a, b, sum string }{
		{"1.50 EUR", "0.50 EUR", "2.00 EUR"}, {"-1 EUR", "0.25 EUR", "-0.75 EUR"}, {"18446744073.709551615 EUR", "0.000000001 EUR", "18446744073.709551616 EUR"},
	} {
		if got, err := parse(tt.a).Add(parse(tt.b)); err != nil || got != parse(tt.sum) {
			t.Errorf("%s + %s = %v, %v; want %s", tt.a, tt.b, got, err, tt.sum)
		}
	}
	if got, err := most.Add(parse("0.000000001 EUR")); !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("a sum beyond 127 bits = %v, %v; want InvalidArgument", got, err)
	}
	if got, err := parse("1 EUR").Add(parse("1 USD")); !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("1 EUR + 1 USD = %v, %v; want InvalidArgument", got, err)
	}
	order := []string{"-1 EUR", "-0.000000001 EUR", "0 EUR", "0.000000001 EUR", "18446744073.709551616 EUR"}
	for i, a := range order {
		for j, b := range order {
			if got, err := parse(a).Compare(parse(b)); err != nil || (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("Compare(%s, %s) = %d, %v", a, b, got, err)
			}
		}
	}
}

func FuzzParseMoney(f *testing.F) {
	f.Add("49.90 EUR")
	f.Fuzz(func(t *testing.T, text string) {
		m, err := creto.ParseMoney(text)
		if err != nil {
			return
		}
		if again, err := creto.ParseMoney(m.String()); err != nil || again != m {
			t.Errorf("ParseMoney(%q) = %v, which reads back as %v, %v", text, m, again, err)
		}
	})
}
