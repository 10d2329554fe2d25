package node_test

import (
	"errors"
	"testing"

	"creto.dev"
	"creto.dev/client"
	"creto.dev/fault"
	"creto.dev/node"
)

// Over TCP an administrator passes on what acts for themselves, and nothing of
// another human's, who has not been asked.
func TestDelegationBelowAnother(t *testing.T) {
	_, owner, stop := running(t, options(t, t.TempDir()))
	defer stop()
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"alice", "carol"} {
		must(second(owner.AddHuman(ctx, name, []string{node.AdminGroup})))
		must(second(owner.AddAgent(ctx, client.NewAgent{Name: name + "s", OnBehalfOf: name, Allow: []string{"call_model=*"}})))
	}
	session, err := owner.Session(ctx, "carol")
	must(err)
	status, err := owner.Status(ctx)
	must(err)
	carol, err := client.New("http://"+status.Listen, creto.NewSecret(session.Token))
	must(err)
	if _, err := carol.AddAgent(ctx, client.NewAgent{Name: "spy", OnBehalfOf: "agent:alices"}); !errors.Is(err, fault.PermissionDenied) {
		t.Errorf("AddAgent below an agent of alice's = %v, want PermissionDenied", err)
	}
	if _, err := carol.Delegate(ctx, client.NewAgent{Name: "carols", OnBehalfOf: "agent:alices"}); !errors.Is(err, fault.PermissionDenied) {
		t.Errorf("Delegate below an agent of alice's = %v, want PermissionDenied", err)
	}
	if d, err := owner.Check(ctx, client.Check{Agent: "carols", Action: "call_model", Resource: "m"}); err != nil || d.Chain[0] != "human:carol" {
		t.Errorf("afterwards her agent's chain is %v, %v", d.Chain, err)
	}
	must(second(carol.AddAgent(ctx, client.NewAgent{Name: "helper", OnBehalfOf: "agent:carols", Allow: []string{"call_model=*"}})))
}
