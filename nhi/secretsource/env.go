package secretsource

import (
	"context"
	"strings"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/nhi"
)

// env is a process's environment.
type env struct {
	prefix string
	lookup func(string) (string, bool)
}

var _ nhi.SecretSource = env{}

// NewEnv returns the variables whose names begin with prefix, which must not be
// "", as lookup knows them, such as os.LookupEnv. No other variable can be read.
//
// Errors: InvalidArgument (Permanent) for a prefix that no name begins with.
func NewEnv(prefix string, lookup func(string) (string, bool)) (nhi.SecretSource, error) {
	if !variable.MatchString(prefix) {
		return nil, fault.New("secretsource.NewEnv", fault.InvalidArgument, "%.100q is no beginning of a variable's name", prefix)
	}
	return env{prefix, lookup}, nil
}

// Secret implements nhi.SecretSource; locator is the variable's whole name.
func (e env) Secret(_ context.Context, locator string) (creto.Secret, error) {
	const op fault.Op = "secretsource.env"
	if !strings.HasPrefix(locator, e.prefix) || !variable.MatchString(locator) {
		return creto.Secret{}, fault.New(op, fault.NHISecretAccessDenied, "its variable does not begin with the prefix of those that hold secrets")
	}
	value, ok := e.lookup(locator)
	switch {
	case !ok || value == "":
		return creto.Secret{}, fault.New(op, fault.NHISecretNotFound, "the variable %s is not set", locator)
	case len(value) > nhi.MaxSecretBytes:
		return creto.Secret{}, tooLarge(op)
	}
	return creto.NewSecret(value), nil
}

func tooLarge(op fault.Op) error {
	return fault.New(op, fault.FailedPrecondition, "its value is larger than %d KiB", nhi.MaxSecretBytes>>10)
}
