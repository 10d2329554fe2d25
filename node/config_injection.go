package node

import (
	"cmp"
	"time"

	"creto.dev/gateway"
	"creto.dev/inference/injection"
)

// InjectionConfig is what is done about prompt injection (docs/injection.md). What is
// zero is the default.
type InjectionConfig struct {
	// Mode is off, observe (risks are recorded, and told to policies) or enforce.
	Mode string `toml:"mode"`
	// Taint is the risk from which a session is tainted, Block that from which a
	// model call is refused; in thousandths.
	Taint int `toml:"taint"`
	Block int `toml:"block"`
	// TaintFor is how long an agent that is in no run stays tainted. A run stays so
	// until it ends.
	TaintFor Duration `toml:"taint_for"`
	// Canary is off, taint or block: what becomes of an answer that gives away a
	// token in its system prompt.
	Canary string `toml:"canary"`
}

// The values of InjectionConfig.Mode, and of Canary beside gateway's.
const (
	InjectionOff     = "off"
	InjectionObserve = "observe"
	InjectionEnforce = "enforce"
)

func defaultInjection() InjectionConfig {
	return InjectionConfig{
		Mode: InjectionEnforce, Taint: int(injection.DefaultTaint), Block: int(injection.DefaultBlock), TaintFor: Duration(time.Hour), Canary: InjectionOff,
	}
}

// filled returns c with the default for what is not said.
func (c InjectionConfig) filled() InjectionConfig {
	d := defaultInjection()
	c.Mode, c.Canary = cmp.Or(c.Mode, d.Mode), cmp.Or(c.Canary, d.Canary)
	c.Taint, c.Block, c.TaintFor = cmp.Or(c.Taint, d.Taint), cmp.Or(c.Block, d.Block), cmp.Or(c.TaintFor, d.TaintFor)
	return c
}

// gateway returns what the gateway makes of it.
func (c InjectionConfig) gateway() gateway.Injection {
	c = c.filled()
	out := gateway.Injection{Enforce: c.Mode == InjectionEnforce, Taint: injection.Risk(c.Taint), Block: injection.Risk(c.Block)}
	if c.Mode != InjectionOff {
		out.Detector = injection.New()
	}
	if c.Canary != InjectionOff {
		out.Canary = gateway.CanaryMode(c.Canary)
	}
	return out
}

func (k *configChecker) injection(c InjectionConfig) {
	c = c.filled()
	k.oneOf("inference.injection.mode", c.Mode, InjectionOff, InjectionObserve, InjectionEnforce)
	k.oneOf("inference.injection.canary", c.Canary, InjectionOff, string(gateway.CanaryTaint), string(gateway.CanaryBlock))
	k.between("inference.injection.taint", c.Taint, 1, int(injection.MaxRisk))
	k.between("inference.injection.block", c.Block, c.Taint, int(injection.MaxRisk)+1)
	k.within("inference.injection.taint_for", c.TaintFor, time.Minute, 30*24*time.Hour)
}
