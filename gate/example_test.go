package gate_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"creto.dev"
	"creto.dev/fault"
	"creto.dev/gate"
	"creto.dev/nhi"
)

// An agent's model call is allowed, its connection to the internet is not; act
// runs in the first case only.
func ExampleGate_Do() {
	withHouse(func(t testing.TB, g *gate.Gate, token string) {
		caller, err := g.Open(t.Context(), nhi.Credential{Token: token})
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(caller.Identity().ID, "on behalf of", caller.Chain().Human())
		for _, action := range []creto.Action{
			{Name: creto.CallModel, Resource: creto.Resource{Type: "Model", ID: "gpt-4o"}},
			{Name: creto.NetworkEgress, Resource: creto.Resource{Type: "Host", ID: "example.com:443"}},
		} {
			_, err := g.Do(t.Context(), caller, action, func(context.Context) (gate.Result, error) {
				fmt.Println("acting:", action.Name)
				return gate.Result{}, nil
			})
			fmt.Println(action.Name, "ended with", fault.CodeOf(err))
		}
	})
	// Output:
	// spiffe://test.local/default/agent/bot on behalf of spiffe://test.local/default/human/alice
	// acting: call_model
	// call_model ended with ok
	// network_egress ended with authz.denied
}

// example is a testing.TB for where there is no test: examples.
type example struct {
	testing.TB
	dir     string
	cleanup []func()
}

func (*example) Helper()                      {}
func (*example) Context() context.Context     { return context.Background() }
func (e *example) TempDir() string            { return e.dir }
func (e *example) Cleanup(f func())           { e.cleanup = append(e.cleanup, f) }
func (*example) Fatal(args ...any)            { panic(fmt.Sprint(args...)) }
func (*example) Error(args ...any)            { panic(fmt.Sprint(args...)) }
func (*example) Errorf(f string, args ...any) { panic(fmt.Sprintf(f, args...)) }

// withHouse runs an example on the tests' house.
func withHouse(do func(t testing.TB, g *gate.Gate, token string)) {
	dir, err := os.MkdirTemp("", "gate-example")
	if err != nil {
		panic(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	e := &example{dir: dir}
	defer func() {
		for _, f := range e.cleanup {
			f()
		}
	}()
	h := build(e)
	do(e, h.gate, h.token(e, ""))
}
