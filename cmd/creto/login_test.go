package main_test

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"creto.dev/console/consoletest"
)

// A human's day, through the binary and a real browser: a one-time login, a
// passkey, a delegation that waits for it, an action, a receipt that proves it,
// and a command line elsewhere.
func TestHuman(t *testing.T) {
	consoletest.Chromium(t)
	u := newUpstream()
	defer u.Close()
	n := newNode(t, "[[inference.providers]]\nname = \"stub\"\nbase_url = \""+u.URL+"/v1\"\n")
	n.must("human", "add", "alice", "--group", "admins")
	b := consoletest.Open(t, strings.TrimSuffix(n.Console, "/console"))
	b.Enrol(strings.TrimSpace(n.must("human", "login", "alice")))
	b.Press("Log out", "Log in with a passkey")

	// The command says where, and waits.
	add := background(t, n.command("agent", "add", "mail-bot", "--on-behalf-of", "alice", "--allow", "call_model=*"))
	address := regexp.MustCompile(`http://localhost:\d+/console/delegations/\S+`)
	eventually(t, "an address", func() bool { return address.MatchString(add.out.String()) })
	if list := n.must("agent", "list"); !strings.Contains(list, "acts for nobody yet") {
		t.Errorf("agent list:\n%s", list)
	}
	if out, err := n.command("check", "mail-bot", "call_model", "m").CombinedOutput(); err == nil {
		t.Errorf("before anybody confirmed it, it may:\n%s", out)
	}
	b.Go(address.FindString(add.out.String()))
	b.Press("Log in with a passkey", "mail-bot is to act on behalf of alice") // and back to where she was going
	b.Press("Confirm with a passkey", "confirmed")
	if out := add.wait(); !strings.Contains(out, "added mail-bot, on behalf of alice") {
		t.Errorf("agent add:\n%s", out)
	}

	n.must("check", "mail-bot", "call_model", "m")
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, strings.TrimSuffix(n.Console, "/console")+"/v1/chat/completions", strings.NewReader(`{"model":"m","messages":[{"role":"user","content":"hello"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+strings.TrimSpace(n.must("token", "mail-bot")))
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("the model answers %d %s, %v", response.StatusCode, body, err)
	}
	eventually(t, "the record", func() bool { return len(n.records("call_model")) == 1 })
	bundle := filepath.Join(n.home, "passkey.bundle")
	n.must("receipts", "--what", "call_model", "--bundle", bundle)
	if out := n.must("verify", bundle); !strings.Contains(out, "\n  human    alice, by passkey (localhost)\n") || !strings.Contains(out, "root trusted") {
		t.Errorf("verify:\n%s", out)
	}
	var verified struct {
		Humans []struct{ Proof, Known string }
	}
	if err := json.Unmarshal([]byte(n.must("verify", bundle, "--json")), &verified); err != nil || len(verified.Humans) != 1 || verified.Humans[0].Proof != "webauthn" {
		t.Errorf("verify --json: %+v, %v", verified, err)
	}
	// A tampered assertion fails.
	data, err := os.ReadFile(bundle)
	if err != nil {
		t.Fatal(err)
	}
	at := strings.Index(string(data), `"type":"webauthn.get"`)
	if at < 0 {
		t.Fatal("the bundle holds no assertion")
	}
	data[at+len(`"type":"webauthn.get","challenge":"`)] ^= 1
	if err := os.WriteFile(bundle, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := n.command("verify", bundle).CombinedOutput(); err == nil || !strings.Contains(string(out), "FAILED") {
		t.Errorf("a tampered assertion: %v\n%s", err, out)
	}

	// Declined, it acts for nobody, and may be asked for again. Who holds the
	// data directory can answer for her, and says so.
	add = background(t, n.command("agent", "add", "other-bot", "--on-behalf-of", "alice"))
	eventually(t, "an address", func() bool { return address.MatchString(add.out.String()) })
	b.Go(address.FindString(add.out.String()))
	b.Press("Decline", "declined")
	if <-add.done; add.err == nil || !strings.Contains(add.out.String(), "acts for nobody: the delegation is declined") {
		t.Errorf("agent add, declined: %v\n%s", add.err, add.out.String())
	}
	if out := n.must("agent", "add", "other-bot", "--on-behalf-of", "alice", "--proof", "bootstrap"); !strings.Contains(out, "added other-bot, on behalf of alice") {
		t.Errorf("agent add --proof bootstrap:\n%s", out)
	}
	if out := n.must("agent", "add", "idle-bot", "--on-behalf-of", "alice", "--wait=false"); !strings.Contains(out, "added idle-bot, which waits for alice") {
		t.Errorf("agent add --wait=false:\n%s", out)
	}

	// A command line elsewhere is let in by its human.
	n.env = append(n.env, "CRETO_ADDR="+strings.TrimSuffix(n.Console, "/console"))
	elsewhere := n.data
	n.data = filepath.Join(t.TempDir(), "elsewhere")
	if out, err := n.command("agent", "list").CombinedOutput(); err == nil {
		t.Errorf("before a login:\n%s", out)
	}
	login := background(t, n.command("login"))
	device := regexp.MustCompile(`http://localhost:\d+/console/device\?code=\S+`)
	eventually(t, "an address", func() bool { return device.MatchString(login.out.String()) })
	b.Go(device.FindString(login.out.String()))
	b.Press("Yes, it is mine", "The command line is logged in as alice")
	if out := login.wait(); !strings.Contains(out, "logged in to http://localhost:") {
		t.Errorf("login:\n%s", out)
	}
	info, err := os.Stat(filepath.Join(n.data, "logins.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the token's file is %v, %v", info, err)
	}
	if out := n.must("agent", "list"); !strings.Contains(out, "mail-bot") {
		t.Errorf("agent list:\n%s", out)
	}
	// Over TCP nobody answers for another.
	for _, args := range [][]string{{"--on-behalf-of", "bob"}, {"--on-behalf-of", "alice", "--proof", "bootstrap"}} {
		if out, err := n.command(append([]string{"agent", "add", "far-bot"}, args...)...).CombinedOutput(); err == nil || !strings.Contains(string(out), "over TCP a delegation waits for its human") {
			t.Errorf("agent add %v over TCP: %v\n%s", args, err, out)
		}
	}
	n.must("logout")
	if out, err := n.command("agent", "list").CombinedOutput(); err == nil {
		t.Errorf("after a logout:\n%s", out)
	}
	n.env, n.data = n.env[:len(n.env)-1], elsewhere
}
