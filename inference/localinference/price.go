package localinference

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"math/big"
	"regexp"
	"strings"

	"creto.dev/inference"
)

// Price is what tokens of a model cost, in US dollars for a million, as decimal
// text.
type Price struct {
	// Provider is who charges it; "" is whoever serves the model.
	Provider string `toml:"provider" json:"provider,omitempty"`
	// Model is a name, or a prefix followed by *, as the provider calls it.
	Model string `toml:"model" json:"model"`
	Input string `toml:"input" json:"input"`
	// Output is of an answer's tokens; "" where there are none, as of embeddings.
	Output string `toml:"output" json:"output,omitempty"`
	// CachedInput is of prompts that the provider had kept; "" is as Input.
	CachedInput string `toml:"cached_input" json:"cached_input,omitempty"`
}

// PriceTable is the table that is built in: list prices of an older day, for
// choosing, not for billing.
type PriceTable struct {
	// Date is the day as of which they were listed, as 2006-01-02.
	Date    string   `json:"date"`
	Sources []string `json:"sources"`
	Prices  []Price  `json:"prices"`
}

//go:embed prices.json
var pricesJSON []byte

// BuiltInPrices returns the table. Names in it also stand for their dated versions.
func BuiltInPrices() PriceTable {
	var t PriceTable
	if err := json.Unmarshal(pricesJSON, &t); err != nil {
		panic("localinference: prices.json: " + err.Error()) // a test reads it
	}
	return t
}

// assumedAnswer is how many tokens an answer is taken to have where the request does
// not bound it.
const assumedAnswer = 1024

// The units of a rate: US dollars for a million tokens, and for one.
const (
	perMillion = 6
	perToken   = 0
)

// rateDigits is how many decimals of a dollar a token's rate has: exact for a price
// of 9 decimals per million.
const rateDigits = 15

// rate is an exact price of one token, in units of 10⁻¹⁵ US dollars.
type rate struct {
	units *big.Int
	set   bool
}

// parseRate reads decimal text; tens is by how many tokens, as a power of ten, it
// counts.
func parseRate(text string, tens int) (rate, error) {
	whole, fraction, point := strings.Cut(text, ".")
	digits := rateDigits - tens
	if whole == "" || point && fraction == "" || len(whole) > 9 || len(fraction) > digits || strings.Trim(whole+fraction, "0123456789") != "" {
		return rate{}, fmt.Errorf("%.64q is no decimal number of dollars, with at most %d decimals, such as 2.50", text, digits)
	}
	n, _ := new(big.Int).SetString(whole+fraction+strings.Repeat("0", digits-len(fraction)), 10) // it has digits alone
	return rate{n, true}, nil
}

// mustRate is parseRate of text that was checked; "" is not set.
func mustRate(text string, tens int) rate {
	r, _ := parseRate(text, tens)
	return r
}

// times returns what n tokens cost.
func (r rate) times(n int64) cost {
	return cost{new(big.Int).Mul(r.units, big.NewInt(n)), true}
}

// cost is an amount, in units of 10⁻¹⁵ US dollars.
type cost struct {
	units *big.Int
	known bool
}

func (c cost) compare(other cost) int { return c.units.Cmp(other.units) }

// String returns dollars, exactly.
func (c cost) String() string {
	digits := c.units.String()
	if pad := rateDigits + 1 - len(digits); pad > 0 {
		digits = strings.Repeat("0", pad) + digits
	}
	at := len(digits) - rateDigits
	return strings.TrimRight(strings.TrimRight(digits[:at]+"."+digits[at:], "0"), ".")
}

// listed is a Price that was read.
type listed struct {
	provider, model string
	input, output   rate
}

// read reads a Price that was checked. Without a price of output there is none.
func read(p Price) listed {
	l := listed{provider: p.Provider, model: p.Model, input: mustRate(p.Input, perMillion), output: mustRate(p.Output, perMillion)}
	if !l.output.set {
		l.output = rate{new(big.Int), true}
	}
	return l
}

// prices are those of the configuration, and by name those of the table.
type prices struct {
	own   []listed
	table map[string]listed
}

func (c Config) priceTable() prices {
	p := prices{table: map[string]listed{}}
	for _, x := range c.Prices {
		p.own = append(p.own, read(x))
	}
	for _, x := range BuiltInPrices().Prices {
		p.table[x.Model] = read(x)
	}
	return p
}

// dated is the end of the name of a model's version.
var dated = regexp.MustCompile(`-(20[0-9]{2}-?[01][0-9]-?[0-3][0-9]|latest)$`)

// find returns what a model costs there. The table is of what the cloud charges.
func (p prices) find(c *candidate) (listed, bool) {
	for _, l := range p.own {
		if (l.provider == "" || l.provider == c.id) && inference.Match(l.model, c.model) {
			return l, true
		}
	}
	if c.local {
		return listed{}, false
	}
	if l, ok := p.table[c.model]; ok {
		return l, true
	}
	l, ok := p.table[dated.ReplaceAllString(c.model, "")]
	return l, ok
}

// estimate returns what a request would cost at most: as if nothing were cached.
func (p prices) estimate(c *candidate, input, output int64) cost {
	l, ok := p.find(c)
	if !ok {
		return cost{}
	}
	total := l.input.times(input)
	total.units.Add(total.units, l.output.times(output).units)
	return total
}
